"""`rloop-fit --plan`, the refusal of a run that does not fit, and the figures of `auto`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from killing import Kill
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning.cli.main import main

SECOND_STEP = Kill("rloop_lightning.callbacks.checkpoint:PhaseCheckpoint.on_train_batch_end", 2)
AUTO = ["--policy.max_tokens_per_micro_batch=auto", "--engine.max_rows=auto"]


def write_config(folder: Path, architecture: str, **settings: Any) -> Path:
    """A folder with nothing but the config.json of a large model."""
    getattr(transformers, f"{architecture}Config")(
        architectures=[f"{architecture}ForCausalLM"], max_position_embeddings=32_768, **settings
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """Of the widths of Qwen2.5-7B."""
    widths = {"hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4}
    return write_config(tmp_path / "dense", "Qwen2", vocab_size=152_064, **widths, **heads)


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """Of the widths of Qwen3-30B-A3B."""
    widths = {"hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_experts": 128}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts_per_tok": 8}
    return write_config(tmp_path / "sparse", "Qwen3Moe", vocab_size=151_936, **widths, **heads)


def plan(capsys: pytest.CaptureFixture[str], model: Path, *arguments: str) -> str:
    assert main(["--plan", "--policy.model", str(model), "--data", "countdown", *arguments]) == 0
    return capsys.readouterr().out


def test_a_plan_needs_a_config_alone(dense: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert [file.name for file in dense.iterdir()] == ["config.json"]
    shown = plan(capsys, dense, "--plan.memory", "24GiB", "--policy.dtype=bfloat16", "--algo.kl_beta=0.1")
    training, _, generation = shown.partition("generation, 512 rollouts of 2,560 tokens at once: ")
    assert "Qwen2ForCausalLM, 7,615,616,512 weights, on cuda, 24GiB (--plan.memory)" in training
    assert "training (exploration), micro-batches of 4,096 tokens: " in training
    words = training.split()
    assert words[words.index("weights", words.index("training")) + 1] == "14.2"
    assert words[words.index("optimizer") + 1] == "56.7"
    assert words[words.index("gradients") + 1] == "28.4"
    assert "reference policy" in training
    assert "KV cache" in generation
    assert "gradients" not in generation.partition("Training and")[0]
    assert "--policy.lora.rank 32" in generation
    assert not list(tmp_path.glob("runs*"))


def test_the_plan_of_a_mixture_of_experts(sparse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(capsys, sparse, "--plan.memory", "80GB", "--policy.dtype=bfloat16")
    assert "Qwen3MoeForCausalLM, 30,532,122,624 weights, on cuda" in shown
    assert "DOES NOT FIT" in shown
    assert "--policy.quantization nf4" not in shown  # experts are not quantised


def test_advice_of_the_plan_fits_when_it_is_taken(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = ["--plan.memory", "24GiB", "--policy.dtype=bfloat16"]
    advice = plan(capsys, dense, *memory).partition("cheapest first:\n")[2].splitlines()
    flags = advice[0].split()
    shown = plan(capsys, dense, *memory, *flags)
    assert "DOES NOT FIT" not in shown
    assert shown.count(", fits") == 2


def test_auto_is_what_fits(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = ["--plan.memory", "80GiB", "--policy.dtype=bfloat16", "--policy.lora.rank=32"]
    shown = plan(capsys, dense, *memory, *AUTO)
    assert shown.count(", fits") == 2
    tokens = shown.partition("  --policy.max_tokens_per_micro_batch ")[2].split()[0]
    assert f"micro-batches of {int(tokens):,} tokens" in shown


def test_the_plan_of_another_device(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert " on cpu, " in plan(capsys, dense, "--plan.device", "cpu")
    assert " on cpu, 64GB" in plan(capsys, dense, "--trainer.accelerator=cpu", "--plan.memory", "64GB")
    if not torch.cuda.is_available():
        assert main(["--plan", "--policy.model", str(dense), "--trainer.accelerator=gpu"]) == 2
        assert "there is no GPU here to ask for its memory; give its size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plan.memory", "24 gigs"], "--plan.memory: expected a size such as 24GiB"),
        (["--policy.model", "nowhere/at/all/here"], "no such folder"),
        (["--policy.quantization", "nf4"], "quantised weights can't be trained"),
    ],
)
def test_errors_of_a_plan(flags: list[str], message: str, dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--plan.memory", "24GiB", "--policy.model", str(dense), *flags]) == 2
    assert message in capsys.readouterr().err


def test_layers_that_are_not_counted_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(tmp_path / "gemma", "Gemma")
    assert "layers whose memory is not counted" in plan(capsys, model, "--plan.memory", "24GiB")


def test_a_run_that_does_not_fit_is_refused_before_loading(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(config: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("rloop_lightning.model.policy.Policy.load", load)
    assert tiny.fit(tmp_path / "run", "--plan.memory", "8MiB") == 2
    error = capsys.readouterr().err
    assert "for exploration" in error
    assert "and has 8MiB (--plan.memory); take" in error
    assert not (tmp_path / "run").exists()


def test_figures_of_auto_are_recorded_and_kept_by_a_resume(tiny: TinyRun, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = (*AUTO, "--plan.memory", "80MiB")
    tiny.finished(whole, *arguments)
    settings = yaml.safe_load((whole / "config.yaml").read_text())
    tokens, rows = settings["policy"]["max_tokens_per_micro_batch"], settings["engine"]["max_rows"]
    assert tokens > 24
    assert rows == 16  # those of a rollout step: 4 problems x 4
    assert json.loads((whole / "state.json").read_text())["settings"]["engine"]["max_rows"] == 16
    log = tmp_path / "log"
    assert (
        tiny.fit_apart(
            killed,
            log,
            Kill("rloop_lightning.callbacks.checkpoint:PhaseCheckpoint.on_train_batch_end", 3),
            arguments=arguments,
        )
        == -9
    ), log.read_text()
    assert resume(killed, log) == 0, log.read_text()
    assert_same_run(killed, whole)
    again = yaml.safe_load((killed / "config.yaml").read_text())
    assert again["policy"]["max_tokens_per_micro_batch"] == tokens
