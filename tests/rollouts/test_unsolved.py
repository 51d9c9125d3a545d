"""Training on unsolved problems alone: which groups are left out, by hand and against a slow count; across a resume."""

from __future__ import annotations

import io
from collections import defaultdict

import pyarrow as pa
import pytest
import torch
from builders import make_problems, make_sampler, make_stream

from rloop_lightning.algorithms import ALGORITHMS
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.cli.registry import find_class
from rloop_lightning.rollouts.stream import NotEnoughGroupsError, RolloutStream
from rloop_lightning.rollouts.unsolved import SuccessCounts


def successes_of(problem: int, call: int) -> int:
    """Of two rollouts. p0 is always right, p1 from the third call on, p2 never, the others now and then."""
    return {0: 2, 1: int(call >= 2), 2: 0}.get(problem, (7 * problem + 3 * call) % 3 % 2)


def stream_of(explorer: Algorithm, **settings: object) -> RolloutStream:
    return make_stream(
        make_sampler(lambda problem, g, call: "1x" if g < successes_of(problem, call) else "0x"),
        explorer,
        make_problems(8),
        **{"problems_per_step": 3, "rollouts_per_problem": 2, "steps": 6, "on_too_few_groups": "train", **settings},
    )


def expected_groups(steps: list, below: float, *, mixed: bool = False) -> list[tuple[list[str], int, int]]:
    """Of each step: the problems that it trains on, the groups left out, and the problems that are unsolved after it.

    By going through all groups in order, with a list of each problem's successes that were trained on or left out.
    """
    seen: dict[str, list[bool]] = defaultdict(list)

    def unsolved(problem_id: str) -> bool:
        so_far = seen[problem_id]
        return not any(so_far) or sum(so_far) / len(so_far) < below

    found = []
    for step in steps:
        kept, out = [], 0
        for group in step.groups:
            successes = [rollout.success for rollout in group.rollouts]
            if not unsolved(group.problem.id):
                out += 1
            elif not mixed or len(set(successes)) == 2:
                kept.append(group.problem.id)
                if len(kept) > 3:  # more than the step trains on: its successes do not count
                    continue
            seen[group.problem.id] += successes
        found.append((kept[:3], out, sum(unsolved(f"p{number}") for number in range(8))))
    return found


def told(step) -> tuple[list[str], int, int]:
    metrics = step.metrics
    trained = [rollout.problem_id for rollout in step.rollouts[::2]]
    return trained, metrics["rollout/solved_groups"], metrics["rollout/unsolved_problems"]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("below", [0.0, 0.3, 0.6])
def test_a_step_trains_on_problems_that_were_unsolved_before_it(below: float, mixed: bool) -> None:
    explorer = DAPO(unsolved_only=True, unsolved_below=below, dynamic_sampling=mixed, max_generation_batches=3)
    steps = list(stream_of(explorer))
    assert [told(step) for step in steps] == expected_groups(steps, below, mixed=mixed)
    assert len(steps) > 1
    assert any(step.metrics["rollout/solved_groups"] for step in steps)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_is_an_option_of_every_algorithm(name: str) -> None:
    settings = {"updates_per_step": 1, "dynamic_sampling": False}
    steps = list(stream_of(find_class("algorithms", name, Algorithm)(unsolved_only=True, **settings)))
    assert [told(step) for step in steps] == expected_groups(steps, 0.0)
    everything = list(stream_of(find_class("algorithms", name, Algorithm)(**settings)))
    assert all("rollout/solved_groups" not in step.metrics for step in everything)
    assert [len(step.batch) for step in everything] == [6] * 6


def test_a_problem_that_comes_twice_in_a_call_is_solved_by_its_first_group() -> None:
    """Two problems and four groups a step, all right: the first group of each is trained on."""
    stream = make_stream(
        make_sampler(lambda problem, g, call: "1x"),
        DAPO(unsolved_only=True, dynamic_sampling=False),
        make_problems(2),
        problems_per_step=4,
        rollouts_per_problem=2,
        steps=1,
        on_too_few_groups="train",
    )
    (step,) = stream
    assert sorted(told(step)[0]) == ["p0", "p1"]
    assert told(step)[1:] == (2, 0)
    assert len(step.groups) == 4  # nothing is left, so it does not go on to its limit of 40


