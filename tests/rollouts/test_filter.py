"""The filter against a slow one in plain Python, and what holds whatever is in the pool."""

import hashlib
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rloop_lightning.rollouts import expert_set, pool_scan
from rloop_lightning.rollouts.expert_set import read_expert_set
from rloop_lightning.rollouts.filter import ExpertStats, FilterConfig, build_expert_set
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import count_rollouts
from rloop_lightning.types import Group, Problem, Rollout


def make_rollout(problem_id, ids, success, truncated=False, *, logprob=-0.5):
    return Rollout(
        problem_id=problem_id,
        prompt_ids=np.array([1]),
        completion_ids=np.array(ids, dtype=np.int64),
        sampling_logprobs=np.full(len(ids), logprob, dtype=np.float32),
        text=str(ids),
        finish_reason="length" if truncated else "stop",
        reward=float(success),
        success=success,
    )


def make_pool(folder, steps, names=None):
    """A pool with one shard for each list of (problem id, token ids, success[, truncated])."""
    pool = RolloutPool(folder)
    for step, rows in enumerate(steps):
        groups = [Group(Problem(row[0], "", ""), (make_rollout(*row, logprob=-step - 1),)) for row in rows]
        name = f"step-{step:06d}" if names is None else names[step]
        pool.write(name, groups, round=0, rollout_step=step, run_id="r")
    return pool


def kept(path):
    return [(rollout.problem_id, tuple(rollout.completion_ids.tolist())) for rollout in read_expert_set(path)]


def successes_of_hard_problems(rows, earlier, config):
    """Independent of the code under test: every problem's (tokens, truncated) successes, if its rate passes."""
    passed = {}
    for problem_id in {row[0] for row in rows}:
        rated = [row for row in (rows if config.rate_over == "round" else rows + earlier) if row[0] == problem_id]
        rate = sum(row[2] for row in rated) / len(rated)
        good = [(tuple(ids), truncated) for name, ids, success, truncated in rows if name == problem_id and success]
        if good and (not config.enabled or rate < config.max_success_rate):
            passed[problem_id] = good
    return passed


rows_strategy = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["p1", "p2", "é", ""]),
            st.lists(st.integers(0, 2), min_size=1, max_size=2),
            st.booleans(),
            st.booleans(),
        ),
        max_size=12,
    ),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(
    steps=rows_strategy,
    earlier=rows_strategy,
    config=st.builds(
        FilterConfig,
        enabled=st.booleans(),
        max_success_rate=st.sampled_from([0.25, 0.5, 1.0]),
        rate_over=st.sampled_from(["round", "run"]),
        finished_only=st.booleans(),
        max_per_problem=st.integers(0, 3),
        deduplicate=st.booleans(),
    ),
)
def test_the_expert_set_is_what_the_slow_filter_says(steps, earlier, config):
    rows, before = ([row for step in some for row in step] for some in (steps, earlier))
    passed = successes_of_hard_problems(rows, before, config)
    with tempfile.TemporaryDirectory() as folder:
        stats = build_expert_set(
            make_pool(Path(folder, "pool"), steps),
            out := Path(folder, "expert.parquet"),
            config,
            3,
            earlier=[make_pool(Path(folder, "earlier"), earlier)],
        )
        got = defaultdict(list)
        for rollout in read_expert_set(out):
            got[rollout.problem_id].append((tuple(rollout.completion_ids.tolist()), rollout.finish_reason == "length"))
        copies = pq.read_table(out)["copies"].to_pylist()
    total = sum(map(len, passed.values()))
    truncated = sum(cut for good in passed.values() for _, cut in good) if config.finished_only else 0
    if config.finished_only:
        passed = {problem_id: [entry for entry in good if not entry[1]] for problem_id, good in passed.items()}
    assert list(got) == sorted(problem_id for problem_id, good in passed.items() if good)
    for problem_id, good in passed.items():
        tokens = [ids for ids, _ in good]
        candidates = Counter(dict.fromkeys(tokens, 1) if config.deduplicate else tokens)
        assert Counter(ids for ids, _ in got[problem_id]) <= candidates
        assert set(got[problem_id]) <= set(good)
        cap = config.max_per_problem or len(good)
        assert len(got[problem_id]) == min(cap, candidates.total())
    if config.deduplicate:
        expected = [[ids for ids, _ in passed[name]].count(ids) for name in got for ids, _ in got[name]]
        assert copies == expected
    count = sum(map(len, got.values()))
    visits = Counter(row[0] for row in (rows if config.rate_over == "round" else rows + before))
    seen = {row[0] for row in rows}
    assert stats == ExpertStats(
        problems_seen=len(seen),
        rollouts_seen=len(rows),
        successes=sum(row[2] for row in rows),
        within_reach=sum(1 / visits[name] < config.max_success_rate for name in seen),
        hard_problems=len(passed),
        hard_successes=total,
        kept=count,
        truncated=truncated,
        duplicates=sum(copies) - count,
        over_cap=total - truncated - sum(copies),
        kept_problems=sum(map(bool, got.values())),
        kept_hard=count,
    )


