"""The streams with a scripted engine: what is asked for, what is trained on, and that a stream resumes."""

import math
from collections import Counter
from dataclasses import asdict
from itertools import chain

import builders
import numpy as np
import pytest
import torch
from builders import (
    FakeEngine,
    FirstCharacterReward,
    fit,
    make_policy,
    make_problems,
    make_rollout,
    make_sampler,
    one_right,
)

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.rollouts.expert_stream import ExpertStream
from rloop_lightning.rollouts.listener import StreamListener
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.rollouts.stream import NotEnoughGroupsError
from rloop_lightning.types import Scored


def make_stream(
    write=one_right,
    *,
    problems=10,
    p=4,
    g=2,
    steps=3,
    seed=0,
    tokens=None,
    explorer=None,
    on_too_few_groups="end_phase",
    staleness=0,
    in_flight_updates=False,
    **engine,
):
    return builders.make_stream(
        make_sampler(write, **engine),
        explorer or DAPO(),
        make_problems(problems),
        problems_per_step=p,
        rollouts_per_problem=g,
        seed=seed,
        steps=steps,
        tokens=tokens,
        on_too_few_groups=on_too_few_groups,
        staleness=staleness,
        in_flight_updates=in_flight_updates,
    )


def asked(stream):
    """The problem ids of every call of the engine."""
    return [ids for ids, _, _ in stream.step_sampler.sampler.engine.calls]


def same_steps(actual, expected):
    assert [step.index for step in actual] == [step.index for step in expected]
    for a, b in zip(actual, expected, strict=True):
        assert [group.problem.id for group in a.groups] == [group.problem.id for group in b.groups]
        for name in ("input_ids", "sampling_logprobs", "advantages", "loss_mask"):
            assert torch.equal(getattr(a.batch, name), getattr(b.batch, name)), name


# --- sampler ----------------------------------------------------------------------------------------------------------


def test_a_sampler_scores_groups_in_order():
    def write(problem, g, call):
        return f"{(problem + g) % 3}" + "x" * g

    sampler = GroupSampler(FakeEngine(write), FirstCharacterReward(success_threshold=2.0))
    cost = SamplingCost(rollouts=10, tokens=100)
    groups = sampler.sample(make_problems(3), 2, sampler.engine.sampling(5), cost)
    assert [group.problem.id for group in groups] == ["p0", "p1", "p2"]
    assert [[r.problem_id for r in group.rollouts] for group in groups] == [["p0"] * 2, ["p1"] * 2, ["p2"] * 2]
    assert [[r.reward for r in group.rollouts] for group in groups] == [[0, 1], [1, 2], [2, 0]]
    assert [group.success_count for group in groups] == [0, 1, 1]
    assert (cost.rollouts, cost.tokens) == (16, 109)
    assert cost.generate_s > 0
    assert cost.reward_s > 0


# --- dynamic sampling -------------------------------------------------------------------------------------------------


def hard(solved):
    """Only these problems have a right rollout, their first."""
    return lambda problem, g, call: "1x" if problem in solved and g == 0 else "0x"


def test_a_step_samples_on_until_it_has_enough_groups():
    stream = make_stream(hard({1, 3, 5, 7, 9}), problems=10, p=4, steps=1)
    (step,) = stream
    kept = [group.problem.id for group in step.groups if group.success_count]
    rows = step.batch.advantages.view(4, 2)
    assert len(step.batch) == 8
    assert (rows[:, 0] > 0).all()
    assert (rows[:, 1] < 0).all()
    # The batch holds the first four that were kept; the step holds every group that was generated.
    assert len(kept) >= 4
    assert [group.problem.id for group in step.groups] == list(chain(*asked(stream)))
    assert stream.cost.rollouts == 2 * len(step.groups)
    assert stream.step_sampler.drawn == len(step.groups)


