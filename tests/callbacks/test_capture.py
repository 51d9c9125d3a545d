"""Rollout capture: every rollout that was generated is in the pool before the update that it causes."""

from collections import Counter
from itertools import chain

import pyarrow.parquet as pq
import pytest
from builders import StepMetrics, fit, make_policy, make_problems, make_sampler, make_stream

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.callbacks.capture import CaptureConfig, RolloutCapture
from rloop_lightning.rollouts.filter import FilterConfig
from rloop_lightning.rollouts.pool import RolloutPool


def write(problem, g, call):
    """Odd problems are right half of the time, even ones never: dynamic sampling drops them."""
    return ("1" if problem % 2 and g == 0 else "0") + "x" * (problem % 3)


def explore(folder, config, steps=5, algorithm=None, seed=0):
    problems, pool, sampler = make_problems(10), RolloutPool(folder), make_sampler(write)
    algorithm = algorithm or DAPO(updates_per_step=1)
    stream = make_stream(
        sampler, algorithm, problems, problems_per_step=3, rollouts_per_problem=2, steps=steps, seed=seed
    )
    capture = RolloutCapture(pool, config, sampler, problems, FilterConfig(), round=2, run_id="run-1", seed=seed)
    metrics = StepMetrics()
    fit(algorithm, make_policy(), stream, [capture, metrics])
    return pool, sampler.engine.calls, metrics.steps


def rows(pool):
    return {path.stem: pq.read_table(path).to_pylist() for path in pool.shards()}


def counts(ids, times):
    return Counter({problem: count * times for problem, count in Counter(ids).items()})


def test_every_generated_rollout_is_in_the_shard_of_its_step(tmp_path):
    pool, calls, metrics = explore(tmp_path, CaptureConfig())
    shards = rows(pool)
    assert list(shards) == [f"step-{step:06d}" for step in range(1, 6)]
    everything = Counter(row["problem_id"] for shard in shards.values() for row in shard)
    assert everything == counts(chain.from_iterable(ids for ids, _, _ in calls), 2)
    assert any(int(problem[1:]) % 2 == 0 for problem in everything)  # groups that were dropped are there, too
    for index, (shard, step) in enumerate(zip(shards.values(), metrics, strict=True)):
        assert len(shard) == step["rollout/generated_rollouts"]
        assert {(row["round"], row["rollout_step"], row["run_id"]) for row in shard} == {(2, index, "run-1")}
        assert sum(row["length"] for row in shard) == step["rollout/generated_tokens"]
        for row in shard:
            assert row["reward"] == float(row["text"][0])
            assert row["success"] == (row["reward"] == 1.0)


def test_a_shard_is_there_before_its_update(tmp_path):
    seen = []

    class Watch(DAPO):
        def training_step(self, step, batch_idx):
            seen.append(len(list(tmp_path.glob("*.parquet"))))
            super().training_step(step, batch_idx)

    explore(tmp_path, CaptureConfig(), steps=3, algorithm=Watch(updates_per_step=1))
    assert seen == [1, 2, 3]


def test_extra_captures_at_given_steps(tmp_path):
    pool, calls, metrics = explore(tmp_path, CaptureConfig(every_n_steps=2, extra_rollouts=3, extra_problems=4))
    shards = {name: shard for name, shard in rows(pool).items() if name.startswith("extra-")}
    assert list(shards) == ["extra-000002", "extra-000004"]
    extra = [ids for ids, n, _ in calls if n == 3]
    assert len(extra) == 2
    assert extra[0] != extra[1]
    for (name, shard), ids in zip(shards.items(), extra, strict=True):
        assert len(set(ids)) == 4
        assert Counter(row["problem_id"] for row in shard) == counts(ids, 3)
        assert {row["rollout_step"] for row in shard} == {int(name[-1]) - 1}
    assert [step.get("capture/extra_rollouts") for step in metrics] == [None, 12.0, None, 12.0, None]
    assert metrics[1]["time/capture_s"] > 0


def test_an_extra_capture_takes_all_problems_by_default(tmp_path):
    pool, *_ = explore(tmp_path, CaptureConfig(every_n_steps=3, extra_rollouts=1), steps=3)
    assert sorted(row["problem_id"] for row in rows(pool)["extra-000003"]) == sorted(f"p{i}" for i in range(10))


def test_extra_captures_leave_the_rollout_steps_as_they_are(tmp_path):
    plain, *_ = explore(tmp_path / "plain", CaptureConfig())
    extra, *_ = explore(tmp_path / "extra", CaptureConfig(every_n_steps=1))
    assert {name: shard for name, shard in rows(extra).items() if name.startswith("step-")} == rows(plain)


def test_extra_captures_are_seeded(tmp_path):
    config = CaptureConfig(every_n_steps=1, extra_rollouts=1, extra_problems=5)
    first, again, other = (
        rows(explore(tmp_path / f"{i}", config, 2, seed=seed)[0]) for i, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert first["extra-000001"] != other["extra-000001"]


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ValueError, match=r"--capture\.") as raised:
        CaptureConfig(every_n_steps=-1, extra_rollouts=0, extra_problems=-2)
    flags = [line.split(":")[0] for line in str(raised.value).splitlines()]
    assert flags == ["--capture.every_n_steps", "--capture.extra_rollouts", "--capture.extra_problems"]
