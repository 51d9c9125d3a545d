"""The end of a stream whose next step is being sampled in a thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError

import pytest
from builders import FakeEngine, small_stream

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.rollouts.listener import StreamListener
from rloop_lightning.types import Problem, Rollout, SamplingParams


class Beside(FakeEngine):
    """Its second call lasts until it is cancelled, or until `over` is set; what it is told, and in which thread."""

    works_beside_updates = True

    def __init__(self, kept: int = 2, **settings: object) -> None:
        super().__init__(lambda problem, g, call: str(g % kept), **settings)
        self.reached, self.over, self.cancelled = threading.Event(), threading.Event(), threading.Event()

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        if len(self.calls) == 1:
            self.reached.set()
            assert self.over.wait(30)
            if self.cancelled.is_set():
                raise CancelledError
        return super().generate(problems, n, sampling)

    def cancel(self) -> None:
        self.cancelled.set()
        self.over.set()


class Deaf(Beside):
    """A cancel finds it between two requests."""

    def cancel(self) -> None:
        self.over.set()


def rollout_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]


@pytest.mark.parametrize("suspended", [True, False])
def test_closing_a_stream_cancels_what_is_generated(suspended: bool) -> None:
    engine = Beside()
    stream = small_stream(engine, staleness=1)
    steps = iter(stream)
    next(steps)
    assert engine.reached.wait(30)
    if not suspended:
        steps.close()
    stream.close()
    assert not rollout_threads()
    assert engine.cancelled.is_set()
    stream.close()


def test_a_step_that_is_between_two_requests_makes_no_other() -> None:
    engine = Deaf(kept=1)  # nothing can be trained on, so that a step would take all its requests
    engine.write = lambda problem, g, call: str(g % 2 if call == 0 else 0)
    stream = small_stream(engine, DAPO(dynamic_sampling=True, max_generation_batches=9), staleness=1)
    next(iter(stream))
    assert engine.reached.wait(30)
    stream.close()
    assert len(engine.calls) == 2
    assert not rollout_threads()


def test_a_stream_that_was_not_begun_can_be_closed() -> None:
    small_stream(Beside(), staleness=1).close()


def test_listeners_learn_of_sampling_in_its_thread_and_of_waiting_in_their_own() -> None:
    told: dict[str, set[str]] = {"sampling": set(), "waiting": set()}
    engine = Beside()

    class Listener(StreamListener):
        def sampling(self, **counts: int) -> None:
            told["sampling"].add(threading.current_thread().name.split("_")[0])

        def waiting(self) -> None:
            told["waiting"].add(threading.current_thread().name)
            engine.over.set()  # the second step ends once the trainer has waited for it

    steps = iter(small_stream(engine, listeners=[Listener()], staleness=1))
    next(steps)
    next(steps)
    steps.close()
    assert told == {"sampling": {"rollouts"}, "waiting": {"MainThread"}}