def test_later_calls_ask_for_what_seems_to_be_missing():
    """The first call keeps 6 of 8, so each kept group costs 8/6 problems: for 2 more, ask for ceil(1.1 * 2 * 8/6)."""
    first = {}

    def write(problem, g, call):
        place = first.setdefault(problem, len(first))
        return "1x" if g == 0 and (call > 0 or place < 6) else "0x"

    stream = make_stream(write, problems=20, p=8, steps=1)
    (step,) = stream
    assert [len(ids) for ids in asked(stream)] == [8, 3]
    assert step.metrics["rollout/kept_rate"] == 9 / 11
    assert len(step.batch) == 16
    # The two problems that the batch was short of are the first two of the second call.
    kept = [group for group in step.groups if group.success_count][:8]
    assert [group.problem.id for group in kept[6:]] == asked(stream)[1][:2]


def test_a_call_never_asks_for_more_than_four_steps():
    """None of 8 kept counts as one, so 8 missing would be 1.1 * 64 problems: 32 are asked for."""
    stream = make_stream(lambda problem, g, call: "1x" if g == 0 and call else "0x", problems=20, p=8, steps=1)
    list(stream)
    assert [len(ids) for ids in asked(stream)] == [8, 32]


def test_a_step_asks_at_once_for_what_the_step_before_needed():
    """The first step keeps every other problem, so the second asks for ceil(1.1 * 4 / share) in its first call."""
    stream = make_stream(hard({1, 3, 5}), problems=6, p=4, steps=2)
    iterator = iter(stream)
    first = next(iterator)
    share = sum(group.success_count > 0 for group in first.groups) / len(first.groups)
    calls = len(asked(stream))
    assert share < 1
    next(iterator)
    assert len(asked(stream)[calls]) == math.ceil(1.1 * 4 / share)


def test_the_cap_ends_the_phase_and_keeps_the_groups():
    stream = make_stream(hard({2}), problems=6, p=3, explorer=DAPO(max_generation_batches=4))
    assert list(stream) == []
    assert stream.position == 0
    assert len(stream.unused) == 12
    kept = sum(ids.count("p2") for ids in asked(stream))
    assert stream.shortage == (
        f"rollout step 1: only {kept} of 12 problems gave a group with both right and wrong rollouts; the step needs 3"
    )
    assert stream.cost.rollouts == 24


def test_at_the_cap_a_step_may_train_on_the_groups_it_has(caplog):
    explorer = DAPO(max_generation_batches=4, updates_per_step=1)
    stream = make_stream(hard({2}), problems=6, p=3, steps=1, explorer=explorer, on_too_few_groups="train")
    (step,) = stream
    kept = sum(ids.count("p2") for ids in asked(stream))
    assert 0 < kept < 3
    assert len(step.batch) == 2 * kept
    assert step.metrics["rollout/trained_groups"] == kept
    assert not stream.unused
    assert f"the step needs 3; it trains on {kept}" in caplog.text


def test_at_the_cap_without_any_group_the_phase_ends():
    explorer = DAPO(max_generation_batches=2)
    stream = make_stream(hard(set()), problems=6, p=3, explorer=explorer, on_too_few_groups="train")
    assert list(stream) == []
    assert len(stream.unused) == 6


def test_at_the_cap_the_run_may_stop_with_an_error_with_the_numbers():
    explorer = DAPO(max_generation_batches=4)
    stream = make_stream(hard({2}), problems=6, p=3, explorer=explorer, on_too_few_groups="stop")
    with pytest.raises(NotEnoughGroupsError) as raised:
        next(iter(stream))
    assert sum(map(len, asked(stream))) == 4 * 3
    kept = sum(ids.count("p2") for ids in asked(stream))
    assert kept < 3
    message = str(raised.value)
    for part in ("rollout step 1:", f"only {kept} of 12 problems gave", "the step needs 3"):
        assert part in message
    right = 1 / 2  # of each group of p2; all other groups are wrong
    assert raised.value.metrics["rollout/success_rate"] == right * kept / 12
    assert raised.value.metrics["rollout/kept_rate"] == kept / 12


class Follower(StreamListener):
    """Notes all that it is told."""

    def __init__(self):
        self.before_calls = []
        self.steps = []

    def sampling(self, *, kept, needed, drawn, tokens):
        self.before_calls.append((kept, needed, drawn, tokens))

    def sampled(self, step, groups, metrics):
        self.steps.append((step, [group.problem.id for group in groups], dict(metrics)))


