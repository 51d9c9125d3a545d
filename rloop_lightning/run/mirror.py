"""The copy of a run folder in an object store, `--out s3://bucket/run`.

    mirror = RunMirror(folder, store, url)
    mirror.download()       # --resume: what the store has and this machine lacks
    mirror.state_saved()    # called by the run folder
    mirror.close()          # at the end; raises UploadError for what could not be uploaded

Files are uploaded in the order in which they were written, but checkpoints after all others and state.json last: what
a checkpoint or a state tells of is there before it. What the run has deleted is deleted in the store after that. So a
run resumes from the store at any moment as from the disk after a kill, with the same result. An upload that fails stops
no run: the next one takes up what is missing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rloop_lightning.errors import StateError
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.store_lock import LOCK, StoreLock
from rloop_lightning.run.store_progress import Progress, local_progress, local_state, stored_state
from rloop_lightning.system.files import write_text
from rloop_lightning.system.store import Store, StoredObject
from rloop_lightning.system.store_errors import StoreError

_log = logging.getLogger(__name__)

_REST = 10
"""The upload of a checkpoint rests this many times as long as the last upload took. That of a state never does."""
_PARTIAL = ".partial"


class UploadError(OSError):
    """A run's files could not all be uploaded. They are on disk, and the message says what uploads them."""


@dataclass(frozen=True)
class _Same:
    """A file that is the same on disk and in the store.

    Args:
        size: bytes.
        changed: when the file on disk was changed last, ns.
        version: of the object.
    """

    size: int
    changed: int
    version: str


