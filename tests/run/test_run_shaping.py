"""Rewards that shape and weights that vanish, through `rloop-fit`: what the updates got, by a plug-in that notes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyRun

from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.types import Problem, Rollout, RolloutBatch, SamplingParams

BELOW_ZERO = ["--reward=reward_functions.below_zero", "--reward.success_threshold=-1.5"]


class NotesAdvantages(GRPO):
    """GRPO that writes the advantages of each rollout step to a file.

    Args:
        notes: the file, one line of JSON per rollout step.
    """

    def __init__(self, *, notes: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.notes = Path(notes)

    def prepare(self, batch: RolloutBatch) -> RolloutBatch:
        batch = super().prepare(batch)
        with self.notes.open("a") as file:
            file.write(json.dumps(batch.advantages.view(4, 4).tolist()) + "\n")
        return batch


class Overconfident(TorchEngine):
    """Computes logprobs that are a tenth of a nat above the trainer's."""

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        rollouts = super().generate(problems, n, sampling)
        return [replace(rollout, sampling_logprobs=rollout.sampling_logprobs + 0.1) for rollout in rollouts]


@pytest.mark.parametrize(
    "shaping",
    [
        ["--algo.kl_beta=1e-3", "--algo.kl_in=reward", "--algo.kl_estimator=k1", "--algo.updates_per_step=2"],
        ["--algo.overlong_buffer_tokens=23"],
    ],
)
def test_shaping_does_not_decide_where_the_tasks_rewards_are_equal(
    tiny: TinyRun, tmp_path: Path, shaping: list[str]
) -> None:
    """A reward that is always 0: without a task, shaping was normalised to advantages of 0.5 to 1.5."""
    notes = tmp_path / "notes.jsonl"
    algo = ["--algo=run.test_run_shaping.NotesAdvantages", f"--algo.notes={notes}"]
    task = ["--reward=reward_functions.nothing_is_right", "--consolidate=none"]
    assert tiny.fit(tmp_path / "run", *algo, *shaping, *task, "--debug") == 0
    steps = [torch.tensor(json.loads(line)) for line in notes.read_text().splitlines()]
    assert len(steps) == 4
    assert max(float(step.abs().max()) for step in steps) < 0.05


@pytest.mark.parametrize(("level", "lost"), [("sequence", True), ("geometric", False), ("token", False)])
def test_weights_that_vanish_with_the_length_are_told(
    tiny: TinyRun, tmp_path: Path, level: str, lost: bool, recwarn: pytest.WarningsRecorder
) -> None:
    """About 24 tokens: exp(-0.1) a token, exp(-2.4) a rollout."""
    engine = ["--engine=run.test_run_shaping.Overconfident", "--algo.importance_correction=truncate"]
    more = [f"--algo.importance_level={level}", "--consolidate=none", "--eval.sets=[]", "--loop.explore_steps=2"]
    assert tiny.fit(tmp_path / "run", *engine, *more) == 0
    told = [str(one.message) for one in recwarn if "importance weights are" in str(one.message)]
    assert len(told) == lost
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["phase"] == "explore"]
    for row in rows:
        assert row["policy/importance_capped_share"] == 0
        if lost:
            assert row["policy/importance_weight"] < 0.3
        else:
            assert row["policy/importance_weight"] == pytest.approx(0.905, abs=0.01)
            assert row["policy/importance_vanished_share"] == 0


def test_an_expert_set_without_weight_ends_the_run(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Successes with rewards of -1: gradient ascent on them before, and nothing to train on now."""
    assert tiny.fit(tmp_path / "run", *BELOW_ZERO, "--consolidate.weight=linear") == 1
    said = capsys.readouterr().err
    assert "error: --consolidate RFT: all " in said
    assert "of the expert set have weight 0 (rewards -1 to -1)" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "final").exists()