def test_groups_beyond_those_that_a_step_trains_on_do_not_count() -> None:
    """The first call gives nothing, so the second asks for more groups than are missing, and all of them are mixed."""
    stream = make_stream(
        make_sampler(lambda problem, g, call: "1x" if call and g == 0 else "0x"),
        DAPO(unsolved_only=True),
        make_problems(12),
        problems_per_step=2,
        rollouts_per_problem=2,
        steps=1,
    )
    (step,) = stream
    assert len(step.groups) > 4
    assert len(told(step)[0]) == 2
    assert told(step)[2] == 12 - 2


def test_where_nothing_is_left_the_phase_ends_and_says_so() -> None:
    explorer = DAPO(unsolved_only=True, dynamic_sampling=False, max_generation_batches=2)
    stream = stream_of(explorer, steps=40, on_too_few_groups="end_phase")
    steps = list(stream)
    assert 0 < len(steps) < 40
    left = int(stream.newest["rollout/unsolved_problems"])
    groups, solved = len(stream.unused), int(stream.newest["rollout/solved_groups"])
    assert stream.shortage == (
        f"rollout step {len(steps) + 1}: only {groups - solved} of {groups} groups can be trained on: {solved} are of "
        f"problems that were solved before (--algo.unsolved_only); {left} of 8 problems are unsolved; the step needs 3"
    )
    again = stream_of(explorer, steps=40, on_too_few_groups="stop")
    with pytest.raises(NotEnoughGroupsError, match="are of problems that were solved before"):
        list(again)


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_resumed_stream_leaves_out_the_same_groups(staleness: int) -> None:
    def new() -> RolloutStream:
        explorer = DAPO(unsolved_only=True, unsolved_below=0.3, dynamic_sampling=False, max_generation_batches=3)
        return stream_of(explorer, staleness=staleness)

    whole = [told(step) for step in new()]
    stream = new()
    iterator = iter(stream)
    first = [told(next(iterator)) for _ in range(2)]
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    resumed = new()
    # A scripted engine counts its calls; a real one depends on weights and seeds alone.
    resumed.step_sampler.sampler.engine.calls.extend(stream.step_sampler.sampler.engine.calls)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert first + [told(step) for step in resumed] == whole


def test_pools_of_earlier_rounds_count() -> None:
    counts = SuccessCounts(["a", "b", "c"])
    table = pa.table({"problem_id": ["b", "gone", "a"], "rollouts": [10, 5, 4], "successes": [1, 5, 0]})
    counts.add_pools(table)
    assert [counts.is_unsolved(name, below=0.0) for name in "abc"] == [True, False, True]
    assert [counts.is_unsolved(name, below=0.1) for name in "abc"] == [True, False, True]
    assert [counts.is_unsolved(name, below=0.11) for name in "abc"] == [True, True, True]
    assert counts.unsolved(below=0.0) == 2


def test_a_problem_at_the_threshold_is_solved() -> None:
    """0.28 * 25 is more than 7, though 7 / 25 is 0.28."""
    counts = SuccessCounts(["a", "b"])
    counts.add_pools(pa.table({"problem_id": ["a"], "rollouts": [25], "successes": [7]}))
    assert [counts.is_unsolved(name, below=0.28) for name in "ab"] == [False, True]
    assert counts.is_unsolved("a", below=0.281)


def test_settings_without_the_rule_are_refused() -> None:
    assert DAPO(unsolved_below=0.1, unsolved_over="run").invalid() == [
        "--algo.unsolved_below needs --algo.unsolved_only true, got 0.1",
        "--algo.unsolved_over needs --algo.unsolved_only true, got run",
    ]
    assert DAPO(unsolved_only=True, unsolved_below=1.0).invalid() == [
        "--algo.unsolved_below: expected a number >= 0 and < 1, got 1.0"
    ]
