"""The watch of a rank, with several in one process whose exits are only noted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from time import monotonic, sleep

import pytest
import torch

from rloop_lightning.errors import RunFault
from rloop_lightning.system import rank_watch
from rloop_lightning.system.rank_watch import Fault, JobStore, RankWatch, is_lost_connection, told
from rloop_lightning.system.ranks import ALONE, Ranks


class Watches:
    """The watches of a job's ranks.

    Args:
        size: the number of ranks.
        lost: what rank 0 knows of lost ranks.
        hang_s: the timeout of each rank.
    """

    def __init__(self, size: int, lost: Callable[[], Fault | None] = lambda: None, hang_s: float = 60.0) -> None:
        self.exits: dict[int, int] = {}
        self.said: dict[int, list[str]] = {rank: [] for rank in range(size)}
        self.ended: list[int] = []
        store = JobStore("127.0.0.1", 0, serves=True)
        self.ranks = []
        self.threads: dict[int, int] = {}  # ranks by their thread that exits
        for rank in range(size):
            own = store if rank == 0 else JobStore("127.0.0.1", store.port, serves=False)
            watch = RankWatch(
                rank,
                size,
                own,
                hang_s=hang_s,
                lost=lost if rank == 0 else lambda: None,
                before_exit=lambda rank=rank: self._exits(rank),
                tell=self.said[rank].append,
            )
            self.ranks.append(watch)

    def _exits(self, rank: int) -> None:
        self.ended.append(rank)
        self.threads[threading.get_ident()] = rank

    def exited(self, *ranks: int) -> None:
        until = monotonic() + 30
        while not self.exits.keys() >= set(ranks):
            assert monotonic() < until, self.exits
            sleep(0.01)


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watches]]:
    made: list[Watches] = []

    def leave(code: int) -> None:
        for one in made:
            if (rank := one.threads.get(threading.get_ident())) is not None:
                one.exits[rank] = code
                one.ranks[rank].stop()  # ends this thread

    def make(*args: object, **kwargs: object) -> Watches:
        made.append(Watches(*args, **kwargs))  # type: ignore[arg-type]  # passed on
        return made[-1]

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(rank_watch, "_EVERY_S", 0.1)
    monkeypatch.setattr(rank_watch, "LOST_AFTER_S", 1.0)
    monkeypatch.setattr(rank_watch, "_LEAVE_S", 0.2)
    yield make
    for one in made:
        for watch in one.ranks:
            watch.stop()


def test_a_fault_of_one_rank_ends_all_and_rank_0_tells_it(watches: Callable[..., Watches]) -> None:
    job = watches(3)
    job.ranks[2].fail("rank 2: out of memory", code=5)
    job.exited(0, 1, 2)
    assert job.exits == {0: 5, 1: 5, 2: 5}
    assert job.said == {0: ["rank 2: out of memory"], 1: [], 2: []}
    assert sorted(job.ended) == [0, 1, 2]


def test_the_first_fault_stays(watches: Callable[..., Watches]) -> None:
    job = watches(2)
    job.ranks[0].fail("the cause")
    job.ranks[0].fail("what came of it")
    job.exited(0, 1)
    assert job.said[0] == ["the cause"]


def test_a_rank_that_goes_silent_is_lost(watches: Callable[..., Watches]) -> None:
    job = watches(3)
    job.ranks[2].stop()  # its thread ends, as if the process had been killed at once
    job.exited(0, 1)
    assert job.said[0] == ["rank 2 was killed, or its machine can't be reached: no sign of life for 1 s"]
    assert job.exits == {0: 1, 1: 1}


def test_rank_1_tells_of_a_lost_rank_0(watches: Callable[..., Watches]) -> None:
    job = watches(3)
    sleep(0.2)
    job.ranks[0].stop()
    job.exited(1, 2)
    assert [bool(job.said[rank]) for rank in range(3)] == [False, True, False]
    assert "rank 0 was killed, or its machine can't be reached" in job.said[1][0]


def test_a_process_that_has_died_is_lost_at_once(watches: Callable[..., Watches]) -> None:
    gone = Fault("rank 1 (process 7) was killed by SIGKILL", rank=1, lost=True)
    job = watches(2, lost=lambda: gone)
    job.exited(0)
    assert job.said[0] == [gone.text]


def test_a_rank_without_progress_hangs_but_not_one_that_waits(
    watches: Callable[..., Watches], capfd: pytest.CaptureFixture[str]
) -> None:
    job = watches(3, hang_s=0.5)
    with job.ranks[0].waiting(), job.ranks[2].waiting():
        job.exited(0, 1, 2)
    assert job.said[0][0].startswith("rank 1 (process ")
    assert "has made no progress for " in job.said[0][0]
    assert "the stacks of all ranks are above" in job.said[0][0]
    said = capfd.readouterr().err
    assert all(f"rank {rank} (process" in said for rank in range(3))
    assert "test_rank_watch.py" in said


def test_a_rank_that_makes_progress_does_not_hang(watches: Callable[..., Watches]) -> None:
    job = watches(2, hang_s=0.6)
    for _ in range(20):
        for watch in job.ranks:
            watch.beat()
        sleep(0.05)
    assert job.exits == {}


def test_the_end_of_the_run_waits_until_all_have_left(watches: Callable[..., Watches]) -> None:
    job = watches(3)
    job.ranks[1].stop()  # it has left by itself; rank 2 waits for a message
    job.ranks[0].end(143)
    assert job.exits == {2: 143}
    assert all(not said for said in job.said.values())


def test_errors_are_told_by_their_message_or_type() -> None:
    assert told(RunFault("the reward is wrong")) == "the reward is wrong"
    assert told(ValueError("no number")) == "ValueError: no number"
    assert told(MemoryError()) == "MemoryError"
    assert is_lost_connection(RuntimeError("[/gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert not is_lost_connection(RuntimeError("shape mismatch"))
    assert not is_lost_connection(ValueError("gloo"))


def test_one_process_needs_no_other() -> None:
    tensor = torch.ones(2)
    ALONE.send("to nobody")
    ALONE.broadcast_tensors([tensor])
    assert ALONE.gather(3) == [3]
    assert ALONE.share(5) == (0, 5)
    assert ALONE.leads
    assert not ALONE.several


@pytest.mark.parametrize(("count", "size"), [(0, 2), (1, 3), (7, 3), (8, 2)])
def test_shares_cover_all_items_once(count: int, size: int) -> None:
    shares = [Ranks(rank, size).share(count) for rank in range(size)]
    assert [i for begin, end in shares for i in range(begin, end)] == list(range(count))
    assert max(end - begin for begin, end in shares) - min(end - begin for begin, end in shares) <= 1
