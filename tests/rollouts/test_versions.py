"""Which policy sampled each token: from the engine's numbers to lags, pools and checkpoints."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from builders import FakeEngine, FirstCharacterReward, make_problems

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.rollouts.stream import RolloutStream
from rloop_lightning.types import Problem, Rollout, RolloutStep, SamplingParams

STEPS = 4


class Numbered(FakeEngine):
    """Counts its weights from `first` on. Its rollouts have four tokens, the first of which has the weights before."""

    def __init__(self, first: int = 100) -> None:
        super().__init__(lambda problem, g, call: f"{g % 2}abc")
        self.version = first
        self.trained = 0
        self.has: int | None = None

    def sync(self) -> None:
        if self.has != self.trained:
            self.version += 1
        self.has = self.trained
        self.sync_metrics = {"policy/probe_gap_nats": self.trained / 8}

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        before = self.version - 1 if self.trained else self.version
        versions = np.array([before, *[self.version] * 3], dtype=np.int32)
        return [replace(one, versions=versions) for one in super().generate(problems, n, sampling)]


def make_stream(engine: FakeEngine, **settings: object) -> RolloutStream:
    return builders.make_stream(
        GroupSampler(engine, FirstCharacterReward()),
        DAPO(),
        make_problems(7),
        problems_per_step=3,
        rollouts_per_problem=2,
        steps=STEPS,
        **settings,
    )


def versions(step: RolloutStep) -> set[tuple[int, ...]]:
    return {tuple(rollout.versions.tolist()) for rollout in step.rollouts}


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("staleness", [0, 1])
def test_versions_are_rollout_steps_and_the_lag_is_their_mean(staleness: int, evaluates: bool) -> None:
    """An evaluation after an update gives the engine the weights that the next step would."""
    engine = Numbered()
    stream = make_stream(engine, staleness=staleness)
    for index, step in enumerate(stream):
        version = max(0, index - staleness)
        first = max(0, version - 1)
        assert versions(step) == {(first, version, version, version)}
        assert {group.rollouts[0].versions[0] for group in step.groups} == {first}
        assert step.lag == index - (first + 3 * version) / 4
        assert step.metrics.get("rollout/lag_steps", step.lag) == step.lag
        assert step.metrics["policy/probe_gap_nats"] == version / 8
        engine.trained += 1
        if evaluates:
            stream.step_sampler.sampler.sample(make_problems(2), 2, SamplingParams(8), SamplingCost())
        stream.state_dict()


def test_steps_sampled_ahead_keep_their_versions_in_a_checkpoint() -> None:
    """The engine of a resumed run counts from another number."""
    engine = Numbered()
    first = make_stream(engine, staleness=2)
    steps = iter(first)
    for _ in range(2):
        step = next(steps)
        engine.trained += 1
    assert step.index == 1
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = Numbered(first=1)
    again.trained = engine.trained
    resumed = make_stream(again, staleness=2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for stream in (steps, iter(resumed)):
        assert [(step.index, step.lag, versions(step)) for step in stream] == [
            (2, 2.0, {(0, 0, 0, 0)}),
            (3, 2.25, {(0, 1, 1, 1)}),
        ]


def test_an_engine_that_numbers_nothing_has_the_weights_that_began_the_step() -> None:
    steps = list(make_stream(FakeEngine(lambda problem, g, call: f"{g % 2}a"), staleness=2))
    assert [versions(step) for step in steps] == [{(0, 0)}, {(0, 0)}, {(0, 0)}, {(1, 1)}]
    assert [step.lag for step in steps] == [0, 1, 2, 2]


def test_a_pool_has_the_version_of_the_oldest_token(tmp_path: Path) -> None:
    engine = Numbered()
    pool = RolloutPool(tmp_path)
    for step in make_stream(engine):
        path = pool.write(f"step-{step.index + 1:06d}", step.groups, round=0, rollout_step=step.index, run_id="r")
        assert set(pq.read_table(path)["policy_version"].to_pylist()) == {max(0, step.index - 1)}
        engine.trained += 1
    path = pool.write("extra-000009", step.groups, round=0, rollout_step=8, policy_version=9, run_id="r")
    assert set(pq.read_table(path)["policy_version"].to_pylist()) == {9}