def slow_control(rows, size, config, digest):
    """Independent of the code under test: successes in the order of their digests, capped a problem, until `size`."""
    taken, seen = Counter(), []
    good = {(name, tuple(ids)) for name, ids, success, cut in rows if success and not (cut and config.finished_only)}
    for name, ids in sorted(good, key=digest):
        if len(seen) < size and (not config.max_per_problem or taken[name] < config.max_per_problem):
            taken[name] += 1
            seen.append((name, ids))
    return sorted(seen)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(rows_strategy.map(lambda steps: [row for step in steps for row in step]), max_size=6),
    config=st.builds(
        FilterConfig,
        max_success_rate=st.sampled_from([0.5, 1.0]),
        finished_only=st.booleans(),
        max_per_problem=st.integers(0, 3),
    ),
)
def test_the_random_control_is_as_large_and_drawn_from_all_successes(steps, config):
    rows = [row for step in steps for row in step]
    with tempfile.TemporaryDirectory() as folder:
        pool, hard, random, again = make_pool(Path(folder, "pool"), steps), *(Path(folder, name) for name in "hra")
        expected = build_expert_set(pool, hard, config, 3)
        control = replace(config, control="random")
        stats = build_expert_set(pool, random, control, 3)
        build_expert_set(pool, again, control, 3)
        assert random.read_bytes() == again.read_bytes()
        got, hard_ids = kept(random), {name for name, _ in kept(hard)}
    assert replace(stats, kept_problems=expected.kept_problems, kept_hard=expected.kept_hard) == expected
    assert len(got) == expected.kept == len(set(got))
    assert stats.kept_problems == len({name for name, _ in got})
    assert stats.kept_hard >= sum(name in hard_ids for name, _ in got)
    key = b"control 3"

    def digest(row):
        content = hashlib.blake2b(np.array(row[1], np.int32).tobytes() + row[0].encode(), key=key, digest_size=16)
        return content.digest()

    assert sorted(got) == slow_control(rows, expected.kept, config, digest)


def test_the_random_control_takes_easy_problems_too_another_set_for_each_seed(tmp_path):
    """Four hard problems of one success in 20 rollouts, and 40 easy ones: the control is mostly of the easy ones."""
    hard = [(f"hard{n}", [token], token == 0) for n in range(4) for token in range(20)]
    easy = [(f"easy{n}", [token], True) for n in range(40) for token in range(4)]
    pool = make_pool(tmp_path / "pool", [hard, easy])
    control = FilterConfig(control="random")
    sets = []
    for seed in range(5):
        stats = build_expert_set(pool, tmp_path / "e", control, seed)
        sets.append(tuple(kept(tmp_path / "e")))
        assert (stats.kept, stats.hard_problems, stats.within_reach) == (4, 4, 4)
        assert stats.metrics()["expert/rollouts_of_hard_problems"] == sum("hard" in name for name, _ in sets[-1])
    assert len(set(sets)) == 5
    assert sum("easy" in name for rows in sets for name, _ in rows) > 15  # of 20; a success is easy 40 times in 41


