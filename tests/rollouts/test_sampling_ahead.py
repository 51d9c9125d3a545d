"""Rollout steps that are sampled before they are trained on: with which weights, beside what, and across a resume."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from builders import FakeEngine, make_group, make_problems, make_rollout, small_stream

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.rollouts.sampled_step import SampledStep
from rloop_lightning.rollouts.sampler import SamplingCost
from rloop_lightning.rollouts.stream import NotEnoughGroupsError, RolloutStream
from rloop_lightning.types import Problem, Rollout, RolloutStep, SamplingParams

STEPS = 5


class Weighted(FakeEngine):
    """Writes the version of the weights that it has; `trained` is that of the policy."""

    trained = 0
    version = -1
    beside = False
    threads: set[str]

    def __init__(self, **settings: object) -> None:
        super().__init__(lambda problem, g, call: f"{g % 2}{self.version}", **settings)
        self.threads = set()

    def sync(self) -> None:
        self.version = self.trained

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        self.threads.add(threading.current_thread().name.split("_")[0])
        return super().generate(problems, n, sampling)


class Beside(Weighted):
    works_beside_updates = True


def train(stream: RolloutStream, engine: Weighted) -> Iterator[RolloutStep]:
    """The steps, each trained on before the next is requested."""
    for step in stream:
        yield step
        engine.trained += 1


def versions(step: RolloutStep) -> set[int]:
    return {int(rollout.text[1:]) for rollout in step.rollouts}


def told(steps: Sequence[RolloutStep]) -> list[tuple]:
    """What a step is, but for the time that it took."""
    return [
        (
            step.index,
            step.lag,
            [(one.problem_id, one.text, one.reward, one.sampling_logprobs.tolist()) for one in step.rollouts],
            step.batch.advantages.tolist(),
            {name: value for name, value in step.metrics.items() if not name.startswith("time/")},
        )
        for step in steps
    ]


@pytest.mark.parametrize("kind", [Weighted, Beside])
@pytest.mark.parametrize("staleness", [0, 1, 2, 4, 9])
def test_a_step_has_the_weights_of_so_many_steps_before(kind: type[Weighted], staleness: int) -> None:
    engine = kind()
    steps = list(train(small_stream(engine, staleness=staleness), engine))
    expected = [max(0, index - staleness) for index in range(STEPS)]
    assert [versions(step) for step in steps] == [{version} for version in expected]
    assert [step.lag for step in steps] == [index - version for index, version in enumerate(expected)]
    if staleness:
        assert [step.metrics["rollout/lag_steps"] for step in steps] == [step.lag for step in steps]
    assert engine.threads == ({"rollouts"} if kind is Beside and staleness else {"MainThread"})


def test_a_thread_gives_what_one_after_the_other_gives() -> None:
    found = []
    for engine in (Weighted(), Beside()):
        found.append(told(list(train(small_stream(engine, staleness=2), engine))))
    assert found[0] == found[1]


def test_the_next_step_is_generated_while_this_one_trains() -> None:
    began = threading.Event()
    updated = threading.Event()

    class Slow(Beside):
        def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
            if len(self.calls) == 1:  # the second step
                began.set()
                assert updated.wait(30)
            return super().generate(problems, n, sampling)

    stream = iter(small_stream(Slow(), steps=2, staleness=1))
    next(stream)
    assert began.wait(30)
    updated.set()
    assert versions(next(stream)) == {0}


def test_an_evaluation_waits_for_the_sampling_and_the_sampling_for_it() -> None:
    engine = Beside()
    generating: list[int] = []

    def alone(problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        generating.append(1)
        assert len(generating) == 1, "two at once"
        time.sleep(0.01)
        generating.pop()
        return FakeEngine.generate(engine, problems, n, sampling)

    engine.generate = alone  # type: ignore[method-assign]
    stream = small_stream(engine, staleness=2)
    sampler = stream.step_sampler.sampler
    for step in train(stream, engine):
        groups = sampler.sample(make_problems(2), 2, SamplingParams(8), SamplingCost())
        assert {rollout.text[1:] for group in groups for rollout in group.rollouts} == {str(engine.trained)}
        assert versions(step) == {max(0, step.index - 2)}


def test_updates_in_flight_reach_an_engine_that_generates() -> None:
    synced = threading.Event()

    class InFlight(Beside):
        takes_updates_in_flight = True

        def sync(self) -> None:
            super().sync()
            if self.trained == 1:
                synced.set()

        def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
            if len(self.calls) == 1:  # the second step, which began before the first was trained on
                assert synced.wait(30)
            return super().generate(problems, n, sampling)

    engine = InFlight()
    steps = list(train(small_stream(engine, steps=3, staleness=2, in_flight_updates=True), engine))
    assert [step.index for step in steps] == [0, 1, 2]
    assert versions(steps[1]) == {1}
    assert steps[1].lag == 1  # since it began: the engine does not tell of single tokens


@pytest.mark.parametrize("kind", [Weighted, Beside])
@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_resumed_stream_trains_on_what_was_sampled_ahead(kind: type[Weighted], done: int) -> None:
    engine = kind()
    expected = told(list(train(small_stream(engine, staleness=2), engine)))

    engine = kind()
    first = small_stream(engine, staleness=2)
    steps = train(first, engine)
    for _ in range(done):
        next(steps)
    engine.trained += 1
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = kind()
    resumed.trained = done
    stream = small_stream(resumed, staleness=2)
    stream.load_state_dict(torch.load(file, weights_only=True))
    rest = list(train(stream, resumed))
    assert told(rest) == expected[done:]
    assert len(resumed.calls) == max(0, STEPS - done - 2)  # nothing is generated twice
    assert stream.cost.tokens == 6 * 2 * STEPS


@pytest.mark.parametrize("kind", [Weighted, Beside])
def test_the_phase_ends_with_the_step_that_reaches_its_tokens(kind: type[Weighted]) -> None:
    for staleness in (0, 1, 3):
        engine = kind()
        stream = small_stream(engine, staleness=staleness, tokens=25)  # a step has 12
        assert len(list(train(stream, engine))) == 3
        assert len(engine.calls) == 3
        assert stream.tokens_spent


@pytest.mark.parametrize("kind", [Weighted, Beside])
@pytest.mark.parametrize("on_too_few_groups", ["end_phase", "stop"])
def test_a_step_with_too_few_groups_ends_the_phase_in_its_turn(kind: type[Weighted], on_too_few_groups: str) -> None:
    engine = kind()
    engine.write = lambda problem, g, call: f"{g % 2 if call < 2 else 1}0"
    explorer = DAPO(dynamic_sampling=True, max_generation_batches=2)
    stream = small_stream(engine, explorer=explorer, staleness=3, on_too_few_groups=on_too_few_groups)
    seen = []
    try:
        seen.extend(step.index for step in train(stream, engine))
        assert on_too_few_groups == "end_phase"
        assert len(stream.unused) == 6
        assert {rollout.versions.max() for group in stream.unused for rollout in group.rollouts} == {0}
    except NotEnoughGroupsError as error:
        assert on_too_few_groups == "stop"
        seen.append(error)
    assert seen[:2] == [0, 1]
    assert len(engine.calls) <= 4  # two of the step that ends the phase, and none after it
    assert "rollout step 3: only 0 of 6 problems" in stream.shortage


@pytest.mark.parametrize("kind", [Weighted, Beside])
def test_an_error_of_the_engine_is_raised_where_the_step_is_requested(kind: type[Weighted]) -> None:
    class Failing(kind):  # type: ignore[valid-type, misc]
        def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
            if len(self.calls) == 2:
                raise RuntimeError("lost")
            return super().generate(problems, n, sampling)

    engine = Failing()
    with pytest.raises(RuntimeError, match="lost"):
        list(train(small_stream(engine, staleness=1), engine))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]


def test_a_step_survives_its_state_with_every_field() -> None:
    rng = np.random.default_rng(0)
    full = replace(
        make_rollout("p1", [3, 4, 5], finish_reason="length"),
        text="\N{SNOWMAN}",
        prompt_ids=np.array([7, 8]),
        reward=0.1,
        success=True,
        check_fault="timeout",
        reward_parts={"format": 0.25},
        routed_experts=rng.integers(0, 8, (4, 2, 2)).astype(np.uint8),
        kept_tokens=np.array([1, 2, 3, 4], np.int32),
        kept_counts=np.array([1, 1, 2], np.int32),
        versions=np.array([2, 2, 3], np.int32),
    )
    short = replace(
        full,
        completion_ids=np.array([9]),
        sampling_logprobs=np.array([-0.5], np.float32),
        routed_experts=full.routed_experts[:2],
        kept_tokens=np.array([5], np.int32),
        kept_counts=np.array([1], np.int32),
        versions=np.array([3], np.int32),
        check_fault="",
    )
    groups = (make_group(full, short), make_group(replace(short, problem_id="p2"), replace(full, problem_id="p2")))
    problems = {group.problem.id: group.problem for group in groups}
    sampling = SamplingParams(9, 0.5, 3, 0.9, 11, ("x", "yz"), report_kept_tokens=False)
    step = SampledStep(4, 2, groups, (True, False), sampling, {"a": 1.5}, SamplingCost(1, 2, 3.0, 4.0))
    file = io.BytesIO()
    torch.save(step.state_dict(), file)
    file.seek(0)
    found = SampledStep.of(torch.load(file, weights_only=True), problems)
    assert replace(found, groups=()) == replace(step, groups=())
    for ours, theirs in zip(found.groups, groups, strict=True):
        assert ours.problem is theirs.problem
        for one, other in zip(ours.rollouts, theirs.rollouts, strict=True):
            for field in fields(Rollout):
                value, expected = getattr(one, field.name), getattr(other, field.name)
                if isinstance(expected, np.ndarray):
                    assert value.dtype == expected.dtype, field.name
                    assert value.tolist() == expected.tolist(), field.name
                elif field.name != "replayed":
                    assert value == expected, field.name
