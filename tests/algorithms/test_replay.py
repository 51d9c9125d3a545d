"""Experience replay: what is added to a rollout step, to which problems, and what the update makes of it."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from builders import (
    StepMetrics,
    fit,
    make_group,
    make_policy,
    make_problems,
    make_rollout,
    make_sampler,
    one_right,
    slow_logprobs,
)
from slow_algorithms import SAMPLING, Slow, assert_update_is, random_groups

from rloop_lightning.algorithms.replay import Replay, pools_of
from rloop_lightning.callbacks.faults import FaultyRollouts
from rloop_lightning.data.stream import RolloutStream
from rloop_lightning.pool import RolloutPool
from rloop_lightning.types import RolloutStep, SamplingParams

ONE = {"updates_per_step": 1}
HALF = math.sqrt(0.5)


def store(folder, *rollouts, step=1):
    RolloutPool(folder).write(
        f"step-{step:06d}", [make_group(rollout) for rollout in rollouts], round=0, rollout_step=step - 1, run_id="r"
    )


def successes(problem, count, logprob=-2.0):
    """Stored rollouts that differ from each other and from those of `new_group`."""
    return [
        make_rollout(problem, (20, 10 + i, 1), prompt=(9, 9), reward=1.0, sampling_logprobs=[logprob - i, -1.0, -0.5])
        for i in range(count)
    ]


def new_group(problem="a", right=1, size=4, prompt=(3, 4, 5)):
    rollouts = [
        make_rollout(problem, (6 + g, 7, 1), prompt=prompt, reward=float(g < right), sampling_logprobs=[-1.0] * 3)
        for g in range(size)
    ]
    return make_group(*rollouts)


def make_module(folder, **settings):
    module = Replay(**{**ONE, **settings})
    assert module.invalid() == []
    module.pools = [folder]
    return module


def seeded(seed):
    return SamplingParams(max_new_tokens=10, seed=seed)


# --- what is added ----------------------------------------------------------------------------------------------------


def test_stored_successes_join_the_groups_of_their_problems(tmp_path):
    store(tmp_path, *successes("a", 2), make_rollout("a", (5, 5, 1), reward=0.0), *successes("b", 1))
    groups = [new_group("a"), new_group("b"), new_group("c")]
    joined, few, none = make_module(tmp_path, replay_selection="recent").replayed(groups, SAMPLING)
    assert few is groups[1]
    assert none is groups[2]
    assert joined.rollouts[:4] == groups[0].rollouts
    for ours, theirs in zip(joined.rollouts[4:], successes("a", 2), strict=True):
        assert ours.replayed
        assert ours.problem_id == "a"
        assert ours.prompt_ids.tolist() == [3, 4, 5]  # as the policy sees the problem now
        assert ours.completion_ids.tolist() == theirs.completion_ids.tolist()
        assert ours.sampling_logprobs.tolist() == theirs.sampling_logprobs.tolist()
        assert (ours.reward, ours.success, ours.finish_reason) == (1.0, True, "stop")
    assert not any(rollout.replayed for group in groups for rollout in group.rollouts)


def test_split_rollouts_stand_behind_as_groups_of_their_own(tmp_path):
    stored = [make_rollout("b", (5, i, 1), reward=float(i)) for i in (0, 1)]
    store(tmp_path, *stored)
    groups = [new_group("a"), new_group("b"), new_group("c")]
    module = make_module(tmp_path, replay_advantages="split", replay_successes_only=False)
    *same, apart = module.replayed(groups, SAMPLING)
    assert same == groups
    assert apart.problem is groups[1].problem
    assert sorted(rollout.reward for rollout in apart.rollouts) == [0.0, 1.0]
    assert all(rollout.replayed for rollout in apart.rollouts)


def test_joint_advantages_by_hand(tmp_path):
    # New rewards 1, 0 and stored 1, 1: mean 3/4, squared deviations 3/16 + 9/16 = 3/4, over 3 is 1/4: std 1/2.
    store(tmp_path, *successes("a", 2))
    module = make_module(tmp_path)
    batch = module.make_batch(module.replayed([new_group("a", size=2), new_group("b", size=2)], SAMPLING), SAMPLING)
    assert batch.advantages.tolist() == pytest.approx([0.5, -1.5, 0.5, 0.5, HALF, -HALF], rel=1e-5)
    assert batch.replayed.tolist() == [False, False, True, True, False, False]
    assert batch.groups.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.prompts.tolist() == [0] * 6


def test_split_advantages_by_hand(tmp_path):
    # New rewards 1, 0: mean 1/2, std sqrt(1/2). Stored 3, 1: mean 2, std sqrt 2. Each its own way.
    store(tmp_path, *[make_rollout("a", (5, i, 1), reward=float(i)) for i in (3, 1)])
    module = make_module(tmp_path, replay_advantages="split", replay_successes_only=False, replay_selection="recent")
    batch = module.make_batch(module.replayed([new_group("a", size=2), new_group("b", size=2)], SAMPLING), SAMPLING)
    assert batch.advantages.tolist() == pytest.approx([HALF, -HALF] * 2 + [HALF, -HALF], rel=1e-5)
    assert batch.replayed.tolist() == [False] * 4 + [True] * 2
    assert batch.groups.tolist() == [0, 0, 1, 1, 2, 2]


def test_shaping_and_masking_hold_for_replayed_rollouts(tmp_path):
    cut = make_rollout("a", range(2, 12), reward=1.0, finish_reason="length")
    store(tmp_path, cut, *successes("a", 1))
    module = make_module(tmp_path, overlong_buffer_tokens=4, mask_truncated=True, replay_selection="recent")
    groups = module.replayed([new_group("a")], SAMPLING)
    assert module.rewards(groups, SAMPLING).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert module.make_batch(groups, SAMPLING).mask.any(1).tolist() == [True] * 4 + [False, True]


# --- to which problems ------------------------------------------------------------------------------------------------


def chosen(module, groups, seed):
    """The numbers of the groups that replay is added to."""
    replayed = module.replayed(groups, seeded(seed))
    return [i for i, group in enumerate(replayed[: len(groups)]) if len(group.rollouts) > len(groups[i].rollouts)]


def test_the_share_bounds_the_problems_and_those_without_stored_rollouts_do_not_use_it_up(tmp_path):
    store(tmp_path, *[rollout for name in "abcdef" for rollout in successes(name, 2)])
    groups = [new_group(name) for name in "abcdefgh"]
    assert chosen(make_module(tmp_path), groups, 0) == list(range(6))
    counts = np.zeros(8)
    module = make_module(tmp_path, replay_share=0.25)
    for seed in range(600):
        some = chosen(module, groups, seed)
        assert len(some) == 2
        counts[some] += 1
    assert (np.abs(counts[:6] - 200) < 60).all()  # standard deviation 11.5
    assert counts[6:].tolist() == [0, 0]


def test_buckets_prefer_problems_that_half_of_the_rollouts_solved(tmp_path):
    # G = 4, mu = 2, sigma = 1: successes 0 .. 4 weigh 0, e^-1/2, 1, e^-1/2, 0.
    store(tmp_path, *[rollout for name in "abcde" for rollout in successes(name, 2)])
    groups = [new_group(name, right=right) for right, name in enumerate("abcde")]
    module = make_module(tmp_path, replay_share=0.2, replay_buckets=True)
    counts = np.zeros(5)
    for seed in range(2000):
        (one,) = chosen(module, groups, seed)
        counts[one] += 1
    side = math.exp(-0.5) / (1 + 2 * math.exp(-0.5))
    expected = np.array([0, side, 1 - 2 * side, side, 0])
    assert (np.abs(counts / 2000 - expected) < 0.05).all()  # standard deviation 0.011
    assert counts[[0, 4]].tolist() == [0, 0]
    # However large the share, none that is all right or all wrong.
    assert chosen(make_module(tmp_path, replay_buckets=True), groups, 0) == [1, 2, 3]


def test_the_choice_hangs_on_the_steps_seed_alone(tmp_path):
    store(tmp_path, *[rollout for name in "abcdef" for rollout in successes(name, 3)])
    groups = [new_group(name) for name in "abcdef"]

    def ids(seed):
        module = make_module(tmp_path, replay_share=0.5)
        return [
            [rollout.completion_ids.tolist() for rollout in group.rollouts]
            for group in module.replayed(groups, seeded(seed))
        ]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


@pytest.mark.parametrize(("threshold", "replays"), [(0.0, True), (0.5, True), (0.51, False)])
def test_nothing_is_replayed_before_the_policy_is_good_enough(tmp_path, threshold, replays):
    store(tmp_path, *successes("a", 2), make_rollout("a", (5, 1)), make_rollout("b", (5, 1)))
    module = make_module(tmp_path, replay_start_success_rate=threshold)
    assert bool(chosen(module, [new_group("a")], 0)) is replays
    if not replays:  # and from then on
        store(tmp_path, *successes("c", 2), step=2)
        store(tmp_path, make_rollout("c", (5, 1)), step=3)
        assert chosen(module, [new_group("a")], 0) == [0]


def test_what_a_step_has_just_generated_is_not_replayed_in_it(tmp_path):
    """The pool holds a step's rollouts once it trains on them: the next step's buffer reads them."""
    module = make_module(tmp_path)
    assert chosen(module, [new_group("a")], 0) == []
    store(tmp_path, *successes("a", 2))
    assert chosen(module, [new_group("a")], 0) == [0]


# --- which pools ------------------------------------------------------------------------------------------------------


def test_the_pools_of_another_run_are_found(tmp_path):
    run = tmp_path / "run"
    for number in (0, 1):
        store(run / f"round-{number}" / "pool", *successes("a", 1 + number, logprob=-2.0 - number))
    (run / "round-2" / "pool").mkdir(parents=True)
    pools = [run / "round-0" / "pool", run / "round-1" / "pool"]
    assert pools_of(run) == pools
    assert pools_of(pools[0]) == [pools[0]]
    assert pools_of(tmp_path) == pools_of(tmp_path / "nowhere") == []
    module = make_module(tmp_path / "own", replay_pool=str(run), replay_selection="recent")
    store(tmp_path / "own", *successes("b", 2))
    assert chosen(module, [new_group("a"), new_group("b")], 0) == [0]  # not from its own
    (group, _) = module.replayed([new_group("a"), new_group("b")], SAMPLING)
    assert [float(rollout.sampling_logprobs[0]) for rollout in group.rollouts[4:]] == [-3.0, -4.0]


# --- the update -------------------------------------------------------------------------------------------------------


def replayed_groups(tmp_path, **settings):
    groups = random_groups()
    for group in groups:
        lengths = (3, 7) if group.problem.id == "p0" else (2, 5)
        stored = [
            make_rollout(
                group.problem.id, range(2, 2 + n), reward=n / 4, sampling_logprobs=[-1.5 - t for t in range(n)]
            )
            for n in lengths
        ]
        RolloutPool(tmp_path).write(
            f"step-00000{group.problem.id[1:]}", [make_group(*stored)], round=0, rollout_step=0, run_id="r"
        )
    module = make_module(tmp_path, replay_successes_only=False, **settings)
    return module, module.replayed(groups, SAMPLING)


@pytest.mark.parametrize("how", ["joint", "split"])
def test_an_update_equals_the_slow_implementation(how, tmp_path):
    """The ratios of replayed rollouts are against the logprobs that they were recorded with."""
    module, groups = replayed_groups(tmp_path, replay_advantages=how)
    assert sum(rollout.replayed for group in groups for rollout in group.rollouts) == 6
    assert len(groups) == (3 if how == "joint" else 6)
    assert_update_is(module, Slow(high=0.28), groups)


class Spy(Replay):
    """Notes the old logprobs of replayed and of new rows that come to each update."""

    def on_fit_start(self):
        self.seen = []

    def loss(self, scores, batch):
        current = scores.logprobs.detach()
        for i in range(len(batch)):
            recorded = torch.equal(batch.old_logprobs[i], batch.sampling_logprobs[i])
            self.seen.append((bool(batch.replayed[i]), recorded, torch.equal(batch.old_logprobs[i], current[i])))
        return super().loss(scores, batch)


@pytest.mark.parametrize("updates", [1, 2])
def test_every_update_takes_ratios_against_the_record(updates, tmp_path):
    """Without old logprobs in the batch, as a run has it: in the first update, and in a later one."""
    module, groups = replayed_groups(tmp_path)
    spy = Spy(updates_per_step=updates, lr=0.05, warmup_steps=0)
    batch = module.make_batch(groups, SAMPLING)
    metrics = StepMetrics()
    fit(spy, make_policy(max_tokens=40), [RolloutStep(0, tuple(groups), batch, {})], [metrics])
    assert len(spy.seen) == len(batch)
    for replayed, recorded, current in spy.seen:
        assert recorded is replayed
        assert not (replayed and current)
    on_policy = [current for replayed, _, current in spy.seen if not replayed]
    assert all(on_policy) is (updates == 1)
    assert metrics.steps[0]["replay/share"] == pytest.approx(6 / len(batch))


@pytest.mark.parametrize("how", ["joint", "split"])
def test_a_step_of_the_stream_trains_on_replayed_rollouts_and_counts_none_of_them_as_generated(how, tmp_path):
    store(tmp_path, *successes("p1", 2), make_rollout("p1", (5, 1)))
    module = make_module(tmp_path, replay_advantages=how, replay_successes_only=False)
    stream = RolloutStream(
        make_sampler(one_right), module, make_problems(3), problems_per_step=3, rollouts_per_problem=2, steps=1, seed=0
    )
    (step,) = stream
    assert [len(group.rollouts) for group in step.groups] == [2, 2, 2]
    assert not any(rollout.replayed for group in step.groups for rollout in group.rollouts)
    assert step.metrics["rollout/generated_rollouts"] == 6
    assert stream.cost.rollouts == 6
    assert len(step.rollouts) == len(step.batch) == 8
    assert [rollout.replayed for rollout in step.rollouts] == step.batch.replayed.tolist()
    assert sum(step.batch.replayed.tolist()) == 2
    for row, rollout in zip(step.batch.input_ids, step.rollouts, strict=True):
        ids = [*rollout.prompt_ids.tolist(), *rollout.completion_ids.tolist()]
        assert row[: len(ids)].tolist() == ids
    again = [rollout.problem_id for rollout in step.rollouts if rollout.replayed]
    assert again == ["p1", "p1"]


def test_metrics_say_how_much_was_replayed_and_is_stored(tmp_path):
    store(tmp_path, *successes("a", 3))
    module = make_module(tmp_path)
    groups = module.replayed([new_group("a", size=2)], SAMPLING)
    metrics = StepMetrics()
    fit(module, make_policy(), [RolloutStep(0, (), module.make_batch(groups, SAMPLING), {})], [metrics])
    assert (metrics.steps[0]["replay/share"], metrics.steps[0]["replay/stored"]) == (0.5, 3)


def test_the_rollouts_of_a_skipped_update_hold_what_was_recorded(tmp_path):
    """The old logprobs of a replayed rollout are those of its record, of the others those of the policy."""
    module, groups = replayed_groups(tmp_path / "pool")
    batch = module.make_batch(groups, SAMPLING)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    module.policy = make_policy()
    faults = FaultyRollouts(tmp_path / "faults", round=0, run_id="r")
    path, bad = faults.save(module, batch, rollouts, step=1, update=1)
    assert bad == 0
    current = slow_logprobs(make_policy(), batch)
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == len(rollouts)
    for i, (row, rollout) in enumerate(zip(rows, rollouts, strict=True)):
        now = current[i].tolist()
        assert row["logprobs"] == pytest.approx(now, rel=1e-4, abs=1e-5)
        old = rollout.sampling_logprobs.tolist() if rollout.replayed else now
        assert row["old_logprobs"] == pytest.approx(old, rel=1e-4, abs=1e-5)
        assert row["sampling_logprobs"] == pytest.approx(rollout.sampling_logprobs.tolist())
        assert row["text"]
        # The loss is -min(rho A, clip(rho) A), summed over the rollout.
        tokens = Slow(high=0.28).tokens(float(batch.advantages[i]), now, old, old)
        assert row["loss"] == pytest.approx(sum(value for value, _ in tokens), rel=1e-3, abs=1e-4)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_every_wrong_setting_is_named():
    assert Replay(
        replay_per_problem=-1, replay_share=0.0, replay_start_success_rate=1.5, replay_stored_per_problem=0
    ).invalid() == [
        "--algo.replay_per_problem must be >= 0, got -1",
        "--algo.replay_share must be in (0, 1], got 0.0",
        "--algo.replay_start_success_rate must be in [0, 1], got 1.5",
        "--algo.replay_stored_per_problem must be at least 1 and --algo.replay_per_problem -1, got 0",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"replay_per_problem": 17},
            "replay_stored_per_problem must be at least 1 and --algo.replay_per_problem 17, got 16",
        ),
        ({"replay_advantages": "split"}, "replay_advantages apart are all 0 where only successes are stored; set"),
        (
            {"replay_advantages": "split", "replay_successes_only": False, "replay_per_problem": 1},
            "replay_per_problem must be >= 2 with split advantages, got 1",
        ),
        ({"replay_selection": "max-variance"}, "replay_selection has no variance where only successes are stored; set"),
        ({"replay_pool": "/nowhere"}, "replay_pool must be a run or a pool with shards, got /nowhere"),
    ],
)
def test_what_can_not_work_is_refused(settings, said):
    (message,) = Replay(**settings).invalid()
    assert message.startswith(f"--algo.{said}")


def test_a_threshold_is_refused_with_another_runs_pool(tmp_path):
    store(tmp_path, *successes("a", 2))
    (message,) = Replay(replay_pool=str(tmp_path), replay_start_success_rate=0.1).invalid()
    assert message == "--algo.replay_start_success_rate must be 0 with --algo.replay_pool, got 0.1"


def test_shards_that_are_none_are_refused(tmp_path):
    store(tmp_path, *successes("a", 2))
    (tmp_path / "step-000002.parquet").write_bytes(b"PAR1")
    store(tmp_path, *successes("a", 2), step=3)
    (message,) = Replay(replay_pool=str(tmp_path)).invalid()
    assert message.startswith(
        f"--algo.replay_pool can't be replayed: {tmp_path}/step-000002.parquet: not a Parquet file"
    )
    assert message.endswith(f"got {tmp_path}")


def test_the_defaults_are_valid():
    assert Replay().invalid() == []
    repo = {"replay_advantages": "split", "replay_successes_only": False, "replay_selection": "max-variance"}
    assert Replay(**repo).invalid() == []
    exgrpo = {"replay_per_problem": 1, "replay_share": 0.5, "replay_selection": "low-entropy", "replay_buckets": True}
    assert Replay(replay_start_success_rate=0.35, **exgrpo).invalid() == []
