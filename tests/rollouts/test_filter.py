"""The filter against a slow one in plain Python, and what holds whatever is in the pool."""

import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rloop_lightning.rollouts.filter
from rloop_lightning.rollouts.filter import ExpertStats, FilterConfig, build_expert_set, read_expert_set
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.types import Group, Problem, Rollout


def make_rollout(problem_id, ids, success, logprob=-0.5):
    return Rollout(
        problem_id=problem_id,
        prompt_ids=np.array([1]),
        completion_ids=np.array(ids, dtype=np.int64),
        sampling_logprobs=np.full(len(ids), logprob, dtype=np.float32),
        text=str(ids),
        finish_reason="stop",
        reward=float(success),
        success=success,
    )


def make_pool(folder, steps, names=None):
    """A pool with one shard for each list of (problem id, token ids, success)."""
    pool = RolloutPool(folder)
    for step, rows in enumerate(steps):
        groups = [Group(Problem(row[0], "", ""), (make_rollout(*row, logprob=-step - 1),)) for row in rows]
        name = f"step-{step:06d}" if names is None else names[step]
        pool.write(name, groups, round=0, rollout_step=step, run_id="r")
    return pool


def kept(path):
    return [(rollout.problem_id, tuple(rollout.completion_ids.tolist())) for rollout in read_expert_set(path)]


def successes_of_hard_problems(rows, config):
    """Independent of the code under test: every problem's successes, if its success rate passes."""
    by_problem = defaultdict(list)
    for problem_id, ids, success in rows:
        by_problem[problem_id].append((tuple(ids), success))
    passed = {}
    for problem_id, rollouts in by_problem.items():
        good = [ids for ids, success in rollouts if success]
        if good and (not config.enabled or len(good) / len(rollouts) < config.max_success_rate):
            passed[problem_id] = good
    return passed


rows_strategy = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["p1", "p2", "é", ""]),
            st.lists(st.integers(0, 2), min_size=1, max_size=2),
            st.booleans(),
        ),
        max_size=12,
    ),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(
    steps=rows_strategy,
    config=st.builds(
        FilterConfig,
        enabled=st.booleans(),
        max_success_rate=st.sampled_from([0.25, 0.5, 1.0]),
        max_per_problem=st.integers(0, 3),
        deduplicate=st.booleans(),
    ),
)
def test_the_expert_set_is_what_the_slow_filter_says(steps, config):
    rows = [row for step in steps for row in step]
    passed = successes_of_hard_problems(rows, config)
    with tempfile.TemporaryDirectory() as folder:
        stats = build_expert_set(
            make_pool(Path(folder, "pool"), steps), out := Path(folder, "expert.parquet"), config, 3
        )
        got = defaultdict(list)
        for problem_id, ids in kept(out):
            got[problem_id].append(ids)
        copies = pq.read_table(out)["copies"].to_pylist()
    assert list(got) == sorted(passed)
    for problem_id, good in passed.items():
        candidates = Counter(dict.fromkeys(good, 1) if config.deduplicate else good)
        assert Counter(got[problem_id]) <= candidates
        cap = config.max_per_problem or len(good)
        assert len(got[problem_id]) == min(cap, candidates.total())
    if config.deduplicate:
        expected = [passed[problem_id].count(ids) for problem_id in got for ids in got[problem_id]]
        assert copies == expected
    total = sum(map(len, passed.values()))
    count = sum(map(len, got.values()))
    assert stats == ExpertStats(
        problems_seen=len({row[0] for row in rows}),
        rollouts_seen=len(rows),
        successes=sum(row[2] for row in rows),
        hard_problems=len(passed),
        hard_successes=total,
        kept=count,
        duplicates=sum(copies) - count,
        over_cap=total - sum(copies),
    )


@settings(max_examples=15, deadline=None)
@given(steps=rows_strategy, order=st.randoms(use_true_random=False), deduplicate=st.booleans())
def test_neither_shard_order_nor_count_changes_a_byte(steps, order, deduplicate):
    config = FilterConfig(max_success_rate=1.0, max_per_problem=2, deduplicate=deduplicate)
    names = [f"shard-{number}" for number in range(len(steps))]
    order.shuffle(names)
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one.parquet"), Path(folder, "two.parquet")
        build_expert_set(make_pool(Path(folder, "a"), steps), one, config, 3)
        build_expert_set(make_pool(Path(folder, "b"), steps, names), two, config, 3)
        assert one.read_bytes() == two.read_bytes()


def test_a_rate_of_exactly_the_threshold_is_not_hard(tmp_path):
    steps = [[("ten", [1], True), *[("ten", [2], False)] * 9, ("eleven", [1], True), *[("eleven", [2], False)] * 10]]
    stats = build_expert_set(make_pool(tmp_path / "pool", steps), tmp_path / "e", FilterConfig(), 0)
    assert kept(tmp_path / "e") == [("eleven", (1,))]
    assert stats.hard_problems == 1


def test_without_the_hard_problem_filter_easy_problems_are_taken_too(tmp_path):
    pool = make_pool(tmp_path / "pool", [[("easy", [1], True), ("never", [1], False)]])
    build_expert_set(pool, tmp_path / "e", FilterConfig(enabled=False), 0)
    assert kept(tmp_path / "e") == [("easy", (1,))]