def test_a_listener_follows_each_call_and_each_step():
    follower = Follower()
    stream = make_stream(hard({1, 3, 5}), problems=6, p=2, steps=2)
    stream.listeners = [follower]
    steps = list(stream)
    assert [told[0] for told in follower.steps] == [0, 1]
    assert [told[1] for told in follower.steps] == [[group.problem.id for group in step.groups] for step in steps]
    assert [told[2] for told in follower.steps] == [step.metrics for step in steps]
    calls = asked(stream)
    assert len(follower.before_calls) == len(calls) > 2
    assert follower.before_calls[0] == (0, 2, 0, 0)
    kept = sum(id in ("p1", "p3", "p5") for id in calls[0])
    assert follower.before_calls[1] == (kept, 2, 2, 2 * 2 * 2)  # two characters a rollout, two rollouts a problem


def test_a_listener_is_told_of_a_step_that_can_not_be_trained_on():
    follower = Follower()
    explorer = DAPO(max_generation_batches=2)
    stream = make_stream(hard(set()), problems=6, p=3, explorer=explorer, on_too_few_groups="stop")
    stream.listeners = [follower]
    with pytest.raises(NotEnoughGroupsError) as raised:
        next(iter(stream))
    ((step, groups, metrics),) = follower.steps
    assert (step, len(groups), metrics["rollout/success_rate"]) == (0, 6, 0)
    assert metrics == raised.value.metrics


def test_the_last_problems_under_the_cap_may_be_the_ones_that_complete_a_step():
    stream = make_stream(
        lambda problem, g, call: "1x" if g == 0 and call == 1 else "0x",
        p=3,
        steps=1,
        explorer=DAPO(max_generation_batches=2),
    )
    (step,) = stream
    assert [len(ids) for ids in asked(stream)] == [3, 3]
    assert len(step.batch) == 6


def test_without_dynamic_sampling_every_group_is_trained_on():
    stream = make_stream(hard(set()), p=4, steps=1, explorer=DAPO(dynamic_sampling=False))
    (step,) = stream
    assert len(asked(stream)) == 1
    assert len(step.batch) == 8
    assert step.metrics["rollout/kept_rate"] == 1.0


def test_every_call_of_the_engine_has_its_own_seed():
    stream = make_stream(hard({1, 3, 5}), problems=10, p=4, steps=3)
    list(stream)
    seeds = [sampling.seed for _, _, sampling in stream.step_sampler.sampler.engine.calls]
    assert len(seeds) > 3
    assert len(set(seeds)) == len(seeds)


# --- order ------------------------------------------------------------------------------------------------------------


