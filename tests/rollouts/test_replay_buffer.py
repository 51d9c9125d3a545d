"""The replay buffer on real shards: what it takes in, in which order, what it keeps, and what it gives."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import make_group, make_rollout

from rloop_lightning.errors import RunFault
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.replay_buffer import ReplayBuffer, shard_fault
from rloop_lightning.system.checksums import add_checksum

RNG = np.random.default_rng(0)


def shard(folder: Path, name: str, *rollouts, step: int = 0) -> Path:
    groups = [make_group(rollout) for rollout in rollouts]
    return RolloutPool(folder).write(name, groups, round=0, rollout_step=step, run_id="r")


def right(problem="a", completion=(6, 1), **kwargs):
    return make_rollout(problem, completion, reward=1.0, **kwargs)


def wrong(problem="a", completion=(7, 1), **kwargs):
    return make_rollout(problem, completion, reward=0.0, **kwargs)


def buffer_of(folders, *, successes_only=False, per_problem=16):
    buffer = ReplayBuffer(successes_only=successes_only, per_problem=per_problem)
    buffer.read(folders)
    return buffer


def completions(buffer, problem="a", how="recent"):
    """Of all that is stored of a problem, oldest first."""
    found = buffer.select(problem, buffer.count(problem), how, RNG)
    return [tuple(rollout.completion_ids.tolist()) for rollout in found]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_stored_rollout_is_what_the_pool_holds(tmp_path):
    rollout = make_rollout(
        "a", (6, 7, 1), reward=0.75, success=True, finish_reason="length", sampling_logprobs=(-0.5, -0.25, -1.5)
    )
    shard(tmp_path, "step-000001", rollout)
    (stored,) = buffer_of([tmp_path]).select("a", 1, "recent", RNG)
    assert stored.completion_ids.tolist() == [6, 7, 1]
    assert stored.completion_ids.dtype == np.int64
    assert stored.sampling_logprobs.tolist() == [-0.5, -0.25, -1.5]
    assert stored.sampling_logprobs.dtype == np.float32
    assert (stored.reward, stored.success, stored.finish_reason) == (0.75, True, "length")
    assert stored.entropy == 0.75  # (0.5 + 0.25 + 1.5) / 3


def test_shards_are_read_by_folder_and_step_and_only_once(tmp_path):
    """Step 9 before step 10, extra captures with their step, the first folder first, whenever it was written."""
    first, second = tmp_path / "round-0", tmp_path / "round-1"
    shard(second, "step-000001", right(completion=(5, 1)))
    shard(first, "step-000010", right(completion=(4, 1)))
    shard(first, "step-000009", right(completion=(2, 1)))
    shard(first, "extra-000010", right(completion=(3, 1)))
    buffer = buffer_of([first, second])
    assert completions(buffer) == [(2, 1), (3, 1), (4, 1), (5, 1)]
    buffer.read([first, second])
    assert completions(buffer) == [(2, 1), (3, 1), (4, 1), (5, 1)]
    shard(first, "step-000011", right(completion=(6, 1)))
    buffer.read([first, second])
    assert completions(buffer)[-1] == (6, 1)
    assert (len(buffer), buffer.count("a"), buffer.count("b")) == (5, 5, 0)


def test_reading_step_by_step_gives_what_reading_all_at_once_gives(tmp_path):
    """As a resumed run does it."""
    slowly = ReplayBuffer(successes_only=False, per_problem=3)
    rng = np.random.default_rng(1)
    for step in range(6):
        rollouts = [make_rollout(f"p{rng.integers(2)}", (int(rng.integers(5)), 1), reward=1.0) for _ in range(4)]
        shard(tmp_path, f"step-{step + 1:06d}", *rollouts)
        slowly.read([tmp_path])
    at_once = buffer_of([tmp_path], per_problem=3)
    for problem in ("p0", "p1"):
        assert completions(slowly, problem) == completions(at_once, problem)
        assert len(completions(at_once, problem)) == 3


def test_a_folder_without_shards_is_empty(tmp_path):
    buffer = buffer_of([tmp_path / "nowhere"])
    assert (len(buffer), buffer.count("a"), buffer.best_success_rate) == (0, 0, 0.0)


def test_the_success_rate_is_that_of_the_best_step_read(tmp_path):
    shard(tmp_path, "step-000001", right(), wrong(), wrong(), wrong())
    buffer = buffer_of([tmp_path], successes_only=True)
    assert buffer.best_success_rate == 0.25
    shard(tmp_path, "step-000002", right(), right("b"), wrong(), wrong())
    shard(tmp_path, "step-000003", wrong())
    buffer.read([tmp_path])
    assert buffer.best_success_rate == 0.5


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_only_successes_are_stored_where_that_is_asked_for(tmp_path):
    shaped = make_rollout(completion=(8, 1), reward=5.0, success=False)
    shard(tmp_path, "step-000001", right(), wrong(), shaped)
    assert completions(buffer_of([tmp_path], successes_only=True)) == [(6, 1)]
    assert sorted(completions(buffer_of([tmp_path]))) == [(6, 1), (7, 1), (8, 1)]


def test_the_same_completion_again_is_one_and_the_newer_one(tmp_path):
    shard(tmp_path, "step-000001", right(completion=(6, 1), sampling_logprobs=(-1, -1)))
    shard(tmp_path, "step-000002", right(completion=(7, 1)), right("b", completion=(6, 1)))
    shard(tmp_path, "step-000003", right(completion=(6, 1), sampling_logprobs=(-2, -2)))
    buffer = buffer_of([tmp_path])
    assert completions(buffer) == [(7, 1), (6, 1)]
    assert buffer.select("a", 1, "recent", RNG)[0].sampling_logprobs.tolist() == [-2, -2]
    assert len(buffer) == 3
    assert completions(buffer, "b") == [(6, 1)]


def test_the_newest_so_many_of_a_problem_are_kept(tmp_path):
    for step in range(5):
        shard(tmp_path, f"step-{step + 1:06d}", right(completion=(2 + step, 1)), right("b", (9, 1)))
    buffer = buffer_of([tmp_path], per_problem=3)
    assert completions(buffer) == [(4, 1), (5, 1), (6, 1)]
    assert completions(buffer, "b") == [(9, 1)]
    assert len(buffer) == 4


# --- giving -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def four(tmp_path):
    """Entropies 2, 1, 4, 3 and rewards 0, 0.5, 1, 0.4, oldest first."""
    values = [((2, 1), -2.0, 0.0), ((3, 1), -1.0, 0.5), ((4, 1), -4.0, 1.0), ((5, 1), -3.0, 0.4)]
    for step, (completion, logprob, reward) in enumerate(values):
        rollout = make_rollout("a", completion, reward=reward, sampling_logprobs=[logprob] * 2)
        shard(tmp_path, f"step-{step + 1:06d}", rollout)
    return buffer_of([tmp_path])


def chosen(buffer, count, how, rng=RNG):
    return [tuple(rollout.completion_ids.tolist()) for rollout in buffer.select("a", count, how, rng)]


def test_recent_are_the_newest(four):
    assert chosen(four, 2, "recent") == [(4, 1), (5, 1)]


def test_low_entropy_are_those_of_the_largest_mean_logprob(four):
    assert chosen(four, 1, "low-entropy") == [(3, 1)]
    assert chosen(four, 3, "low-entropy") == [(3, 1), (2, 1), (5, 1)]


def test_max_variance_are_those_whose_rewards_differ_most(four):
    # Of three among 0, 0.4, 0.5, 1: {0, 0.4, 1} has variance 0.169, {0, 0.5, 1} 0.167, {0.4, 0.5, 1} 0.069.
    assert sorted(chosen(four, 2, "max-variance")) == [(2, 1), (4, 1)]
    assert sorted(chosen(four, 3, "max-variance")) == [(2, 1), (4, 1), (5, 1)]
    assert sorted(chosen(four, 4, "max-variance")) == [(2, 1), (3, 1), (4, 1), (5, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_has_a_larger_variance(seed, tmp_path):
    rewards = np.random.default_rng(seed).choice([-1.0, 0.0, 0.25, 1.0, 3.0], 6).tolist()
    for step, reward in enumerate(rewards):
        shard(tmp_path, f"step-{step + 1:06d}", make_rollout("a", (step, 1), reward=reward))
    buffer = buffer_of([tmp_path])
    for count in range(1, 7):
        found = [rollout.reward for rollout in buffer.select("a", count, "max-variance", RNG)]
        assert len(found) == count
        assert np.var(found) == pytest.approx(max(np.var(some) for some in combinations(rewards, count)))


def test_random_are_distinct_and_each_as_often(four):
    rng = np.random.default_rng(5)
    drawn = [chosen(four, 2, "random", rng) for _ in range(600)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = [sum(one in pair for pair in drawn) for one in [(2, 1), (3, 1), (4, 1), (5, 1)]]
    assert all(abs(count - 300) < 60 for count in counts)  # standard deviation 12
    assert chosen(four, 2, "random", np.random.default_rng(3)) == chosen(four, 2, "random", np.random.default_rng(3))


@pytest.mark.parametrize("how", ["recent", "random", "low-entropy", "max-variance"])
def test_more_than_are_stored_is_an_error(four, how):
    assert len(chosen(four, 4, how)) == 4
    with pytest.raises(ValueError, match="5 rollouts of problem 'a' are requested, but 4 are stored"):
        chosen(four, 5, how)
    with pytest.raises(ValueError, match="1 rollouts of problem 'b' are requested, but 0 are stored"):
        four.select("b", 1, how, RNG)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_shard_that_is_not_what_was_written_is_named(tmp_path):
    """A number that is another one now, which Parquet would read without a word."""
    shard(tmp_path, "step-000001", right())
    path = shard(tmp_path, "step-000002", right(sampling_logprobs=(-1.0, -1.0)))
    other = shard(tmp_path / "other", "step-000002", right(sampling_logprobs=(-2.0, -1.0)))
    path.write_bytes(other.read_bytes())
    with pytest.raises(RunFault, match=rf"{path} is damaged .*; it can't be replayed: restore"):
        buffer_of([tmp_path])


def test_a_table_of_others_is_named(tmp_path):
    path = tmp_path / "step-000001.parquet"
    pq.write_table(pa.table({"x": [1, 2]}), path)
    add_checksum(path)
    with pytest.raises(RunFault, match=rf"{path}: not a shard of a rollout pool, or damaged"):
        buffer_of([tmp_path])


def test_what_a_footer_tells(tmp_path):
    good = shard(tmp_path, "step-000001", right())
    assert shard_fault(good) is None
    table = pq.read_table(good)
    foreign, cut = tmp_path / "foreign.parquet", tmp_path / "cut.parquet"
    reward = table.column_names.index("reward")
    pq.write_table(table.drop_columns(["success"]).set_column(reward, "reward", pa.array(["1.0"])), foreign)
    assert shard_fault(foreign) == f"{foreign}: not a shard of a rollout pool; look at its columns reward, success"
    cut.write_bytes(good.read_bytes()[:-20])
    assert str(shard_fault(cut)).startswith(f"{cut}: not a Parquet file, or damaged (")
