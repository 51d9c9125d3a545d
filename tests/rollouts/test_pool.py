"""The pool on disk: what a shard holds, and that it appears whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import count_rollouts
from rloop_lightning.types import Group, Problem, Rollout


def make_rollout(problem_id="a", ids=(5, 6, 7), success=True, text="x", **changes):
    values = {
        "problem_id": problem_id,
        "prompt_ids": np.array([1, 2]),
        "completion_ids": np.array(ids, dtype=np.int64),
        "sampling_logprobs": np.full(len(ids), -0.5, dtype=np.float32),
        "text": text,
        "finish_reason": "stop",
        "reward": 1.0 if success else 0.0,
        "success": success,
    }
    return Rollout(**(values | changes))


def make_group(*rollouts):
    return Group(Problem(rollouts[0].problem_id, "1+1=", "2"), rollouts)


def write(pool, name="step-000001", *groups, step=0):
    return pool.write(name, groups or [make_group(make_rollout())], round=0, rollout_step=step, run_id="run")


def test_a_shard_holds_every_column_of_every_rollout(tmp_path):
    groups = [
        make_group(
            make_rollout("a", (5, 6, 7), False, "bad", reward=-0.25, finish_reason="length", check_fault="timeout")
        ),
        make_group(make_rollout("b", (8, 9), True, "good", reward=0.75)),
    ]
    path = RolloutPool(tmp_path / "pool").write("step-000012", groups, round=2, rollout_step=11, run_id="r1")
    assert path == tmp_path / "pool" / "step-000012.parquet"
    rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: row["problem_id"])
    shared = {"round": 2, "rollout_step": 11, "policy_version": 11, "run_id": "r1"}
    assert rows == [
        {
            "problem_id": "a", "completion_ids": [5, 6, 7], "text": "bad", "reward": -0.25, "success": False,
            "check_fault": "timeout", "finish_reason": "length", "length": 3, "sampling_logprob_sum": -1.5,
            "sampling_logprobs": [-0.5, -0.5, -0.5], **shared,
        },
        {
            "problem_id": "b", "completion_ids": [8, 9], "text": "good", "reward": 0.75, "success": True,
            "check_fault": "", "finish_reason": "stop", "length": 2, "sampling_logprob_sum": -1.0,
            "sampling_logprobs": [-0.5, -0.5], **shared,
        },
    ]  # fmt: skip


def test_successes_stand_in_row_groups_of_their_own(tmp_path):
    group = make_group(*[make_rollout(success=i % 3 == 0) for i in range(9)])
    path = write(RolloutPool(tmp_path), "step-000001", group)
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(i, ["success"])["success"].to_pylist() for i in range(file.num_row_groups)]
    assert groups == [[True] * 3, [False] * 6]


def test_the_successes_of_groups_with_few_stand_apart_from_the_others(tmp_path):
    few = make_group(*[make_rollout("few", success=i == 1) for i in range(4)])  # a quarter: still few
    many = make_group(*[make_rollout("many", success=i > 1) for i in range(4)])
    file = pq.ParquetFile(write(RolloutPool(tmp_path), "step-000001", many, few))
    rows = [file.read_row_group(i, ["problem_id", "success"]).to_pylist() for i in range(file.num_row_groups)]
    assert [{(row["problem_id"], row["success"]) for row in group} for group in rows] == [
        {("few", True)},
        {("many", True)},
        {("few", False), ("many", False)},
    ]
    assert [len(group) for group in rows] == [1, 2, 5]


def test_a_numpy_bool_is_a_success_too(tmp_path):
    group = make_group(make_rollout(success=np.bool_(True)), make_rollout(success=np.False_))
    path = write(RolloutPool(tmp_path), "step-000001", group)
    assert pq.read_table(path)["success"].to_pylist() == [True, False]


def test_a_lone_surrogate_in_a_text_does_not_stop_the_write(tmp_path):
    path = write(RolloutPool(tmp_path), "step-000001", make_group(make_rollout(text="a\ud800b\x00é")))
    assert pq.read_table(path)["text"].to_pylist() == ["a?b\x00é"]


def test_the_same_name_again_replaces_the_shard(tmp_path):
    pool = RolloutPool(tmp_path)
    write(pool, "step-000001", make_group(make_rollout("old")))
    write(pool, "step-000001", make_group(make_rollout("new")))
    assert [pq.read_table(path)["problem_id"].to_pylist() for path in pool.shards()] == [["new"]]


def test_a_write_that_fails_leaves_the_old_shard_and_no_new_one(tmp_path, monkeypatch):
    pool = RolloutPool(tmp_path)
    write(pool, "step-000001", make_group(make_rollout("old")))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(pool, "step-000001", make_group(make_rollout("new")))
    with pytest.raises(OSError, match="disk full"):
        write(pool, "step-000002", make_group(make_rollout("new")))
    assert [pq.read_table(path)["problem_id"].to_pylist() for path in pool.shards()] == [["old"]]


def test_what_a_killed_write_left_is_no_shard(tmp_path, monkeypatch):
    """A kill cleans nothing up, so the temporary file stays; here the rename fails and the clean-up is switched off."""
    pool = RolloutPool(tmp_path)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(pool)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    assert pool.shards() == []
    pool.drop_after(0)
    write(pool)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_SHA256SUMS", "step-000001.parquet"]


def test_drop_after_goes_by_the_rollout_step_whatever_the_name(tmp_path):
    pool = RolloutPool(tmp_path)
    for step in range(4):
        write(pool, f"step-{step + 1:06d}", step=step)
    write(pool, "extra-000002", step=1)
    write(pool, "extra-000004", step=3)
    pool.drop_after(2)
    assert [path.stem for path in pool.shards()] == ["extra-000002", "step-000001", "step-000002"]


def test_a_pool_without_a_folder_has_no_shards(tmp_path):
    pool = RolloutPool(tmp_path / "none")
    assert pool.shards() == []
    pool.drop_after(0)


def test_an_empty_step_is_a_shard_without_rows(tmp_path):
    path = RolloutPool(tmp_path).write("step-000004", [], round=0, rollout_step=3, run_id="r")
    assert pq.read_table(path).num_rows == 0


def test_a_rollout_that_was_not_checked_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'a' has no reward"):
        write(RolloutPool(tmp_path), "step-000001", make_group(make_rollout(reward=float("nan"))))


def test_a_rollout_needs_a_logprob_for_each_token(tmp_path):
    with pytest.raises(ValueError, match="3 tokens and 2 sampling logprobs"):
        write(RolloutPool(tmp_path), "step-000001", make_group(make_rollout(sampling_logprobs=np.zeros(2, np.float32))))


def test_parquet_files_of_other_names_are_neither_read_nor_damaged_nor_removed(tmp_path):
    pool = RolloutPool(tmp_path)
    shards = [write(pool, name, step=int(name[-1]) - 1) for name in ("step-000001", "step-000002", "unused-000003")]
    theirs = [
        tmp_path / name for name in ("mine.parquet", "step-1.parquet", "old-step-000001.parquet", "extra.parquet")
    ]
    for path in theirs:
        path.write_bytes(b"not parquet")
    assert pool.shards() == shards
    assert pool.damaged() == {}
    assert count_rollouts(pool).to_pylist() == [{"problem_id": "a", "rollouts": 3, "successes": 3}]
    write(pool, "step-000001")
    pool.drop_after(1)
    assert pool.shards() == shards[:1]
    assert all(path.read_bytes() == b"not parquet" for path in theirs)


@pytest.mark.parametrize("name", ["mine", "step-1", "step-000001-update-2", "../step-000001"])
def test_a_shard_under_a_name_that_no_reader_would_find_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="expected a shard name such as step-000012"):
        write(RolloutPool(tmp_path / "pool"), name)
    assert list(tmp_path.rglob("*")) == []