def test_a_pass_shows_every_problem_once_before_the_next_in_another_order():
    stream = make_stream(problems=7, p=3, steps=14)  # 42 problems, 6 passes; steps do not end with passes
    list(stream)
    drawn = list(chain(*asked(stream)))
    passes = [drawn[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(one) == [f"p{i}" for i in range(7)] for one in passes)
    assert len({tuple(one) for one in passes}) == 6


def test_the_order_depends_on_the_seed():
    streams = [make_stream(problems=20, seed=seed) for seed in (0, 0, 1)]
    for stream in streams:
        list(stream)
    assert asked(streams[0]) == asked(streams[1])
    assert asked(streams[0]) != asked(streams[2])


# --- as a loader ------------------------------------------------------------------------------------------------------


def test_a_step_is_generated_when_it_is_asked_for():
    stream = make_stream(steps=3)
    assert len(stream) == 3
    iterator = iter(stream)
    assert stream.step_sampler.sampler.engine.calls == []
    for count in (1, 2, 3):
        assert next(iterator).index == count - 1
        assert len(stream.step_sampler.sampler.engine.calls) == count
    assert next(iterator, None) is None


def test_lightning_asks_for_a_step_after_the_update_before_it():
    """A step that was fetched ahead would come from the policy before the update."""
    events = []

    def write(problem, g, call):
        events.append(f"generate {call}")
        return one_right(problem, g, call)

    class Watch(DAPO):
        def training_step(self, step, batch_idx):
            super().training_step(step, batch_idx)
            events.append(f"update {step.index}")

    fit(Watch(updates_per_step=1), make_policy(), make_stream(write, steps=3))
    order = [event for i, event in enumerate(events) if i == 0 or event != events[i - 1]]
    assert order == ["generate 0", "update 0", "generate 1", "update 1", "generate 2", "update 2"]


@pytest.mark.parametrize("done", [0, 1, 2, 4])
def test_a_stream_resumes_with_the_steps_that_it_would_have_given(done):
    def make():
        return make_stream(hard({1, 2, 5, 8}), problems=10, p=4, steps=5, seed=3)

    whole = make()
    expected = list(whole)
    killed = make()
    iterator = iter(killed)
    for _ in range(done):
        next(iterator)
    resumed = make()
    resumed.load_state_dict(killed.state_dict())
    same_steps(list(resumed), expected[done:])
    counts = [{k: v for k, v in asdict(s.cost).items() if k in ("rollouts", "tokens")} for s in (resumed, whole)]
    assert counts[0] == counts[1]
    assert resumed.step_sampler.drawn == whole.step_sampler.drawn


def test_a_phase_ends_with_the_step_that_reaches_its_tokens():
    whole = make_stream(steps=5)
    counts = [step.metrics["rollout/generated_tokens"] for step in whole]
    most = int(counts[0] + counts[1])
    for tokens, steps in ((1, 1), (most, 2), (most + 1, 3), (10**9, 5)):
        stream = make_stream(steps=5, tokens=tokens)
        same_steps(list(stream), list(make_stream(steps=steps)))
        assert stream.tokens_spent == (tokens < 10**9)
    told = [step.phase_steps for step in make_stream(steps=5, tokens=most)]
    assert told == [math.ceil(most / counts[0]), 2]
    assert [step.phase_steps for step in make_stream(steps=5, tokens=10**9)] == [5] * 5
    first = make_stream(steps=5, tokens=most)
    next(iter(first))
    resumed = make_stream(steps=5, tokens=most)
    resumed.load_state_dict(first.state_dict())
    assert len(list(resumed)) == 1
    ended = make_stream(steps=5, tokens=most)
    ended.load_state_dict(resumed.state_dict())
    assert list(ended) == []


def test_a_state_is_plain_numbers():
    """So that a checkpoint loads with weights_only=True."""
    stream = make_stream()
    next(iter(stream))
    state = stream.state_dict()
    assert {type(value) for value in [*state["cost"].values(), state["position"], state["drawn"]]} <= {int, float}


def test_metrics_of_a_step():
    # Texts of problem p: "1" + (p % 4) x, "0" + ((p + 1) % 4) x; length limit 4, so that 3 x's are cut off there.
    stream = make_stream(problems=4, p=4, steps=1, max_new_tokens=4)
    (step,) = stream
    assert {k: v for k, v in step.metrics.items() if not k.startswith("time/")} == {
        "rollout/reward_mean": 0.5,
        "rollout/success_rate": 0.5,
        "rollout/solved_rate": 1.0,
        "rollout/all_right_rate": 0.0,
        "rollout/kept_rate": 1.0,
        "rollout/trained_groups": 4.0,
        "rollout/length_tokens": 2.5,  # 1, 2, 3, 4 and 2, 3, 4, 1
        "rollout/truncated_rate": 0.25,
        "rollout/generated_rollouts": 8.0,
        "rollout/generated_tokens": 20.0,
    }
    assert step.metrics["time/generate_s"] > 0
    assert step.metrics["time/reward_s"] > 0


class CountingReward(FirstCharacterReward):
    """Rewards in two parts, success by the first one, and counts what it was asked."""

    asked = 0

    def __call__(self, problems, texts):
        self.asked += len(texts)
        firsts = super().__call__(problems, texts)
        lengths = [float(len(text)) for text in texts]
        return [
            Scored(first.reward - length, first.success, {"first": first.reward, "length": length})
            for first, length in zip(firsts, lengths, strict=True)
        ]

    def metrics(self):
        asked, self.asked = self.asked, 0
        return {"asked": float(asked)}


def test_parts_and_counts_of_a_reward_are_logged_apart():
    stream = make_stream(problems=4, p=4, steps=2, max_new_tokens=4)
    stream.step_sampler.sampler.reward = reward = CountingReward()
    reward.asked = 100  # by an evaluation
    for step in stream:
        assert {k: v for k, v in step.metrics.items() if "reward" in k and not k.startswith("time/")} == {
            "rollout/reward_mean": 0.5 - 2.5,
            "reward/first_mean": 0.5,
            "reward/length_mean": 2.5,
            "reward/asked": 8.0,
        }
        # By the reward nothing is a success, and groups without one are dropped.
        assert step.metrics["rollout/success_rate"] == 0.5
        assert step.metrics["rollout/kept_rate"] == 1.0


def test_metrics_count_the_groups_that_were_dropped():
    def write(problem, g, call):  # call 0: two groups all wrong, one all right, one mixed; then mixed ones
        if call == 0:
            place = places.setdefault(problem, len(places))
            return "1" if (place, g) in {(2, 0), (2, 1), (3, 0)} else "0"
        return "1" if g == 0 else "0"

    places = {}
    stream = make_stream(write, problems=20, p=4, steps=1)
    (step,) = stream
    extra = len(asked(stream)[1])
    assert extra == 14  # 3 missing at one kept of 4: ceil(1.1 * 12)
    assert step.metrics["rollout/kept_rate"] == 15 / 18
    assert step.metrics["rollout/solved_rate"] == 16 / 18
    assert step.metrics["rollout/success_rate"] == (3 + 14) / 36


def test_cost_adds_up_over_steps():
    stream = make_stream(p=4, g=3, steps=3)
    steps = list(stream)
    assert stream.cost.rollouts == 36 == sum(step.metrics["rollout/generated_rollouts"] for step in steps)
    assert stream.cost.tokens == sum(r.length for s in steps for group in s.groups for r in group.rollouts)
    assert stream.cost.generate_s == pytest.approx(sum(step.metrics["time/generate_s"] for step in steps))


# --- expert set -------------------------------------------------------------------------------------------------------


def expert_stream(count=7, per_update=3, epochs=4, seed=0):
    """Rollout i is i + 1 tokens long and weighs i."""
    rollouts = [make_rollout(completion=[2 + i] * (i + 1)) for i in range(count)]
    weights = list(range(count))
    return ExpertStream(rollouts, weights, rollouts_per_update=per_update, epochs=epochs, seed=seed)


def numbers(batch):
    """Which rollouts a batch holds."""
    found = [length - 1 for length in batch.completion_lengths.tolist()]
    assert batch.advantages.tolist() == found  # the weights went with their rollouts
    return found


def test_every_expert_rollout_comes_once_an_epoch_in_a_new_order():
    stream = expert_stream()
    batches = [numbers(batch) for batch in stream]
    assert [len(batch) for batch in batches] == [3, 3, 1] * 4
    assert len(stream) == len(batches) == 12
    epochs = [list(chain(*batches[i : i + 3])) for i in range(0, 12, 3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_expert_order_is_seeded():
    runs = [[numbers(batch) for batch in expert_stream(seed=seed)] for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("done", [0, 1, 3, 7, 12])
def test_an_expert_stream_resumes(done):
    expected = [numbers(batch) for batch in expert_stream()]
    killed = expert_stream()
    iterator = iter(killed)
    for _ in range(done):
        next(iterator)
    resumed = expert_stream()
    resumed.load_state_dict(killed.state_dict())
    assert [numbers(batch) for batch in resumed] == expected[done:]


def test_expert_batches_carry_loss_on_the_whole_completion():
    batch = next(iter(expert_stream()))
    assert torch.equal(batch.loss_mask, batch.completion_mask)
    assert batch.temperature == 1.0
    assert batch.old_logprobs is None


@pytest.mark.parametrize(("count", "per_update"), [(1, 64), (64, 64), (65, 64), (5, 1)])
def test_the_length_of_an_expert_stream(count, per_update):
    stream = expert_stream(count, per_update, epochs=2)
    assert len(stream) == 2 * math.ceil(count / per_update) == len(list(stream))
    assert Counter(np.concatenate([numbers(b) for b in expert_stream(count, per_update, 2)])) == dict.fromkeys(
        range(count), 2
    )