class RunMirror:
    """Keeps the copy of a run folder.

    Args:
        out: the run folder.
        store: the folder of the run in the store.
        shown: its URL, for messages.
        lock: the claim on it, which is taken.
    """

    def __init__(self, out: Path, store: Store, shown: str, lock: StoreLock) -> None:
        self._folder = RunFolder(out)
        self._store = store
        self._shown = shown
        self._lock = lock
        self._index = out.with_name(f"{out.name}.index.json")
        self._same = _read_index(self._index)
        self._resting_until = 0.0
        self._told = ""

    def begin_faults(self) -> list[str]:
        """Why a new run can't begin at this place in the store.

        Raises:
            StoreError: the store can't be asked.
        """
        found = sorted(self._objects())
        self._same = {}
        if self._folder.state.name in found:
            return [
                f"--out {self._shown} already contains a run; resume it with --resume {self._shown}, or choose another "
                "place"
            ]
        shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        return [f"--out {self._shown} is not empty, it contains {shown}; choose another place"] if found else []

    def download(self) -> None:
        """Bring the run folder to the state of the store, unless it is newer or further.

        Raises:
            StateError: there is no run, or the run folder is one of another run.
            StoreError: the store can't be read.
            WriteError: a file can't be written.
        """
        objects = self._objects()
        self._same = {
            name: one for name, one in self._same.items() if objects.get(name) == StoredObject(one.size, one.version)
        }
        if self._is_ahead(objects):
            return
        names = sorted(objects, key=lambda name: (name == self._folder.state.name, name))
        try:
            for name in names:
                path = self._folder.out / name
                if not self._is_same(name, path):
                    self._store.get(name, path)
                    self._same[name] = _Same(objects[name].size, path.stat().st_mtime_ns, objects[name].version)
            for name, path in self._files():
                if name not in objects:
                    path.unlink()
        finally:
            self._write_index()

    def state_saved(self) -> None:
        """Upload what has changed."""
        self._upload()

    def checkpoint_saved(self) -> None:
        """Upload what has changed, unless the last upload was long and a short time ago."""
        if time.monotonic() >= self._resting_until:
            self._upload()

    def close(self) -> None:
        """Upload what has changed, for the last time.

        Raises:
            UploadError: it can't be uploaded.
        """
        if not self._folder.states:  # no run was started
            return
        try:
            self._send()
        except (StoreError, OSError) as error:
            raise UploadError(
                f"{error}\nthe run is whole in {self._folder.out}; upload the rest from this machine with: rloop-fit "
                f"--resume {self._shown}"
            ) from error

    def _upload(self) -> None:
        began = time.monotonic()
        try:
            self._send()
            self._told = ""
        except (StoreError, OSError) as error:
            if str(error) != self._told:  # once, however many saves fail in the same way
                _log.warning(f"{error}; the run goes on, and the next save uploads what is missing")
            self._told = str(error)
        now = time.monotonic()
        self._resting_until = now + _REST * (now - began)

    def _send(self) -> None:
        files = dict(self._files())
        changed = [name for name, path in files.items() if not self._is_same(name, path)]
        gone = self._same.keys() - files.keys()
        if not changed and not gone:
            return
        if other := self._lock.lost():
            raise StoreError(f"{self._shown}: {other} has taken the run over; stop one of the two")
        changed.sort(key=lambda name: (self._turn(name), files[name].stat().st_mtime_ns, name))
        try:
            for name in changed:
                changed_at = files[name].stat().st_mtime_ns  # before the upload: a change meanwhile is one for the next
                stored = self._store.put(files[name], name)
                self._same[name] = _Same(stored.size, changed_at, stored.version)
            for name in sorted(gone):
                self._store.remove([name])
                del self._same[name]
        finally:
            self._write_index()

    def _turn(self, name: str) -> int:
        """When a file is uploaded among others. A table that grows may change after a checkpoint that needs it."""
        last = {self._folder.previous_state.name: 2, self._folder.state.name: 3}
        return last.get(name, 1 if name.endswith(".ckpt") else 0)

    def _is_ahead(self, objects: Mapping[str, StoredObject]) -> bool:
        """Whether the run folder is as new and as far as the store, or more.

        Raises:
            StateError, StoreError: as `download`.
        """
        here = local_state(self._folder)
        name = self._folder.state.name
        if name not in objects:
            if here is None:
                raise StateError(f"--resume {self._shown}: no {name} there; give the place of an existing run")
            _log.info(f"{self._shown} has no state of the run yet; it is uploaded from {self._folder.out}")
            return True
        there = stored_state(self._store, name, self._index.with_suffix(".state"))
        if here is None:
            _log.info(f"{self._shown} is downloaded to {self._folder.out}")
            return False
        if there is None:
            _log.warning(f"{self._shown}/{name} is damaged; the run goes on from {self._folder.out}")
            return True
        if there.run_id != here.run_id:
            raise StateError(
                f"--resume {self._shown}: {self._folder.out} on this machine holds another run, which began at this "
                "place earlier; move that folder away"
            )
        ours, theirs = local_progress(self._folder, here), Progress.of(there, objects)
        if ours >= theirs:
            if ours > theirs:
                word = ours.compared(theirs)
                _log.info(f"{self._folder.out} is {word} ({ours}) than {self._shown} ({theirs}), and goes on")
            return True
        word = theirs.compared(ours)
        _log.info(f"{self._shown} is {word} ({theirs}) than {self._folder.out} ({ours}), which is brought to its state")
        return False

    def _objects(self) -> dict[str, StoredObject]:
        found = self._store.objects()
        found.pop(LOCK, None)
        return found

    def _files(self) -> Iterator[tuple[str, Path]]:
        """The run's files by name. Links are not followed: a run writes none."""
        for path in sorted(self._folder.out.rglob("*")):
            name = path.relative_to(self._folder.out)
            own = path != self._folder.lock and not any(part.endswith(_PARTIAL) for part in name.parts)
            if own and path.is_file() and not path.is_symlink():
                yield name.as_posix(), path

    def _is_same(self, name: str, path: Path) -> bool:
        known = self._same.get(name)
        if known is None or not path.is_file():
            return False
        status = path.stat()
        return (known.size, known.changed) == (status.st_size, status.st_mtime_ns)

    def _write_index(self) -> None:
        write_text(self._index, json.dumps({name: asdict(one) for name, one in self._same.items()}))


def _read_index(index: Path) -> dict[str, _Same]:
    """What was the same when the last process on this machine ended; nothing if that is not known."""
    try:
        return {name: _Same(**values) for name, values in json.loads(index.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
