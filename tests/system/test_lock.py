"""A folder has one writer: the lock is exclusive between processes and within one, and ends with its process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rloop_lightning.system import lock
from rloop_lightning.system.lock import FolderLock, LockedError

HOLD = """
import sys, time
from pathlib import Path
from rloop_lightning.system.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path: Path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run.lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_refused_and_told_who_holds_it(held: subprocess.Popen, tmp_path: Path) -> None:
    with pytest.raises(LockedError) as error:
        FolderLock(tmp_path / "run.lock").acquire()
    assert f"{tmp_path} is in use by process {held.pid} on host {os.uname().nodename}, since 20" in str(error.value)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_process(held: subprocess.Popen, tmp_path: Path, ending: signal.Signals) -> None:
    held.send_signal(ending)
    held.wait()
    with FolderLock(tmp_path / "run.lock"):
        pass


def test_a_stopped_process_still_holds_it(held: subprocess.Popen, tmp_path: Path) -> None:
    held.send_signal(signal.SIGSTOP)
    with pytest.raises(LockedError):
        FolderLock(tmp_path / "run.lock").acquire()


def test_within_a_process_it_is_exclusive_too(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run.lock"), pytest.raises(LockedError, match="is in use by this process"):
        FolderLock(tmp_path / "run.lock").acquire()
    with FolderLock(tmp_path / "run.lock"):
        pass


def test_a_child_process_does_not_keep_it(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run.lock"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with FolderLock(tmp_path / "run.lock"):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[1]", b'{"process": "\\u001b[31m"}'])
def test_a_damaged_holder_is_another_process(held: subprocess.Popen, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.lock").write_bytes(content)
    with pytest.raises(LockedError, match="is in use by another process"):
        FolderLock(tmp_path / "run.lock").acquire()


def test_a_check_writes_nothing_and_a_killed_holder_is_none(held: subprocess.Popen, tmp_path: Path) -> None:
    with pytest.raises(LockedError, match=f"is in use by process {held.pid} "):
        FolderLock(tmp_path / "run.lock").check()
    held.kill()
    held.wait()
    before = (tmp_path / "run.lock").read_text()
    FolderLock(tmp_path / "run.lock").check()
    assert (tmp_path / "run.lock").read_text() == before
    FolderLock(tmp_path / "missing.lock").check()
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


def test_a_file_that_its_holder_has_removed_meanwhile_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.lock"
    real, calls = fcntl.lockf, []

    def removed_first(descriptor: int, flags: int) -> None:
        if not calls:
            path.unlink()
        calls.append(descriptor)
        real(descriptor, flags)

    monkeypatch.setattr(lock.fcntl, "lockf", removed_first)
    with FolderLock(path):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert len(calls) == 2


def test_a_removed_lock_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        one = FolderLock(tmp_path / "run.lock")
        one.acquire()
        assert one.created
        one.release(remove=True)
        assert list(tmp_path.iterdir()) == []


def test_without_locks_in_the_file_system_a_warning_says_that_nothing_protects_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "lockf", no_locks)
    with FolderLock(tmp_path / "run.lock"):
        assert f"{tmp_path}: its file system has no locks (No locks available); make sure" in caplog.text


def test_a_link_is_not_taken_for_the_lock(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("mine")
    (tmp_path / "run.lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match=r"run\.lock"):
        FolderLock(tmp_path / "run.lock").acquire()
    assert (tmp_path / "theirs").read_text() == "mine"
