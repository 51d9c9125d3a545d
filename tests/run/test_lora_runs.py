"""Runs that train an adapter, by the command line: what they save, what a resume gives, and what they are refused."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from killing import Kill
from moe import make_moe_policy
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from same_run import assert_same_run
from tiny_run import TinyRun, resume
from transformers import AutoModelForCausalLM

from rloop_lightning.cli.main import main
from rloop_lightning.model import adapter_packages, loading
from rloop_lightning.model import folder as folder_checks
from rloop_lightning.model.config import PolicyConfig, embedded_model_path
from rloop_lightning.model.policy import Policy
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.system import hub
from rloop_lightning.system.checksums import damaged_files

UPDATE = "lightning.pytorch.core.optimizer:LightningOptimizer.step"
RENAME = "os:replace"
LORA = {"policy": {"lora": {"rank": 4, "merge": True}}, "loop": {"rounds": 2}}
HIGH = {"lr": 1e-2, "warmup_steps": 0}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Two rounds of an adapter, with a KL term and learning rates that move it far."""
    folder = tmp_path_factory.mktemp("lora")
    return TinyRun.written(folder, **LORA, algo={**HIGH, "kl_beta": 0.1}, consolidate={**HIGH, "kl_beta": 0.1})


@pytest.fixture(scope="module")
def finished_lora(lora: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora.finished(tmp_path_factory.mktemp("uninterrupted") / "run")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


def test_a_killed_run_resumes_to_the_same_bits(lora: TinyRun, finished_lora: Path, tmp_path: Path) -> None:
    moments = [
        Kill(UPDATE, 2),
        Kill(RENAME, 1, "round-0/policy"),
        Kill(UPDATE, 3),
        Kill(RENAME, 1, "final-merged"),
    ]
    out, log = tmp_path / "run", tmp_path / "log"
    assert lora.fit_apart(out, log, moments[0]) == -9, log.read_text()
    for moment in moments[1:]:
        assert resume(out, log, moment) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, finished_lora)


def test_rounds_save_adapters_and_the_base_stays_as_it_is(finished_lora: Path) -> None:
    folders = [finished_lora / name for name in ("round-0/explore/policy", "round-0/policy", "round-1/policy", "final")]
    for folder in folders:
        assert not (folder / "config.json").exists()
        assert not damaged_files(folder)
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
            embedded_model_path()
        )
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    assert all(weight.dtype == torch.float32 for adapter in adapters for weight in adapter.values())
    moved = [float((adapters[0][name] - adapters[1][name]).abs().max()) for name in adapters[0]]
    assert min(moved) > 0


def test_the_final_adapter_and_the_merged_folder_compute_the_same(finished_lora: Path) -> None:
    """As the libraries load them."""
    adapted = logits(AutoPeftModelForCausalLM.from_pretrained(finished_lora / "final").eval())
    merged = logits(AutoModelForCausalLM.from_pretrained(finished_lora / "final-merged").eval())
    base = logits(AutoModelForCausalLM.from_pretrained(embedded_model_path()).eval())
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert float((adapted - base).abs().max()) > 0.1
    assert not (finished_lora / "final-merged" / "adapter_config.json").exists()
    assert "library_name: peft" in (finished_lora / "final" / "README.md").read_text()
    assert "library_name: transformers" in (finished_lora / "final-merged" / "README.md").read_text()