def test_of_copies_the_earliest_is_kept_with_its_own_logprobs(tmp_path):
    pool = make_pool(tmp_path / "pool", [[("p", [1, 2], True)], [("p", [1, 2], True)]], names=["z", "a"])
    build_expert_set(pool, tmp_path / "e", FilterConfig(enabled=False), 0)
    (row,) = pq.read_table(tmp_path / "e").to_pylist()
    assert row == {
        "problem_id": "p", "completion_ids": [1, 2], "sampling_logprobs": [-1.0, -1.0], "reward": 1.0,
        "rollout_step": 0, "text": "[1, 2]", "copies": 2,
    }  # fmt: skip


def test_the_draw_depends_on_the_seed_and_is_spread_over_the_candidates(tmp_path):
    pool = make_pool(tmp_path / "pool", [[("p", [token], True) for token in range(50)]])
    config = FilterConfig(enabled=False, max_per_problem=5)
    drawn = Counter()
    for seed in range(40):
        build_expert_set(pool, tmp_path / "e", config, seed)
        drawn.update(ids[0] for _, ids in kept(tmp_path / "e"))
    assert drawn.total() == 200
    assert len(drawn) > 40  # of 50, each drawn 4 times on average: 49 are expected
    assert max(drawn.values()) < 15


def test_an_empty_pool_gives_an_empty_file_that_can_be_read(tmp_path):
    stats = build_expert_set(RolloutPool(tmp_path / "none"), tmp_path / "round" / "e.parquet", FilterConfig(), 0)
    assert stats == ExpertStats(0, 0, 0, 0, 0, 0, 0, 0)
    assert read_expert_set(tmp_path / "round" / "e.parquet") == []
    names = pq.read_schema(tmp_path / "round" / "e.parquet").names
    assert names[:4] == ["problem_id", "completion_ids", "sampling_logprobs", "reward"]


def test_counting_in_pieces_gives_the_same_counts(tmp_path, monkeypatch):
    pool = make_pool(tmp_path / "pool", [[("p", [1], True), ("q", [1], False)], [("p", [1], False)], []])
    whole = build_expert_set(pool, tmp_path / "e", FilterConfig(max_success_rate=1.0), 0)
    monkeypatch.setattr(rloop_lightning.rollouts.filter, "_COUNT_EVERY_ROWS", 1)
    assert build_expert_set(pool, tmp_path / "e", FilterConfig(max_success_rate=1.0), 0) == whole
    assert whole.hard_problems == 1


def test_writing_in_pieces_gives_the_same_rows(tmp_path, monkeypatch):
    pool = make_pool(tmp_path / "pool", [[(f"p{number}", [number], True) for number in range(5)]])
    build_expert_set(pool, tmp_path / "whole", FilterConfig(enabled=False), 0)
    monkeypatch.setattr(rloop_lightning.rollouts.filter, "ROW_GROUP_ROWS", 2)
    build_expert_set(pool, tmp_path / "pieces", FilterConfig(enabled=False), 0)
    assert pq.ParquetFile(tmp_path / "pieces").num_row_groups == 3
    assert pq.read_table(tmp_path / "pieces").equals(pq.read_table(tmp_path / "whole"))
    assert kept(tmp_path / "pieces") == [(f"p{number}", (number,)) for number in range(5)]


def test_tokens_of_a_row_group_without_an_expert_row_are_not_decoded(tmp_path, monkeypatch):
    steps = [[("easy", [1], True), ("never", [2], False)], [("hard", [1], True), ("hard", [2], False)]]
    pool = make_pool(tmp_path / "pool", steps)
    read = []
    real = pq.ParquetFile.read_row_group

    def spy(self, group, columns, **kwargs):
        if "completion_ids" in columns:
            read.append(group)
        return real(self, group, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    build_expert_set(pool, tmp_path / "e", FilterConfig(max_success_rate=0.9), 0)
    assert kept(tmp_path / "e") == [("hard", (1,))]
    assert read == [0]  # the successes of the second shard


def test_a_shard_laid_out_otherwise_gives_the_same(tmp_path):
    """Row groups by success and their statistics are there for speed alone."""
    pool = make_pool(tmp_path / "pool", [[("p", [1], True), ("p", [2], False), ("q", [3], False), ("p", [4], True)]])
    build_expert_set(pool, tmp_path / "one", FilterConfig(max_success_rate=1.0), 0)
    (shard,) = pool.shards()
    pq.write_table(pq.read_table(shard), shard, write_statistics=False)
    build_expert_set(pool, tmp_path / "two", FilterConfig(max_success_rate=1.0), 0)
    assert sorted(kept(tmp_path / "one")) == [("p", (1,)), ("p", (4,))]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_copies_are_kept_where_asked_for_even_when_nothing_tells_them_apart(tmp_path):
    pool = make_pool(tmp_path / "pool", [[("p", [1], True)] * 3])
    stats = build_expert_set(pool, tmp_path / "e", FilterConfig(enabled=False, deduplicate=False), 0)
    assert kept(tmp_path / "e") == [("p", (1,))] * 3
    assert (stats.kept, stats.duplicates) == (3, 0)


def test_metrics_carry_the_counts():
    metrics = ExpertStats(1, 2, 3, 4, 5, 6, 7, 8).metrics()
    assert metrics["expert/rollouts"] == 6
    assert metrics["pool/rollouts"] == 2
    assert sorted(metrics.values()) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ValueError, match=r"--filter\.max_success_rate") as error:
        FilterConfig(max_success_rate=float("nan"), max_per_problem=-1)
    assert "--filter.max_per_problem: expected an integer >= 0, got -1" in str(error.value)
    assert FilterConfig(max_success_rate=1.0).max_success_rate == 1.0
