"""The claim on a run folder: one process at a time runs in it, and a new run begins in an empty folder.

    with RunClaim(RunFolder(out)) as claim:
        claim.take(resumes=False)       # makes and locks the folder, or raises ClaimError
        ...                             # the run

If the block ends before the run has a state, nothing of it is left. Files that it did not write stay.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from rloop_lightning.data.records import Records, write_sets
from rloop_lightning.errors import ClaimError
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.system.lock import FolderLock, LockedError
from rloop_lightning.system.terminal import one_line

_NAMES_SHOWN = 4
_TRIES = 100
"""Names that are tried, and times that a folder is made again which another start removes because it has failed."""


class RunClaim:
    """One process's right to a run folder, from `take` to the end of the block.

    Args:
        folder: the run folder.
        named: the user chose its name. Otherwise a new run takes the first free name of NAME, NAME-2, NAME-3 and so on.

    Attributes:
        folder: the run folder; after `take`, the one whose name was free.
        held: whether it is taken.
    """

    def __init__(self, folder: RunFolder, *, named: bool = True) -> None:
        self.folder = folder
        self.held = False
        self._named = named
        self._resumes = False
        self._lock = FolderLock(folder.lock)
        self._made: list[Path] = []
        self._written: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.held and not self._resumes and not self.folder.states:
            self._forget_start()
        ours = self.held or self._lock.created
        self._release(remove_lock=ours and _names(self.folder) == [self.folder.lock.name])
        self.held = False

    def faults(self) -> list[str]:
        """Why a new run can't begin in this folder; none if it is taken. The check leaves no files."""
        if self.held:
            return []
        if not self._named:
            return _place_faults(self.folder.out.parent)
        if faults := _place_faults(self.folder.out):
            return faults
        try:
            FolderLock(self.folder.lock).check()
        except LockedError as error:
            return [_in_use("--out", error)]
        except OSError as error:
            return [_unwritable("--out", self.folder.out, self.folder.out, error)]
        return _content_faults(self.folder, claimed_before=self.folder.lock.exists())

    def take(self, *, resumes: bool) -> None:
        """Take the folder, unless it is taken already.

        Raises:
            ClaimError: another process uses it, it contains other files, or it can't be written.
        """
        if self.held:
            return
        self._resumes = resumes
        option = "--resume" if resumes else "--out"
        try:
            if resumes:
                self._lock.acquire()
            else:
                self._make()
        except LockedError as error:
            raise ClaimError(_in_use(option, error)) from error
        except OSError as error:
            raise ClaimError(_unwritable(option, self.folder.out, self.folder.out, error)) from error
        self.held = True

    def write_sets(self, sets: Mapping[str, Records]) -> dict[str, Path]:
        """Write problem sets to the folder that was taken. Args, result and errors: as `data.records.write_sets`."""
        there = set(self.folder.data.glob("*.jsonl"))  # of a start that was killed
        files = write_sets(sets, self.folder.data)
        self._written = [file for file in files.values() if file not in there]
        return files

    def _make(self) -> None:
        """Make the folder if need be, lock it, and see that it is empty."""
        if faults := _place_faults(self.folder.out if self._named else self.folder.out.parent):
            raise ClaimError("\n".join(faults))
        self._lock_first_free()
        if faults := _content_faults(self.folder, claimed_before=not self._lock.created):
            self._release(remove_lock=self._lock.created)
            raise ClaimError("\n".join(faults))

    def _lock_first_free(self) -> None:
        out = self.folder.out
        for number in range(1, _TRIES):
            if not self._named and number > 1:
                self.folder = RunFolder(out.with_name(f"{out.name}-{number}"))
            self._lock = FolderLock(self.folder.lock)
            place = self.folder.out
            self._made = [path for path in (place, *place.parents) if not os.path.lexists(path)]
            try:
                place.mkdir(parents=True, exist_ok=self._named)
                self._lock.acquire()
                return
            except FileNotFoundError as error:  # a start that failed has removed the folder meanwhile
                failure: OSError = error
            except (FileExistsError, LockedError) as error:
                if self._named:
                    raise
                failure = error
        raise failure

    def _forget_start(self) -> None:
        """Remove what was written before the run's first state: problem sets, as all else follows the state."""
        for path in self._written:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not there, or not empty
            self.folder.data.rmdir()

    def _release(self, *, remove_lock: bool) -> None:
        self._lock.release(remove=remove_lock)
        for path in self._made:
            with contextlib.suppress(OSError):  # it is not empty, or gone
                path.rmdir()
        self._made = []


def _place_faults(out: Path) -> list[str]:
    """Why there can't be a run folder at this path."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if there.is_symlink() and not there.exists():
        target = one_line(os.readlink(there), limit=0)
        return [f"--out {out}: {there} links to {target}, which does not exist; make that folder, or choose another"]
    if not there.is_dir():
        return [f"--out {out}: {there} is not a folder; choose another"]
    try:
        if there == out.absolute():  # no probe: another run may be about to claim it, and would find a file in it
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return []
        with tempfile.TemporaryDirectory(dir=there):
            return []
    except OSError as error:
        return [_unwritable("--out", out, there, error)]


def _content_faults(folder: RunFolder, *, claimed_before: bool) -> list[str]:
    """Why a new run can't begin among the files in the folder.

    Args:
        folder: the folder, which may be absent.
        claimed_before: it has the lock file of an earlier claim. So it was empty then, and may hold what that start
            wrote before it was killed: problem sets, and a part of the first state.
    """
    out = folder.out
    if folder.states:
        return [f"--out {folder} already contains a run; resume it with --resume {folder}, or choose another folder"]
    own = {folder.lock.name}
    if claimed_before:
        own.add(f"{folder.state.name}.partial")
    if claimed_before and folder.data.is_dir() and not folder.data.is_symlink():
        own.add(folder.data.name)
    names = [name for name in _names(folder) if name not in own]
    if not names:
        return []
    shown = ", ".join(map(one_line, names[:_NAMES_SHOWN]))
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return [f"--out {out} is not empty, it contains {shown}{rest}; choose a folder that is empty or does not exist"]


def _names(folder: RunFolder) -> list[str]:
    return sorted(os.listdir(folder.out)) if folder.out.is_dir() else []


def _in_use(option: str, error: LockedError) -> str:
    advice = "wait until it ends, or stop it"
    return f"{option} {error}; " + (advice if option == "--resume" else f"choose another folder, or {advice}")


def _unwritable(option: str, out: Path, there: Path, error: OSError) -> str:
    advice = "choose another folder" if option == "--out" else "resume a copy of it in a folder that you can write"
    return f"{option} {out}: can't write in {there}: {error.strerror or error}; {advice}"