def test_checkpoints_hold_the_adapter_and_its_optimizer_alone(lora: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed = Kill(RENAME, 1, "round-0/explore/checkpoints/step-000003.ckpt")
    assert lora.fit_apart(out, tmp_path / "log", killed) == -9
    (path,) = (out / "round-0/explore/checkpoints").glob("*2.ckpt")
    stored = torch.load(path, weights_only=True)
    adapter = [name for name in stored["state_dict"] if name.startswith("policy.")]
    assert len(adapter) == 2 * 7 * 4  # A and B of seven layers in each of four blocks
    assert all(".lora_A." in name or ".lora_B." in name for name in adapter)
    reference = [name for name in stored["state_dict"] if name.startswith("kl.reference.")]
    assert len(reference) == len(adapter)
    assert len(stored["optimizer_states"][0]["state"]) == len(adapter)


@pytest.mark.parametrize(("kind", "moved"), [("round", False), ("base", True)])
def test_the_reference_of_a_round_is_what_the_round_began_with_or_the_base(
    kind: str, moved: bool, lora: TinyRun, finished_lora: Path, tmp_path: Path
) -> None:
    """In its first rollout step, a policy is the one that its round began with: the KL divergence is 0."""
    out = finished_lora
    if kind == "base":
        out = lora.finished(tmp_path / "run", "--algo.kl_reference", "base", "--loop.explore_steps", "2")
    first = {
        int(row["round"]): float(row["policy/kl_nats"])
        for row in read_metrics(out / "metrics.csv")
        if row["phase"] == "explore" and int(row["step"]) == 1
    }
    assert first[0] == pytest.approx(0, abs=1e-9)
    assert (first[1] > 1e-3) == moved


def test_a_run_starts_from_an_adapter(finished_lora: Path, tmp_path: Path) -> None:
    """Round 1 consolidates from it, and the run hands over an adapter of the same base."""
    start = Path(shutil.copytree(finished_lora / "round-0/policy", tmp_path / "start"))
    tiny = TinyRun.written(tmp_path, policy={"model": str(start)}, loop={"explore_steps": 2})
    out, log = tmp_path / "run", tmp_path / "log"
    assert tiny.fit_apart(out, log, Kill(UPDATE, 2)) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    theirs, ours = (load_file(path / "adapter_model.safetensors") for path in (start, out / "final"))
    assert theirs.keys() == ours.keys()
    # Two exploration steps moved phi, and two epochs of consolidation moved theta_1, by steps of at most lr.
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 2e-3
    config = json.loads((out / "final" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(embedded_model_path())


def test_a_run_whose_adapter_folder_or_base_changed_is_not_resumed(
    lora: TinyRun, finished_lora: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(embedded_model_path(), tmp_path / "base"))
    start = Path(shutil.copytree(finished_lora / "round-0/policy", tmp_path / "start"))
    settings = json.loads((start / "adapter_config.json").read_text())
    (start / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    tiny = TinyRun.written(tmp_path, policy={"model": str(start)}, loop={"explore_steps": 2})
    out = tmp_path / "run"
    assert tiny.fit_apart(out, tmp_path / "log", Kill(UPDATE, 2)) == -9
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-2}))
    assert main(["--resume", str(out)]) == 2
    assert f"{base / 'config.json'} is not what the run began with" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lora": {"rank": 4, "dropout": 0.1}},
            "--policy.lora.dropout 0.1: must be 0, because dropout makes logprobs random",
        ),
        ({"lora": {"merge": True}}, "--policy.lora.merge true: there is no adapter to merge; set --policy.lora.rank"),
        ({"lora": {"rank": 4, "targets": []}}, "--policy.lora.targets: names no layer; take all-linear"),
        (
            {"lora": {"rank": 4, "targets": ["q_proj", "qproj"]}},
            "--policy.lora.targets: the model has no layer 'qproj'; it takes down_proj, gate_proj",
        ),
        (
            {"lora": {"rank": 4, "targets": ["lm_head"]}},
            "--policy.lora.targets: lm_head is no linear layer that may be adapted; it takes",
        ),
        (
            {"quantization": "nf4"},
            "--policy.quantization nf4: quantised weights can't be trained; train an adapter (--policy.lora.rank 32)",
        ),
        ({"lora": {"rank": -1}}, "policy.lora.rank: expected an integer >= 0, got -1"),
    ],
)
def test_settings_are_refused_before_the_model_is_loaded(
    settings: dict[str, object], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny = TinyRun.written(tmp_path, policy=settings)
    assert tiny.fit(tmp_path / "run") == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_rank_beside_an_adapter_folder_is_refused(
    finished_lora: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny = TinyRun.written(tmp_path, policy={"model": str(finished_lora / "final"), "lora": {"rank": 8}})
    assert tiny.fit(tmp_path / "run") == 2
    assert "is an adapter of rank 4; leave out --policy.lora.rank 8" in capfd.readouterr().err


def test_the_base_as_a_reference_needs_an_adapter(
    tiny: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reference = ("--algo.kl_reference=base", "--consolidate.kl_reference=base")
    assert tiny.fit(tmp_path / "run", *reference, "--algo.kl_beta=0.1", "--consolidate.kl_beta=0.1") == 2
    error = capfd.readouterr().err
    for flag in ("--algo", "--consolidate"):
        assert f"{flag}.kl_reference base: only a policy with an adapter contains its base model" in error


def test_the_plan_tells_the_learning_rate_of_an_adapter(
    lora: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert lora.fit(tmp_path / "run", "--dry_run") == 0
    printed = capfd.readouterr().out
    assert "LoRA of rank 4 in 28 layers, 40,960 trained weights" in printed
    assert "about 10 times the learning rate of full fine-tuning; --algo.lr is 0.01, --consolidate.lr 0.01" in printed


def test_the_settings_name_the_adapter(finished_lora: Path) -> None:
    settings = yaml.safe_load((finished_lora / "config.yaml").read_text())
    assert settings["policy"]["lora"] == {
        "rank": 4,
        "alpha": 32.0,
        "targets": "all-linear",
        "rslora": False,
        "dropout": 0.0,
        "merge": True,
    }


def test_an_adapter_of_a_hub_s_model_keeps_a_copy_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume then needs the hub no more, and what is handed over names the model on the hub."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--acme--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(embedded_model_path(), repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for module in (folder_checks, loading, hub):
        monkeypatch.setattr(module, "hub_answers", lambda: False)
    tiny = TinyRun.written(tmp_path, policy={"model": "acme/model", "lora": {"rank": 4}}, loop={"explore_steps": 1})
    out = tmp_path / "run"
    assert tiny.fit(out, "--consolidate", "none") == 0
    assert not damaged_files(out / "base")
    assert (
        load_file(out / "base/model.safetensors").keys()
        == load_file(embedded_model_path() / "model.safetensors").keys()
    )
    config = json.loads((out / "final" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/model"
    shutil.rmtree(tmp_path / "cache")
    assert main(["--resume", str(out)]) == 0


# --- 4-bit weights and optimizers -------------------------------------------------------------------------------------


def quantised(folder: Path, **changes: dict[str, object]) -> TinyRun:
    policy = {"lora": {"rank": 4, "merge": True}, "quantization": "nf4"}
    return TinyRun.written(folder, policy=policy, algo={**HIGH, "kl_beta": 0.1}, consolidate=HIGH, **changes)


def test_a_killed_run_on_4_bit_weights_resumes_to_the_same_bits(tmp_path: Path) -> None:
    tiny = quantised(tmp_path)
    expected = tiny.finished(tmp_path / "uninterrupted")
    out, log = tmp_path / "run", tmp_path / "log"
    assert tiny.fit_apart(out, log, Kill(UPDATE, 3)) == -9, log.read_text()
    assert resume(out, log, Kill(RENAME, 1, "round-0/policy")) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, expected)
    # The merged folder computes what was trained, on dequantised weights. Quantised anew, it would be another policy.
    merged = Policy.load(PolicyConfig(model=str(expected / "final-merged")))
    trained = Policy.load(PolicyConfig(model=str(expected / "final"), quantization="nf4"))
    assert merged.adapter is None
    assert "quantization_config" not in json.loads((expected / "final-merged" / "config.json").read_text())
    torch.testing.assert_close(logits(merged.model), logits(trained.model), rtol=1e-3, atol=1e-3)
    unquantised = Policy.load(PolicyConfig(model=str(expected / "final")))
    assert float((logits(unquantised.model) - logits(trained.model)).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("optimizer", "dtype"), [("adamw8bit", "float32"), ("paged_adamw32bit", "bfloat16"), ("adamw", "bfloat16")]
)
def test_a_killed_run_resumes_to_the_same_bits_with_every_optimizer(optimizer: str, dtype: str, tmp_path: Path) -> None:
    options = {"min_8bit_size": 16} if "8bit" in optimizer else {}
    algo = {"optimizer": optimizer, "optimizer_options": options, **HIGH}
    tiny = TinyRun.written(tmp_path, policy={"dtype": dtype}, algo=algo, consolidate=algo)
    expected = tiny.finished(tmp_path / "uninterrupted")
    out, log = tmp_path / "run", tmp_path / "log"
    assert tiny.fit_apart(out, log, Kill(UPDATE, 3)) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, expected)


@pytest.mark.parametrize("strategy", ["fsdp", "lightning.pytorch.strategies.ModelParallelStrategy"])
def test_what_can_not_be_sharded_is_refused_by_name(
    strategy: str, tiny: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--policy.lora.rank=4", "--policy.quantization=nf4", "--algo.optimizer=paged_adamw8bit")
    assert tiny.fit(tmp_path / "run", *arguments, "--trainer.strategy", strategy) == 2
    error = capfd.readouterr().err
    assert "--policy.quantization nf4: weights in 4 bits can't be sharded" in error
    assert "--algo.optimizer paged_adamw8bit: moments in 8 bits can't be sharded (--trainer.strategy " in error


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("peft", ["--policy.lora.rank=4"], "--policy.lora.rank 4: the package peft is not installed; pip install"),
        (
            "bitsandbytes",
            ["--policy.lora.rank=4", "--policy.quantization=nf4"],
            "--policy.quantization nf4: the package bitsandbytes is not installed; pip install",
        ),
        (
            "bitsandbytes",
            ["--algo.optimizer=adamw8bit"],
            "--algo.optimizer can't be imported: the package bitsandbytes is not installed; pip install",
        ),
    ],
)
def test_a_missing_package_is_named(
    package: str,
    arguments: list[str],
    message: str,
    tiny: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(adapter_packages, "find_spec", lambda name: None if name == package else find_spec(name))
    assert tiny.fit(tmp_path / "run", *arguments) == 2
    assert message in capfd.readouterr().err


def test_4_bit_weights_of_a_mixture_of_experts_are_refused(
    tiny: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Their experts are no linear layers, and would stay as they are."""
    make_moe_policy(
        routing_replay="none", dtype=torch.float32, max_position_embeddings=256, moe_intermediate_size=128
    ).save(tmp_path / "moe")
    arguments = ("--policy.model", str(tmp_path / "moe"), "--policy.lora.rank=4", "--policy.quantization=nf4")
    assert tiny.fit(tmp_path / "run", *arguments) == 2
    error = capfd.readouterr().err
    assert "--policy.quantization nf4: Qwen3MoeForCausalLM has only " in error
    assert "of its weights in linear layers, which is all that is quantised (experts are not)" in error


def test_weights_that_are_not_finite_are_refused_before_they_are_quantised(
    tiny: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(embedded_model_path(), tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    arguments = ("--policy.model", str(model), "--policy.lora.rank=4", "--policy.quantization=nf4")
    assert tiny.fit(tmp_path / "run", *arguments) == 2
    assert f"NaN or infinite numbers in {name}; take another checkpoint" in capfd.readouterr().err


def test_an_adapter_on_a_mixture_of_experts_trains_with_replayed_routing(tiny: TinyRun, tmp_path: Path) -> None:
    """Adapted experts, routers as they were, and R3 through the command line."""
    make_moe_policy(routing_replay="none", dtype=torch.float32, max_position_embeddings=256).save(tmp_path / "moe")
    arguments = ("--policy.model", str(tmp_path / "moe"), "--policy.lora.rank=2", "--policy.routing_replay=r3")
    assert tiny.fit(tmp_path / "run", "--consolidate=none", "--loop.explore_steps=2", *arguments) == 0
    names = load_file(tmp_path / "run/final/adapter_model.safetensors")
    assert any("experts" in name for name in names)
    assert not any("mlp.gate." in name for name in names)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["phase"] == "explore"]
    assert all(float(row["routing/engine_current_mismatch"]) < 0.2 for row in rows)
