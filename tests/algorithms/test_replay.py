"""Experience replay: what is added to a rollout step, to which problems, from which pools, and what is refused."""

import math

import numpy as np
import pytest
import torch
from builders import fit, make_policy, make_rollout
from replaying import make_module, new_group, store, successes
from slow_algorithms import SAMPLING

from rloop_lightning.algorithms.replay import Replay, pools_of
from rloop_lightning.errors import RunFault
from rloop_lightning.types import SamplingParams

HALF = math.sqrt(0.5)


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


def test_split_rollouts_stand_behind_their_problems_as_groups_of_their_own(tmp_path):
    stored = [make_rollout("b", (5, i, 1), reward=float(i)) for i in (0, 1)]
    store(tmp_path, *stored)
    groups = [new_group("a"), new_group("b"), new_group("c")]
    module = make_module(tmp_path, replay_advantages="split", replay_successes_only=False)
    first, second, apart, third = module.replayed(groups, SAMPLING)
    assert [first, second, third] == groups
    assert apart.problem is groups[1].problem
    assert sorted(rollout.reward for rollout in apart.rollouts) == [0.0, 1.0]
    assert all(rollout.replayed for rollout in apart.rollouts)


def test_joint_advantages_by_hand(tmp_path):
    # New rewards 1, 0 and stored 1, 1: mean 3/4, squared deviations 3/16 + 9/16 = 3/4, over 3 is 1/4: std 1/2.
    store(tmp_path, *successes("a", 2))
    module = make_module(tmp_path)
    groups = module.replayed([new_group("a", size=2), new_group("b", size=2)], SAMPLING)
    batch = module.make_batch(groups, SAMPLING)
    assert batch.advantages.tolist() == pytest.approx([0.5, -1.5, 0.5, 0.5, HALF, -HALF], rel=1e-5)
    assert batch.replayed.tolist() == [False, False, True, True, False, False]
    assert batch.groups.tolist() == [0, 0, 0, 0, 1, 1]
    assert module.rewards(groups, SAMPLING).tolist() == [1, 0, 1, 1, 1, 0]
    assert module.rewards(groups, SAMPLING).dtype == torch.float64  # rewards of 1e9 and more still differ
    assert batch.prompts.tolist() == [0] * 6


def test_split_advantages_by_hand(tmp_path):
    # New rewards 1, 0: mean 1/2, std sqrt(1/2). Stored 3, 1: mean 2, std sqrt 2. Each its own way.
    store(tmp_path, *[make_rollout("a", (5, i, 1), reward=float(i)) for i in (3, 1)])
    module = make_module(tmp_path, replay_advantages="split", replay_successes_only=False, replay_selection="recent")
    batch = module.make_batch(module.replayed([new_group("a", size=2), new_group("b", size=2)], SAMPLING), SAMPLING)
    assert batch.advantages.tolist() == pytest.approx([HALF, -HALF] * 3, rel=1e-5)
    assert batch.replayed.tolist() == [False, False, True, True, False, False]
    assert batch.groups.tolist() == [0, 0, 1, 1, 2, 2]


def test_shaping_and_masking_hold_for_replayed_rollouts(tmp_path):
    cut = make_rollout("a", range(2, 12), reward=1.0, finish_reason="length")
    store(tmp_path, cut, *successes("a", 1))
    module = make_module(tmp_path, overlong_buffer_tokens=4, mask_truncated=True, replay_selection="recent")
    groups = module.replayed([new_group("a")], SAMPLING)
    assert module.rewards(groups, SAMPLING).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert module.make_batch(groups, SAMPLING).loss_mask.any(1).tolist() == [True] * 4 + [False, True]


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


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_every_wrong_setting_is_named():
    assert Replay(
        replay_per_problem=-1, replay_share=0.0, replay_start_success_rate=1.5, replay_stored_per_problem=0
    ).invalid() == [
        "--algo.replay_per_problem: expected an integer >= 0, got -1",
        "--algo.replay_share: expected a number > 0 and <= 1, got 0.0",
        "--algo.replay_start_success_rate: expected a number >= 0 and <= 1, got 1.5",
        "--algo.replay_stored_per_problem: expected an integer > 0, got 0",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"replay_per_problem": 17}, "replay_stored_per_problem must be at least --algo.replay_per_problem 17, got 16"),
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


def test_tokens_that_the_policy_does_not_have_are_refused_before_anything_is_generated(tmp_path):
    store(tmp_path, make_rollout("a", (5, 25, 1), reward=1.0))
    with pytest.raises(RunFault, match=r"--algo.replay_pool .*: token 25 is beyond the policy's 25"):
        fit(Replay(replay_pool=str(tmp_path)), make_policy(), [])
    store(tmp_path, make_rollout("a", (5, 24, 1), reward=1.0))
    fit(Replay(replay_pool=str(tmp_path)), make_policy(), [])


@pytest.mark.parametrize("selection", ["recent", "random", "low-entropy"])
def test_rollouts_that_the_policy_has_no_room_for_are_left_out(selection, tmp_path):
    """The policy's context is 64 tokens, and the prompt of "a" has 3."""
    module = make_module(tmp_path, replay_per_problem=1, replay_selection=selection)
    store(tmp_path, make_rollout("a", [5] * 62, reward=1.0))
    assert chosen(module, [new_group("a")], 0) == []
    store(tmp_path, make_rollout("a", [6] * 61, reward=1.0, sampling_logprobs=[-9.0] * 61), step=2)
    store(tmp_path, make_rollout("a", [7] * 62, reward=1.0), step=3)
    for seed in range(5):
        (group,) = module.replayed([new_group("a")], seeded(seed))
        assert [len(rollout.completion_ids) for rollout in group.rollouts[4:]] == [61]


def test_a_pool_that_gives_no_problem_enough_rollouts_is_refused(tmp_path, caplog):
    """Two successes of "p0" are the same, one of "p1" is too long, and "gone" is no problem of the training set."""
    again, long = make_rollout("p0", (5, 1), reward=1.0), make_rollout("p1", [5] * 63, reward=1.0)
    store(tmp_path, again, again, *successes("p1", 1), long, *successes("gone", 2))
    module, prompts = Replay(replay_pool=str(tmp_path)), [("p0", 2), ("p1", 2), ("p2", 2)]
    assert list(module.conflicts(make_policy(), prompts)) == [
        f"--algo.replay_pool {tmp_path}: none of the 3 problems of the training set has 2 distinct successes there "
        "that fit into the policy's context, so nothing would be replayed; take a pool of the same problems, or set "
        "--algo.replay_per_problem to at most 1"
    ]
    assert len(module.buffer) == 0
    store(tmp_path, *successes("p1", 1, logprob=-3.0), *successes("p2", 2), step=2)
    with caplog.at_level("INFO"):
        assert list(module.conflicts(make_policy(), prompts)) == []
    assert f"--algo.replay_pool {tmp_path}: 1 of 3 problems have at least 2 successes to replay" in caplog.text
    (message,) = module.conflicts(make_policy(), [("other", 2)])
    assert message.endswith("nothing would be replayed; take a pool of the same problems")
    assert list(Replay(replay_pool=str(tmp_path), replay_per_problem=0).conflicts(make_policy(), prompts[:1])) == []
    assert list(Replay().conflicts(make_policy(), prompts)) == []


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
