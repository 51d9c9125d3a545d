"""One process at a time writes to a run in a store."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rloop_lightning.errors import ClaimError
from rloop_lightning.run import store_lock
from rloop_lightning.run.store_lock import LOCK, StoreLock
from rloop_lightning.system.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(f"memory://test_store_lock/{tmp_path.name}", "--out")


def _content(store: Store) -> dict[str, Any]:
    return json.loads(store.read(LOCK) or b"{}")


def _left_by(store: Store, **changes: Any) -> None:
    """A lock of another owner."""
    lock = StoreLock(store)
    lock.take("--out x")
    lock._released.set()
    store.write(LOCK, json.dumps({**_content(store), "id": "another", **changes}).encode())


def test_a_second_process_is_refused_and_told_who_has_it(store: Store) -> None:
    first = StoreLock(store)
    first.take("--out memory://x")
    told = (
        rf"--out memory://x is in use by process {os.getpid()} on host {socket.gethostname()}, since \d{{4}}-.*; wait"
    )
    with pytest.raises(ClaimError, match=told):
        StoreLock(store).take("--out memory://x")
    assert first.lost() == ""
    first.release()
    assert store.objects() == {}
    second = StoreLock(store)
    second.take("--out memory://x")
    second.release()


@pytest.mark.parametrize(
    "left",
    [
        {"started": "0", "host": socket.gethostname()},  # an ended process of this machine, whose number is given anew
        {"process": 2**22 + 1, "host": socket.gethostname()},
        {"host": "another", "renewed": time.time() - 301},
        {"renewed": None},
    ],
)
def test_the_lock_of_a_process_that_has_ended_is_taken_over(
    store: Store, left: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _left_by(store, **left)
    lock = StoreLock(store)
    lock.take("--resume memory://x")
    assert "has ended without giving it back; it is taken over" in caplog.text
    assert _content(store)["process"] == os.getpid()
    lock.release()


def test_a_lock_of_another_machine_is_respected_while_it_is_renewed(store: Store) -> None:
    _left_by(store, host="another", started="0", renewed=time.time() - 240)
    with pytest.raises(ClaimError, match=r"is in use by process \d+ on host another, since"):
        StoreLock(store).take("--resume memory://x")


def test_an_owner_notices_that_it_was_replaced_and_leaves_the_lock(store: Store) -> None:
    first = StoreLock(store)
    first.take("--out memory://x")
    store.write(LOCK, json.dumps({"id": "another", "host": "h\x1b", "process": 7}).encode())
    assert first.lost() == "process 7 on host h\\x1b"
    first.release()
    assert _content(store)["id"] == "another"


def test_the_lock_is_renewed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_lock, "_RENEWED_S", 0.01)
    lock = StoreLock(store)
    lock.take("--out memory://x")
    began = _content(store)["renewed"]
    while _content(store)["renewed"] == began:
        time.sleep(0.01)
    lock.release()


def test_of_two_processes_at_a_store_without_conditions_one_gets_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(self: Store, name: str, content: bytes) -> bool:
        self.write(name, content)
        self.write(name, b'{"id": "another", "host": "h", "process": 7}')
        return True

    monkeypatch.setattr(Store, "create", both)
    with pytest.raises(ClaimError, match="in use by process 7 on host h"):
        StoreLock(store).take("--out memory://x")


def test_conditions_are_those_of_the_store() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/test_store_lock/taken", b"1")
    assert not Store.at("memory://test_store_lock", "--out").create("taken", b"2")