def test_the_random_control_has_room_for_the_cap(tmp_path):
    """Six successes of three hard problems; an easy one with a thousand gives at most two of them."""
    hard = [(f"hard{n}", [token], token < 2) for n in range(3) for token in range(21)]
    pool = make_pool(tmp_path / "pool", [hard, [("easy", [token], True) for token in range(1000)]])
    for seed in range(5):
        stats = build_expert_set(pool, tmp_path / "e", FilterConfig(control="random", max_per_problem=2), seed)
        counts = Counter(name for name, _ in kept(tmp_path / "e"))
        assert (stats.kept, counts["easy"]) == (6, 2)


def test_a_control_of_no_filter_is_refused():
    with pytest.raises(ValueError, match=r"--filter.control random takes as many rollouts as the hard-problem filter"):
        FilterConfig(enabled=False, control="random")


@settings(max_examples=15, deadline=None)
@given(steps=rows_strategy, order=st.randoms(use_true_random=False), deduplicate=st.booleans())
def test_neither_shard_order_nor_count_changes_a_byte(steps, order, deduplicate):
    config = FilterConfig(max_success_rate=1.0, max_per_problem=2, deduplicate=deduplicate)
    names = [f"step-{number:06d}" for number in range(len(steps))]
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


def test_truncated_successes_are_left_out_unless_asked_for(tmp_path):
    pool = make_pool(tmp_path / "pool", [[("p", [1], True, True), ("p", [2], True), *[("p", [3], False)] * 30]])
    stats = build_expert_set(pool, tmp_path / "finished", FilterConfig(), 0)
    assert kept(tmp_path / "finished") == [("p", (2,))]
    assert (stats.truncated, stats.hard_successes) == (1, 2)
    build_expert_set(pool, tmp_path / "all", FilterConfig(finished_only=False), 0)
    reasons = {
        tuple(row["completion_ids"]): row["finish_reason"] for row in pq.read_table(tmp_path / "all").to_pylist()
    }
    assert reasons == {(1,): "length", (2,): "stop"}


def test_rates_over_the_run_bring_rarely_visited_problems_within_reach(tmp_path):
    """One success in 8 rollouts a round is 12.5 %; in 16 rollouts of two rounds it is 6.25 %."""
    first = make_pool(tmp_path / "first", [[("p", [1], False)] * 8 + [("q", [1], True)] * 8])
    second = make_pool(tmp_path / "second", [[("p", [2], True)] + [("p", [1], False)] * 7 + [("q", [2], False)] * 8])
    stats = build_expert_set(second, tmp_path / "round", FilterConfig(), 0, earlier=[first])
    assert (stats.kept, stats.within_reach) == (0, 0)
    stats = build_expert_set(second, tmp_path / "run", FilterConfig(rate_over="run"), 0, earlier=[first])
    assert kept(tmp_path / "run") == [("p", (2,))]
    assert (stats.kept, stats.within_reach, stats.problems_seen, stats.rollouts_seen) == (1, 2, 2, 16)


def test_without_the_hard_problem_filter_easy_problems_are_taken_too(tmp_path):
    pool = make_pool(tmp_path / "pool", [[("easy", [1], True), ("never", [1], False)]])
    build_expert_set(pool, tmp_path / "e", FilterConfig(enabled=False), 0)
    assert kept(tmp_path / "e") == [("easy", (1,))]


