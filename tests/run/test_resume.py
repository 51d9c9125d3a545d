"""A run that is killed at any moment and resumed gives what an uninterrupted run gives, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import Kill, run_fit
from safetensors.torch import load_file
from same_run import assert_same_run, deterministic_rows

# Two rounds of four rollout steps on the embedded policy; the filter is off so that there is something to consolidate.
TINY = """
policy: {model: countdown}
engine: {max_new_tokens: 48}
algo: {name: dapo, lr: 1e-4, warmup_steps: 2, updates_per_step: 2}
consolidate: {name: rft, lr: 1e-4, epochs: 2, rollouts_per_update: 4}
loop: {rounds: 2, explore_steps: 4, problems_per_step: 4, rollouts_per_problem: 4, checkpoint_every_n_steps: 2}
filter: {enabled: false}
capture: {every_n_steps: 2, extra_rollouts: 2, extra_problems: 4}
eval: {every_n_steps: 2, samples: 2, k: [1, 2], max_problems: 4, sets: [test], sets_inside: [test]}
"""

DECODE = "rloop_lightning.engines.torch_engine:sample_tokens"
UPDATE = "torch.optim:AdamW.step"
NLL = "rloop_lightning.algorithms.rft:negative_log_likelihood"
RENAME = "rloop_lightning.system.files:_fsync"

MOMENTS = {
    "evaluating the base": Kill(DECODE, 30),
    "generating, before the first checkpoint": Kill(DECODE, 130),
    "optimizer step, after a checkpoint": Kill(UPDATE, 6),
    "writing a shard": Kill(RENAME, 1, "round-0/pool/step-000004.parquet"),
    "writing a checkpoint": Kill(RENAME, 1, "round-0/explore/checkpoints/step-000002.ckpt"),
    "saving the explored policy": Kill(RENAME, 1, "round-0/explore/policy"),
    "writing the expert set": Kill(RENAME, 1, "round-0/expert.parquet"),
    "writing a checkpoint of the consolidation": Kill(RENAME, 2, "round-0/consolidate/checkpoints/"),
    "saving the consolidated policy": Kill(RENAME, 1, "round-0/policy"),
    "writing the state": Kill(RENAME, 4, "state.json"),
    "optimizer step of the second consolidation": Kill(NLL, 8),
    "handing over": Kill(RENAME, 1, "final"),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def uninterrupted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    log = out.with_suffix(".log")
    assert run_fit(["--config", str(config), "--out", str(out)], log) == 0, log.read_text()
    return out


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_to_the_same_bits(moment: str, config: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "run.log"
    code = run_fit(["--config", str(config), "--out", str(out)], log, MOMENTS[moment])
    assert code == -9, f"the run was not killed {moment}: {log.read_text()}"
    assert run_fit(["--resume", str(out)], log) == 0, log.read_text()
    assert_same_run(out, uninterrupted)


def test_plain_reinforcement_learning_resumes_to_the_same_bits(config: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(config), "--consolidate", "none", "--out"]
    expected, out, log = tmp_path / "uninterrupted", tmp_path / "run", tmp_path / "log"
    assert run_fit([*arguments, str(expected)], log) == 0, log.read_text()
    assert run_fit([*arguments, str(out)], log, Kill(UPDATE, 11)) == -9, log.read_text()
    assert run_fit(["--resume", str(out)], log) == 0, log.read_text()
    ours, theirs = (load_file(run / "final" / "model.safetensors") for run in (out, expected))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert deterministic_rows(out) == deterministic_rows(expected)
