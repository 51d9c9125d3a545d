"""The training data of an exploration, as a loader that Lightning can checkpoint at any batch.

A rollout step is generated when Lightning requests it, with the current policy. With a staleness of s, the s steps
after it are begun as well; if the engine works beside the updates, it generates the last of them meanwhile.

The stream has a length, so Lightning does not prefetch. A prefetched rollout step would come from an outdated policy.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict
from functools import partial
from time import perf_counter
from types import MappingProxyType
from typing import Any, Literal

from rloop_lightning.errors import RunFault
from rloop_lightning.rollouts.listener import StreamListener
from rloop_lightning.rollouts.sampled_step import SampledStep
from rloop_lightning.rollouts.sampler import SamplingCost
from rloop_lightning.rollouts.step_sampler import StepSampler
from rloop_lightning.rollouts.worker import Worker
from rloop_lightning.types import Group, RolloutStep

_log = logging.getLogger(__name__)

_TICK_S = 0.2  # between two looks at a step that is sampled in a thread

OnTooFewGroups = Literal["end_phase", "train", "stop"]


class NotEnoughGroupsError(RunFault):
    """Dynamic sampling reached its limit before it had enough groups for a rollout step.

    Args:
        metrics: the metrics of that step.
    """

    def __init__(self, message: str, metrics: Mapping[str, float] = MappingProxyType({})) -> None:
        super().__init__(message)
        self.metrics = metrics


class RolloutStream:
    """The rollout steps of one exploration.

    A step depends only on the policy's weights and on (seed, position), so a resumed run repeats it exactly. Updates in
    flight are the exception: which tokens have which weights depends on the clock.

    Args:
        step_sampler: samples a step.
        steps: rollout steps in the phase.
        tokens: generated completion tokens at which the phase ends, after the step that reaches them; None is no limit.
        on_too_few_groups: what to do if a step reaches its limit before it has P groups to train on: end the phase,
            train on the groups it has, or raise an error. With no group at all, `train` ends the phase.
        staleness: rollout steps that are generated ahead.
        in_flight_updates: give new weights to an engine that generates, in the middle of its completions.
        listeners: follow the sampling.

    Attributes:
        shortage: why the phase ended early, or was short of groups; empty if it was not.
        unused: the groups of the step that ended the phase. No step trains on them.
        newest: the metrics of the newest step, including one that had too few groups to train on.
    """

    def __init__(
        self,
        step_sampler: StepSampler,
        *,
        steps: int,
        tokens: int | None = None,
        on_too_few_groups: OnTooFewGroups = "end_phase",
        staleness: int = 0,
        in_flight_updates: bool = False,
        listeners: Sequence[StreamListener] = (),
    ) -> None:
        self.step_sampler = step_sampler
        self.steps = steps
        self.tokens = tokens
        self.on_too_few_groups = on_too_few_groups
        self.staleness = staleness
        self.in_flight_updates = in_flight_updates
        self.listeners = listeners
        self.shortage = ""
        self.unused: tuple[Group, ...] = ()
        self.newest: Mapping[str, float] = {}
        self.position = 0  # rollout steps yielded so far
        self.cost = SamplingCost()
        self._ahead: deque[Future[SampledStep]] = deque()  # the steps from `position` on
        self._worker: Worker | None = None
        self._steps_of: dict[int, int] = {}  # rollout steps that the engine's weights had trained on, by its version

    def __len__(self) -> int:
        return self.steps

    @property
    def tokens_spent(self) -> bool:
        """Whether the phase has generated its tokens."""
        return self.tokens is not None and self.cost.tokens >= self.tokens

    def __iter__(self) -> Iterator[RolloutStep]:
        engine = self.step_sampler.sampler.engine
        beside = self.staleness > 0 and engine.works_beside_updates
        engine.updates_in_flight = self.in_flight_updates
        with Worker(beside=beside, interrupt=engine.cancel) as self._worker:
            while self.position < self.steps and not self.tokens_spent:
                started = perf_counter()
                self._sample_ahead(self._worker)
                sampled = self._result(self._ahead.popleft())
                step = self._step(sampled, perf_counter() - started)
                if step is None:
                    return
                self.position += 1
                yield step

    def close(self) -> None:
        """Stop the sampling of steps that will not be trained on. Call it in any case when the phase ends."""
        if self._worker is not None:
            self._worker.stop()
        self.step_sampler.sampler.engine.updates_in_flight = False

    def state_dict(self) -> dict[str, Any]:
        """The stream's position and the steps sampled ahead, which Lightning saves in checkpoints."""
        ahead = [self._result(future).state_dict() for future in self._ahead]  # before what their sampling changes
        return {
            "position": self.position,
            **self.step_sampler.state_dict(),
            "cost": asdict(self.cost),
            **({"ahead": ahead} if ahead else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self.step_sampler.load_state_dict(state)
        self.cost = SamplingCost(**state["cost"])
        problems = {problem.id: problem for problem in self.step_sampler.problems}
        self._ahead.clear()
        for sampled in state.get("ahead", []):
            self._ahead.append(Future())
            self._ahead[-1].set_result(SampledStep.of(sampled, problems))

    def _sample_ahead(self, worker: Worker) -> None:
        """Begin to sample the steps that may be sampled with the current weights."""
        sampler = self.step_sampler.sampler
        if self.in_flight_updates and any(not future.done() for future in self._ahead):
            self._sync()
        first, last = self.position + len(self._ahead), min(self.position + self.staleness + 1, self.steps)
        for index in range(first, last):
            if self._is_enough():  # without updates in flight, it waits for the steps before this one
                return
            if index == first:
                self._sync()
            sample = partial(self.step_sampler.sample, index, self.position, partial(self._tell, worker))
            self._ahead.append(worker.submit(sample, sampler.turn))

    def _is_enough(self) -> bool:
        """Whether the phase ends with the steps that are sampled ahead, as far as it is known."""
        sampled = [self._result(future) for future in self._ahead if future.done() or not self.in_flight_updates]
        spent = self.cost.tokens + sum(step.cost.tokens for step in sampled)
        return (self.tokens is not None and spent >= self.tokens) or any(
            len(step.kept_groups) < self._needed(step) and not self._trains_on(step) for step in sampled
        )

    def _needed(self, sampled: SampledStep) -> int:
        """The groups that a step trains on, as it was when the step was sampled."""
        return sampled.wanted or self.step_sampler.problems_per_step

    def _result(self, future: Future[SampledStep]) -> SampledStep:
        while not wait([future], _TICK_S).done:
            for listener in self.listeners:
                listener.waiting()
        self._note_version()  # an evaluation may have given the engine the weights of now
        return future.result().with_steps(self._steps_of)

    def _sync(self) -> None:
        self.step_sampler.sampler.sync()
        self._note_version()

    def _note_version(self) -> None:
        self._steps_of.setdefault(self.step_sampler.sampler.engine.version, self.position)

    def _tell(self, worker: Worker, **counts: int) -> None:
        worker.check()
        for listener in self.listeners:
            listener.sampling(**counts)

    def _step(self, sampled: SampledStep, waited_s: float) -> RolloutStep | None:
        """The step to train on. None if it has too few groups, which ends the phase."""
        self._add_cost(sampled.cost)
        lag = sampled.lag
        ahead = {"rollout/lag_steps": lag, "time/wait_s": waited_s} if self.staleness else {}
        self.newest = {**sampled.metrics, **ahead}
        for listener in self.listeners:
            listener.sampled(sampled.index, sampled.groups, self.newest)
        kept = sampled.kept_groups
        needed = self._needed(sampled)
        if len(kept) < needed and self._ends_with(sampled):
            return None
        explorer = self.step_sampler.explorer
        trained = explorer.replayed(kept[:needed], sampled.sampling)
        batch = explorer.make_batch(trained, sampled.sampling)
        rollouts = tuple(rollout for group in trained for rollout in group.rollouts)
        steps = self._expected_steps(self.position + 1)
        return RolloutStep(sampled.index, sampled.groups, batch, self.newest, rollouts, lag, steps)

    def _expected_steps(self, done: int) -> int:
        """The rollout steps that the phase will have, if the others generate as many tokens as those done."""
        if self.tokens is None or not self.cost.tokens:
            return self.steps
        return min(self.steps, max(done, math.ceil(done * self.tokens / self.cost.tokens)))

    def _ends_with(self, sampled: SampledStep) -> bool:
        """Whether the phase ends with this step, which has too few groups.

        Raises:
            NotEnoughGroupsError: the run should stop.
        """
        kept = len(sampled.kept_groups)
        why, needed = self.step_sampler.shortage(sampled), self._needed(sampled)
        self.shortage = f"rollout step {sampled.index + 1}: {why}; the step needs {needed}"
        if self.on_too_few_groups == "stop":
            raise NotEnoughGroupsError(self.shortage, self.newest)
        if self._trains_on(sampled):
            _log.warning(f"{self.shortage}; it trains on {kept}")
            return False
        self.unused = sampled.groups
        return True

    def _trains_on(self, sampled: SampledStep) -> bool:
        """Whether a step with too few groups is trained on."""
        return self.on_too_few_groups == "train" and any(sampled.kept)

    def _add_cost(self, cost: SamplingCost) -> None:
        for name, value in asdict(cost).items():
            setattr(self.cost, name, getattr(self.cost, name) + value)