def test_of_copies_the_earliest_is_kept_with_its_own_logprobs(tmp_path):
    steps = [[("p", [1, 2], True)], [("p", [1, 2], True)]]
    pool = make_pool(tmp_path / "pool", steps, names=["step-000002", "extra-000001"])
    build_expert_set(pool, tmp_path / "e", FilterConfig(enabled=False), 0)
    (row,) = pq.read_table(tmp_path / "e").to_pylist()
    assert row == {
        "problem_id": "p", "completion_ids": [1, 2], "sampling_logprobs": [-1.0, -1.0], "reward": 1.0,
        "finish_reason": "stop", "rollout_step": 0, "text": "[1, 2]", "copies": 2,
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
    assert stats == ExpertStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert read_expert_set(tmp_path / "round" / "e.parquet") == []
    names = pq.read_schema(tmp_path / "round" / "e.parquet").names
    assert names[:4] == ["problem_id", "completion_ids", "sampling_logprobs", "reward"]


def test_counting_in_pieces_gives_the_same_counts(tmp_path):
    pool = make_pool(tmp_path / "pool", [[("p", [1], True), ("q", [1], False)], [("p", [1], False)], []])
    for rows_at_once in (1, 2, 1000):
        counts = count_rollouts(pool, rows_at_once=rows_at_once).sort_by("problem_id")
        assert counts.to_pylist() == [
            {"problem_id": "p", "rollouts": 2, "successes": 1},
            {"problem_id": "q", "rollouts": 1, "successes": 0},
        ]


def test_writing_in_pieces_gives_the_same_rows(tmp_path, monkeypatch):
    pool = make_pool(tmp_path / "pool", [[(f"p{number}", [number], True) for number in range(5)]])
    build_expert_set(pool, tmp_path / "whole", FilterConfig(enabled=False), 0)
    monkeypatch.setattr(expert_set, "ROW_GROUP_ROWS", 2)
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


def test_shards_without_the_faults_of_checks_are_filtered_together_with_later_ones(tmp_path):
    """A version that did not record them wrote the first shards."""
    rows = [[("a", [1], True), *[("a", [2], False)] * 11], [("b", [3], True), *[("b", [4], False)] * 11]]
    pool = make_pool(tmp_path / "pool", rows)
    build_expert_set(pool, tmp_path / "expected", FilterConfig(), seed=0)
    first = pool.shards()[0]
    table = pq.read_table(first)
    pq.write_table(table.drop_columns("check_fault").replace_schema_metadata(table.schema.metadata), first)
    build_expert_set(pool, tmp_path / "expert", FilterConfig(), seed=0)
    assert kept(tmp_path / "expert") == kept(tmp_path / "expected")
    assert len(kept(tmp_path / "expert")) == 2


def test_copies_are_kept_where_asked_for_even_when_nothing_tells_them_apart(tmp_path):
    pool = make_pool(tmp_path / "pool", [[("p", [1], True)] * 3])
    stats = build_expert_set(pool, tmp_path / "e", FilterConfig(enabled=False, deduplicate=False), 0)
    assert kept(tmp_path / "e") == [("p", (1,))] * 3
    assert (stats.kept, stats.duplicates) == (3, 0)


def test_metrics_carry_the_counts():
    metrics = ExpertStats(*range(1, 13)).metrics()
    assert metrics["expert/rollouts"] == 7
    assert metrics["pool/rollouts"] == 2
    assert sorted(metrics.values()) == [*range(1, 13)]


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ValueError, match=r"--filter\.max_success_rate") as error:
        FilterConfig(max_success_rate=float("nan"), max_per_problem=-1)
    assert "--filter.max_per_problem: expected an integer >= 0, got -1" in str(error.value)
    assert FilterConfig(max_success_rate=1.0).max_success_rate == 1.0


def test_counting_a_pool_of_ever_new_problems_sums_each_row_a_few_times(tmp_path, monkeypatch):
    """Not rollouts times problems."""
    steps = [[(f"p{step}-{row}", [1], True) for row in range(4)] for step in range(64)]
    pool = make_pool(tmp_path / "pool", steps)
    summed = []
    real = pool_scan.sum_counts

    def spy(tables):
        summed.append(sum(map(len, tables)))
        return real(tables)

    monkeypatch.setattr(pool_scan, "sum_counts", spy)
    assert len(count_rollouts(pool, rows_at_once=4)) == 256
    assert sum(summed) <= 3 * 256
