"""What a run says when it goes wrong, from the command line to results.md: divergence, phases that train nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import TinyRun

from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.types import SamplingParams

LOUD = "rloop-fit: error: "

STOP = "--loop.on_too_few_groups=stop"


@pytest.fixture(scope="module")
def sampling(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A tiny run with dynamic sampling, in which about a fifth of the rollouts succeed."""
    return TinyRun.written(
        tmp_path_factory.mktemp("sampling"),
        engine={"max_new_tokens": 48},
        algo={"dynamic_sampling": True, "updates_per_step": 2},
        loop={"problems_per_step": 8, "rollouts_per_problem": 8, "checkpoint_every_n_steps": 0},
    )


def faults(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The error's lines."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return [line.removeprefix(LOUD) for line in said.splitlines() if line.startswith(LOUD)]


def saved(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.safetensors"))


@pytest.mark.parametrize("checkpoints", [0, 1])
def test_a_learning_rate_that_makes_nan_logits_from_finite_weights(
    checkpoints: int, sampling: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found in the step that caused it, before a checkpoint or policy is saved."""
    out = tmp_path / "run"
    assert sampling.fit(out, "--algo.lr=1e10", f"--loop.checkpoint_every_n_steps={checkpoints}") == 1
    what, cause, go_on = faults(capsys)
    assert what == "round 1 explore: the policy's weights are finite, but its logits are NaN or infinite"
    assert "one update with --algo.lr 1e+10 was too large" in cause
    assert go_on == f"resume from its start with: rloop-fit --resume {out} --algo.lr 1e-04"
    assert saved(out) == []
    assert not list(out.rglob("*.ckpt"))


def test_nan_logits_in_a_consolidation(sampling: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert sampling.fit(out, "--consolidate.lr=1e10", "--loop.explore_steps=1", "--filter.enabled=false") == 1
    what, cause, go_on = faults(capsys)
    assert what.startswith("round 1 consolidate: the policy's weights are finite, but its logits are NaN")
    assert "--consolidate.lr 1e+10" in cause
    assert go_on == f"resume from its start with: rloop-fit --resume {out} --consolidate.lr 1e-04"
    assert saved(out) == ["round-0/explore/policy/model.safetensors"]


def test_an_exploration_that_diverged_says_so_in_the_results(
    sampling: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without dynamic sampling, nothing else would tell."""
    out = tmp_path / "run"
    diverging = ["--algo.lr=0.01", "--algo.warmup_steps=0", "--algo.dynamic_sampling=false"]
    assert sampling.fit(out, *diverging, "--loop.explore_steps=5", "--consolidate=none") == 0
    notes = (out / "results.md").read_text()
    assert "round 1/1 explore: the policy diverged: from step 1 to step 5, the success rate fell from 0." in notes
    assert "what may help: --algo.lr 1e-04" in notes


def test_too_few_groups_of_a_diverged_policy_are_not_blamed_on_the_problems(
    sampling: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    sampling.fit(out, "--algo.lr=0.01", "--algo.warmup_steps=0", "--consolidate=none", STOP)
    told = capsys.readouterr().err
    assert "the policy diverged: from step 1 to step 2, the success rate fell from 0." in told
    assert "too hard" not in told
    assert "too easy" not in told


def test_after_a_diverged_checkpoint_the_phase_is_to_be_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The success rate is gone from step 3 on, the newest checkpoint is of step 5, and logits are NaN after it."""
    from rloop_lightning.engines.torch_engine import TorchEngine
    from rloop_lightning.errors import NonFiniteError
    from rloop_lightning.rewards.countdown import CountdownReward

    generate, calls = TorchEngine.generate, []

    def generated(self: TorchEngine, problems: list, n: int, sampling: SamplingParams) -> list:
        if len(problems) == 8:  # a rollout step
            calls.append(n)
        if len(calls) == 6:
            raise NonFiniteError("the policy's logits are NaN or infinite, in 64 of 64 rollouts")
        return generate(self, problems, n, sampling)

    monkeypatch.setattr(TorchEngine, "generate", generated)
    monkeypatch.setattr(CountdownReward, "_reward", lambda self, problem, text: float(len(calls) < 3 and len(text) % 2))
    tiny = TinyRun.written(tmp_path, loop={"problems_per_step": 8, "rollouts_per_problem": 8, "explore_steps": 9})
    assert tiny.fit(tmp_path / "run", "--consolidate=none") == 1
    what, cause, go_on = faults(capsys)
    assert what == "round 1 explore: the policy's logits are NaN or infinite, in 64 of 64 rollouts"
    assert cause.startswith("the policy diverged: from step ")
    again = f"rloop-fit --resume {tmp_path / 'run'} --restart_from round-0/explore --algo.lr 1e-05"
    assert go_on == f"repeat the phase from its start with: {again}"


def test_updates_lost_in_rounding_are_told(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    lost = ["--algo.lr=1e-30", "--consolidate.lr=1e-30", "--loop.explore_steps=1"]
    assert tiny.fit(out, *lost) == 0
    notes = (out / "results.md").read_text()
    for phase, flag in (("explore", "--algo"), ("consolidate", "--consolidate")):
        assert f"round 1/1 {phase}: the policy hardly changed: of its weights, 0.00% are not what they were" in notes
        assert f"what may help: {flag}.lr 1e-07" in notes
    ours, base = (load_file(path / "model.safetensors") for path in (out / "final", embedded_model_path()))
    assert all(torch.equal(ours[name], base[name]) for name in base)


def test_a_bound_of_the_gradient_norm_leads_to_the_diagnosis(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.warns(UserWarning, match="the step is skipped and the phase ends here"):
        assert tiny.fit(out, "--gradient.stop_above=1e-9", "--consolidate=none") == 0
    notes = (out / "results.md").read_text()
    assert "the policy did not change: every optimizer step was skipped (1 in all; largest gradient norm" in notes
    assert "what may help: --gradient.stop_above" in notes


def test_a_reward_that_never_pays_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rloop_lightning.rewards.countdown import CountdownReward

    monkeypatch.setattr(CountdownReward, "_reward", lambda self, problem, text: 0.0)
    tiny = TinyRun.written(tmp_path, engine={"max_new_tokens": 48})
    assert tiny.fit(tmp_path / "run", "--consolidate=none", "--loop.show_completions=0") == 0
    notes = (tmp_path / "run" / "results.md").read_text()
    assert "round 1/1 explore: no success in 64 rollouts since the start: the problems are too hard" in notes
    assert "or the reward never pays" in notes
    said = caplog.text
    assert "WARNING: the first rollout step gives nothing to learn from" in said
    assert "no success in 16 rollouts since the start" in said
    assert "gold answer" in said


def test_a_model_that_computes_nan_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from safetensors.torch import save_file

    model = shutil.copytree(embedded_model_path(), tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    for name in ("up_proj", "down_proj"):  # finite numbers, whose products are not
        weights[f"model.layers.1.mlp.{name}.weight"][:] = 1e38
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    tiny = TinyRun.written(tmp_path, policy={"model": str(model)})
    assert tiny.fit(tmp_path / "run") == 2
    (said,) = faults(capsys)
    assert said.startswith(f"--policy.model {model}: Qwen2ForCausalLM computes NaN or infinite logits")


def test_settings_of_show_completions_may_change_at_a_resume(finished: Path, tmp_path: Path) -> None:
    import shutil

    from rloop_lightning.cli.main import main

    out = shutil.copytree(finished, tmp_path / "run")
    assert main(["--resume", str(out), "--loop.show_completions=3"]) == 0
