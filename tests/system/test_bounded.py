"""Work in a copy of the process: its values and refusals come back, and so does the limit that it exceeded."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rloop_lightning.system.bounded import LimitError, Limits, bounded

LIMITS = Limits(cpu_s=1, memory_mb=128)


def forever() -> Iterator[int]:
    yield 1
    while True:
        pass


def too_much() -> Iterator[int]:
    yield len("a" * 2**30)


def one_by_one() -> Iterator[int]:
    kept: list[str] = []
    while True:
        kept.append("a" * 2**20)
        yield len(kept)


def crash() -> Iterator[int]:
    ctypes.string_at(0)
    yield 1


def fail() -> Iterator[int]:
    yield 1 // 0


def leave() -> Iterator[int]:
    os._exit(7)
    yield 1


def test_values_come_back_in_order() -> None:
    values: list[Any] = [1, "\ud800\n", {"a": [None, 0.5]}, []]
    assert bounded(lambda: values, LIMITS) == values
    assert bounded(lambda: range(20_000), LIMITS, together=1000) == list(range(20_000))
    assert bounded(lambda: ["a" * 10**6] * 3, LIMITS) == ["a" * 10**6] * 3
    assert bounded(list, LIMITS) == []


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (forever, "took more than 1 s of CPU time"),
        (too_much, "needs more than 128 MiB of memory"),
        (one_by_one, "needs more than 128 MiB of memory"),
        (crash, r"crashed \(SIGSEGV\)"),
        (fail, r"failed \(ZeroDivisionError: integer division"),
        (leave, r"crashed \(exit code 7\)"),
    ],
)
def test_a_limit_ends_the_work_and_is_named(work: Any, message: str) -> None:
    with pytest.raises(LimitError, match=message):
        bounded(work, LIMITS)


def test_what_came_before_the_limit_is_known() -> None:
    with pytest.raises(LimitError) as ended:
        bounded(forever, LIMITS)
    assert ended.value.values == [1]


def test_many_values_may_take_longer_together() -> None:
    def busy() -> Iterator[int]:
        for number in range(4):
            end = time.process_time() + 0.5  # with the system's share, which counts as well
            while time.process_time() < end:
                pass
            yield number

    assert bounded(busy, Limits(cpu_s=1, memory_mb=128, cpu_s_per_value=1)) == [0, 1, 2, 3]
    with pytest.raises(LimitError, match="CPU time"):
        bounded(busy, LIMITS)


def test_a_refusal_comes_back() -> None:
    def refuse() -> Iterator[int]:
        yield 1
        raise ValueError("no \ud800\n")

    with pytest.raises(ValueError, match="no \ud800\n"):
        bounded(refuse, LIMITS)


def test_the_copy_writes_nothing_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, children = os.fork, []

    def noted_fork() -> int:
        children.append(fork())
        return children[-1]

    monkeypatch.setattr(os, "fork", noted_fork)
    kept = (tmp_path / "kept").open("w")
    kept.write("once")  # not flushed yet

    def write() -> Iterator[str]:
        print("here")
        os.write(2, b"here")
        try:
            (tmp_path / "other").write_text("x" * 10_000)
        except OSError:
            yield "refused"

    before = len(os.listdir("/proc/self/fd"))
    assert bounded(write, LIMITS) == ["refused"]
    assert len(os.listdir("/proc/self/fd")) == before
    kept.close()
    assert (tmp_path / "kept").read_text() == "once"
    assert not (tmp_path / "other").exists() or not (tmp_path / "other").read_text()
    assert capfd.readouterr() == ("", "")
    (child,) = children
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)
