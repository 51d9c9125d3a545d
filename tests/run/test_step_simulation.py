"""The simulation of rollout steps: cases with known answers, and a slow simulation in small steps of time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rloop_lightning.run.step_simulation import (
    Rates,
    Sizes,
    StepWork,
    decoding_seconds,
    run_steps,
    step_work,
)


def sizes(**changes: object) -> Sizes:
    given = {"problems": 8, "rollouts": 4, "trained": 1.0, "engines": 1, "rows": 8, "ranks": 1}
    return Sizes(**{**given, **changes})  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("rows", [1, 3, 32, 1000])
def test_one_engine_takes_the_sum_of_all_lengths(rows: int) -> None:
    lengths = list(range(1, 33))
    (found,) = decoding_seconds(lengths, sizes(rows=rows), Rates(generate=16, update=1), [1.0])
    assert found == pytest.approx(sum(lengths) / 16)


@pytest.mark.parametrize(("rollouts", "engines", "rows", "waves"), [(1, 4, 8, 1), (4, 4, 4, 2), (8, 1, 8, 4)])
def test_rows_of_equal_lengths_end_in_waves(rollouts: int, engines: int, rows: int, waves: int) -> None:
    spread = sizes(problems=32 // rollouts, rollouts=rollouts, engines=engines, rows=rows)
    found = decoding_seconds([60] * 32, spread, Rates(generate=math.inf, row=20, update=1), [1.0] * engines)
    assert found == pytest.approx([waves * 60 / 20] * engines)


def test_a_rollout_alone_is_bound_by_its_own_rate_and_many_by_the_engine() -> None:
    rates = Rates(generate=40, row=20, update=1)
    for alive, speed in ((1, 20), (2, 20), (4, 10)):
        (found,) = decoding_seconds([60] * alive, sizes(rollouts=1), rates, [1.0])
        assert found == pytest.approx(60 / speed)
    # Four at 10 tokens/s for 3 s; then one of 90 tokens alone, at 20.
    (found,) = decoding_seconds([30, 30, 30, 90], sizes(rollouts=1), rates, [1.0])
    assert found == pytest.approx(3 + 60 / 20)


def in_small_steps(lengths: list[int], given: Sizes, rates: Rates, slow: list[float], dt: float = 0.001) -> list[float]:
    """Independent of the code under test: each engine's rollouts in a list, a millisecond at a time."""
    waiting = [lengths[start : start + given.rollouts] for start in range(0, len(lengths), given.rollouts)]
    places = max(1, 2 * given.rows * given.engines // given.rollouts)
    engines: list[list[list[float]]] = [[] for _ in range(given.engines)]  # [tokens left, request]
    open_, number, now = {}, 0, 0.0
    ends = [0.0] * given.engines
    while waiting or open_:
        while waiting and len(open_) < places:
            request = waiting.pop(0)
            open_[number] = len(request)
            min(engines, key=len).extend([float(length), number] for length in request)
            number += 1
        now += dt
        for place, rows in enumerate(engines):
            live = rows[: given.rows]
            speed = min(rates.row, rates.generate / max(len(live), 1)) / slow[place]
            for row in live:
                row[0] -= dt * speed
                if row[0] <= 0:
                    open_[int(row[1])] -= 1
                    ends[place] = now
            engines[place][:] = [row for row in rows if row[0] > 0]
        open_ = {name: count for name, count in open_.items() if count}
    return ends


@pytest.mark.parametrize("seed", range(4))
def test_the_simulation_agrees_with_one_in_small_steps_of_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, 48).tolist()
    given = sizes(problems=12, rollouts=4, engines=3, rows=8)  # all requests are under way at the beginning
    rates, slow = Rates(generate=50, row=17, update=1), [1.0, 2.0, 1.0]
    found = decoding_seconds(lengths, given, rates, slow)
    assert found == pytest.approx(in_small_steps(lengths, given, rates, slow), abs=0.15)


def test_a_request_goes_to_the_engine_that_has_fewest_rollouts_by_then() -> None:
    """Four are under way: two wait behind the long one and its neighbour; the last two go to the other engine."""
    given = sizes(problems=6, rollouts=1, engines=2, rows=1)
    assert decoding_seconds([10, 1, 1, 1, 1, 1], given, Rates(1, update=1), [1.0, 1.0]) == pytest.approx([11, 4])


def works(generate: list[float], update: list[float], count: int = 40) -> list[StepWork]:
    return [
        StepWork(generate[place % len(generate)], update[place % len(update)], generate[place % len(generate)] / 2)
        for place in range(count)
    ]


def test_without_staleness_a_step_is_the_sum_of_its_parts() -> None:
    found = run_steps(works([3.0], [1.0]), 0, push_s=0.5)
    assert found.step_s == pytest.approx(4.5)
    assert found.waiting == pytest.approx(3.5 / 4.5)
    assert found.busy == pytest.approx(3 / 4.5 / 2)


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize(("generate", "update", "step"), [(2.0, 2.0, 2.0), (3.0, 1.0, 3.0), (1.0, 3.0, 3.0)])
def test_a_step_ahead_overlaps_generation_and_update(
    generate: float, update: float, step: float, in_flight: bool
) -> None:
    found = run_steps(works([generate], [update]), 1, push_s=0.0, in_flight=in_flight)
    assert found.step_s == pytest.approx(step)
    assert found.waiting == pytest.approx(1 - update / step)
    assert found.busy == pytest.approx(generate / step / 2)


def test_a_push_between_steps_adds_its_time() -> None:
    assert run_steps(works([3.0], [1.0]), 1, push_s=0.5).step_s == pytest.approx(3.5)


def test_more_steps_ahead_even_out_only_with_updates_in_flight() -> None:
    """Generations of 1 and 3 s beside updates of 2 s: waiting for both each time takes 2 and 3 s."""
    uneven = works([1.0, 3.0], [2.0])
    for staleness in (1, 2, 4):
        assert run_steps(uneven, staleness, push_s=0.0).step_s == pytest.approx(2.5)
    for staleness in (2, 4):
        assert run_steps(uneven, staleness, push_s=0.0, in_flight=True).step_s == pytest.approx(2.0)


def test_stragglers_slow_down_the_engines_and_all_ranks() -> None:
    given, lengths = sizes(ranks=4, trained=0.5), [8] * 32
    fast = step_work(lengths, given, Rates(64, update=2, reward_s=0.1, metrics_s=0.2), np.random.default_rng(0))
    assert (fast.generate_s, fast.update_s) == pytest.approx((256 / 64 + 3.2, 128 / 8 + 6.4))
    assert fast.decoding_s == 256 / 64
    slow = Rates(64, update=2, straggler_share=1.0, straggler_slowdown=3.0)
    all_slow = step_work(lengths, given, slow, np.random.default_rng(0))
    assert (all_slow.generate_s, all_slow.update_s) == pytest.approx((3 * 256 / 64, 3 * 128 / 8))
    some = Rates(64, update=2, straggler_share=0.3, straggler_slowdown=3.0)
    rng = np.random.default_rng(0)
    updates = [step_work(lengths, given, some, rng).update_s for _ in range(300)]
    assert set(updates) == {16.0, 48.0}
    assert np.mean(np.array(updates) > 16) == pytest.approx(1 - 0.7**4, abs=0.06)
