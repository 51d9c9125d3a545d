"""A third party's algorithm, whole: what `--algo cli.test_cli_algorithms.WithoutClip` runs. No other file knows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rloop_lightning.algorithms.advantages import centred
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.losses import ratio
from rloop_lightning.cli.main import main
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class WithoutClip(Algorithm):
    """REINFORCE with a group baseline and an unclipped ratio.

    Args:
        scale: multiplies the advantages.
    """

    def __init__(self, *, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale
        self.require(scale > 0, "scale", "must be > 0", scale)

    def advantages(self, rewards: Tensor) -> Tensor:
        return self.scale * centred(rewards)

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        assert batch.old_logprobs is not None
        token_loss = -ratio(scores.logprobs, batch.old_logprobs) * batch.advantages[:, None]
        return LossOutput(token_loss, {"policy/scale": torch.full_like(token_loss, self.scale)})


def test_it_runs_by_its_class_path(tmp_path: Path) -> None:
    sizes = ["--loop.rounds=1", "--loop.explore_steps=2", "--loop.problems_per_step=4", "--loop.rollouts_per_problem=4"]
    evaluation = ["--eval.samples=2", "--eval.k=[1,2]", "--eval.max_problems=2", "--eval.every_n_steps=0"]
    mine = ["--algo", "cli.test_cli_algorithms.WithoutClip", "--algo.scale", "0.5", "--consolidate", "none"]
    assert main([*mine, *sizes, *evaluation, "--out", str(tmp_path / "run"), "--debug"]) == 0
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["phase"] == "explore"]
    assert [row["policy/scale"] for row in rows] == [0.5, 0.5]
    assert json.loads((tmp_path / "run" / "state.json").read_text())["budget"]["optimizer_steps"] == 4
