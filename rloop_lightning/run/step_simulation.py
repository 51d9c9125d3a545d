"""The time of rollout steps, simulated: generation spread over engines, updates, rollouts ahead of them, stragglers.

    steps = [sampled_step(rng, lengths, sizes) for _ in range(count)]
    works = [step_work(step, sizes, rates, rng) for step in steps]
    times = run_steps(works, staleness=1, push_s=rates.push_s)
    times.step_s, times.waiting, times.busy

An engine decodes up to `rows` rollouts at once. Each of its live rollouts goes on by `min(row, generate / live)` tokens
per second: few are bound by the time of a step of the model, many by the engine's arithmetic. Others begin as they end.
The requests of a step, one for the rollouts of a problem, go to the engine with the fewest rollouts, and at most twice
as many are under way as the engines decode at once, as with --engine vllm (engines/vllm/generation.py).

Steps follow each other as in rollouts/stream.py. One step is generated at a time. The numbers are drawn from `rng`
alone, so a seed gives the same times.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

ENDS = 5
"""Steps at the beginning and at the end of a simulated run that do not count."""

_ASKED_PER_ROW = 2  # rollouts that an engine has for each that it decodes


@dataclass(frozen=True)
class Sizes:
    """What a rollout step consists of, and what it runs on.

    Args:
        problems: groups that are generated.
        rollouts: of a group.
        trained: share of the rollouts that is trained on.
        engines: that generate.
        rows: rollouts that an engine decodes at once.
        ranks: that train.
    """

    problems: int
    rollouts: int
    trained: float
    engines: int
    rows: int
    ranks: int


@dataclass(frozen=True)
class Rates:
    """Measured rates.

    Args:
        generate: tokens per second of an engine with many live rollouts.
        row: tokens per second of a rollout that is alone.
        update: completion tokens per second of one rank's updates.
        push_s: seconds in which the engines take new weights and generate nothing.
        reward_s: seconds of the reward for each rollout, after its step is generated.
        metrics_s: seconds of all else for each rollout, after its update.
        straggler_share: probability that an engine or a rank is slow in a step.
        straggler_slowdown: how many times longer a slow one takes.
    """

    generate: float
    update: float
    row: float = math.inf
    push_s: float = 0.0
    reward_s: float = 0.0
    metrics_s: float = 0.0
    straggler_share: float = 0.0
    straggler_slowdown: float = 1.0


@dataclass(frozen=True)
class StepWork:
    """Seconds of one rollout step.

    Args:
        generate_s: of its generation, with the reward.
        update_s: of its update.
        decoding_s: of its generation if all engines had as many rollouts as they decode at once, all the time.
    """

    generate_s: float
    update_s: float
    decoding_s: float


@dataclass(frozen=True)
class StepTimes:
    """What the steps of a run take in the mean.

    Args:
        step_s: seconds of a step.
        waiting: share of the time in which the trainer waits for rollouts or pushes weights.
        busy: tokens that the engines generate, as a share of what they could with many rollouts all the time.
    """

    step_s: float
    waiting: float
    busy: float


def step_work(lengths: Sequence[int], sizes: Sizes, rates: Rates, rng: np.random.Generator) -> StepWork:
    """The work of a step.

    Args:
        lengths: tokens of each completion, problem by problem.
    """
    slow_engines = _slowness(sizes.engines, rates, rng)
    slowest_rank = max(_slowness(sizes.ranks, rates, rng))
    decoding = decoding_seconds(lengths, sizes, rates, slow_engines)
    count = len(lengths)
    tokens = sum(lengths) * sizes.trained
    return StepWork(
        generate_s=max(decoding) + rates.reward_s * count,
        update_s=tokens / (rates.update * sizes.ranks) * slowest_rank + rates.metrics_s * count,
        decoding_s=sum(lengths) / (rates.generate * sizes.engines),
    )


def decoding_seconds(lengths: Sequence[int], sizes: Sizes, rates: Rates, slow: Sequence[float]) -> list[float]:
    """Seconds until each engine has decoded its last token, if all requests are there at the beginning.

    Args:
        lengths: tokens of each completion, problem by problem.
        slow: how many times longer each engine takes.
    """
    engines = [_Engine(sizes.rows, rates.generate / times, rates.row / times) for times in slow]
    size = min(sizes.rollouts, sizes.rows)  # rollouts of a request
    requests = deque(lengths[start : start + size] for start in range(0, len(lengths), size))
    places = max(1, _ASKED_PER_ROW * sizes.rows * sizes.engines // size)
    left: dict[int, int] = {}  # rollouts of each request that are not done
    numbers = itertools.count()
    events: list[tuple[float, int, int]] = []  # time, engine, and how often the engine had changed by then

    def ask(now: float) -> None:
        number, request = next(numbers), requests.popleft()
        left[number] = len(request)
        place = min(range(len(engines)), key=lambda one: engines[one].rollouts)
        engines[place].take(now, request, number)
        heapq.heappush(events, (engines[place].next_end, place, engines[place].changes))

    for _ in range(min(places, len(requests))):
        ask(0.0)
    while events:
        now, place, changes = heapq.heappop(events)
        engine = engines[place]
        if changes != engine.changes:
            continue
        request = engine.end_one(now)
        if engine.rollouts:
            heapq.heappush(events, (engine.next_end, place, engine.changes))
        left[request] -= 1
        if not left[request] and requests:
            ask(now)
    return [engine.now for engine in engines]


class _Engine:
    """Decodes rollouts, all live ones at the same speed.

    Attributes:
        rollouts: that it has, live or waiting.
        changes: how often its live rollouts changed.
        now: the time of its last change, seconds.
    """

    def __init__(self, rows: int, generate: float, row: float) -> None:
        self.rollouts = 0
        self.changes = 0
        self.now = 0.0
        self._rows, self._generate, self._row = rows, generate, row
        self._live: list[tuple[float, int]] = []  # where each ends, in tokens that a live rollout has got since 0
        self._waiting: deque[tuple[int, int]] = deque()
        self._tokens = 0.0  # that a rollout that is live since 0 would have got

    @property
    def next_end(self) -> float:
        """The time when the next rollout ends, if nothing changes before."""
        return self.now + (self._live[0][0] - self._tokens) / self._speed

    def take(self, now: float, lengths: Sequence[int], request: int) -> None:
        if self._live:
            self._tokens += (now - self.now) * self._speed
        self.rollouts += len(lengths)
        self._waiting.extend((length, request) for length in lengths)
        self._change(now)

    def end_one(self, now: float) -> int:
        """End the rollout that is due. Returns its request."""
        self._tokens, request = heapq.heappop(self._live)
        self.rollouts -= 1
        self._change(now)
        return request

    def _change(self, now: float) -> None:
        self.now = now
        self.changes += 1
        while self._waiting and len(self._live) < self._rows:
            length, request = self._waiting.popleft()
            heapq.heappush(self._live, (self._tokens + length, request))

    @property
    def _speed(self) -> float:
        return min(self._row, self._generate / len(self._live))


def run_steps(works: Sequence[StepWork], staleness: int, push_s: float, *, in_flight: bool = False) -> StepTimes:
    """The mean times of steps in a run, without its beginning and its end.

    Args:
        works: the work of each step; more than twice `ENDS`.
        staleness: steps that are generated ahead (--loop.staleness); below `ENDS`.
        push_s: seconds of a push of weights.
        in_flight: whether engines take weights in the middle of a step (--loop.in_flight_updates).
    """
    begins = list(_begins(works, staleness, push_s, in_flight=in_flight))
    first, last = ENDS, len(works) - ENDS
    span = begins[last] - begins[first]
    counted = works[first:last]
    # With rollouts ahead, other steps are generated in this time; their number is the same.
    decoding = sum(work.decoding_s for work in works[first + staleness : last + staleness])
    updating = sum(work.update_s for work in counted)
    return StepTimes(span / len(counted), max(0.0, 1 - updating / span), min(1.0, decoding / span))


def _begins(works: Sequence[StepWork], staleness: int, push_s: float, *, in_flight: bool) -> Iterator[float]:
    """When the trainer asks for each step, seconds."""
    now = 0.0
    generated: list[float] = []  # when each step is there
    for place, work in enumerate(works):
        yield now
        wanted = range(len(generated), min(place + staleness + 1, len(works)))
        if wanted:
            if generated and not in_flight:  # new weights only between steps
                now = max(now, generated[-1])
            now += push_s
            generated = [end + push_s if end + push_s > now else end for end in generated]  # those under way pause
        for index in wanted:
            begin = max([now, *generated[-1:]])
            generated.append(begin + works[index].generate_s)
        now = max(now, generated[place]) + work.update_s


def _slowness(count: int, rates: Rates, rng: np.random.Generator) -> list[float]:
    """How many times longer each of some engines or ranks takes in a step."""
    slow = rng.random(count) < rates.straggler_share
    return np.where(slow, rates.straggler_slowdown, 1.0).tolist()
