"""Runs that train an adapter, by the command line: what they save, what a resume gives, and what they are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from killing import Kill
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from same_run import assert_same_run
from tiny_run import TinyRun, resume
from transformers import AutoModelForCausalLM

from rloop_lightning.cli.main import main
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.system.checksums import damaged_files

UPDATE = "torch.optim:AdamW.step"
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
    assert "is an adapter, which has a rank of its own; leave out --policy.lora.rank 8" in capfd.readouterr().err


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
