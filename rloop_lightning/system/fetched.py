"""Local copies of what URLs name: `--data s3://bucket/train.jsonl`, `--policy.model gs://bucket/model`.

    fetched("s3://bucket/model", "--policy.model")      # the folder of the copy

A file of the copy appears whole or not at all. It is fetched again if the object has changed: other checksum, or other
size and time. Processes that want the same copy wait for the one that fetches it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from rloop_lightning.system.files import write_text
from rloop_lightning.system.lock import FolderLock, LockedError
from rloop_lightning.system.store import Store, StoredObject
from rloop_lightning.system.store_errors import StoreError
from rloop_lightning.system.store_urls import cache_folder, is_url, local_path, shown_url, url_faults

_log = logging.getLogger(__name__)

_WAIT_S = 1.0  # between looks at the lock of another process that fetches
_URL, _INDEX, _LOCK = ".url", ".index.json", ".lock"
"""Ends of the names of the files beside the folder of a copy: its URL, what it was made of, and its lock."""
_CHECKPOINTS, _WEIGHTS = ("*.ckpt",), ("*.safetensors",)
_TOLD_BYTES = 100e6  # a larger download is announced


@cache
def fetched(url: str, flag: str, *, leave_out: tuple[str, ...] = ()) -> Path:
    """The local copy of an object, or of a folder with its subfolders. Asks the store once per process.

    Args:
        url: of the object or folder; file:// gives the path itself.
        flag: the option that names it, for messages.
        leave_out: patterns of names that are not fetched, such as `*.ckpt`.

    Raises:
        StoreError: it is not there or can't be fetched; the message names the flag and a remedy.
    """
    if faults := url_faults(url, flag):
        raise StoreError("\n".join(faults))
    if (path := local_path(url)) is not None:
        return path
    store, target = Store.at(url, flag), cache_folder("fetched", url)
    single = store.is_object()
    try:
        with _alone(_beside(target, _LOCK)):
            write_text(_beside(target, _URL), url.rstrip("/"))
            if single:
                _fetch(store, {"": store.object()}, lambda name: target, target)
            else:
                _fetch_folder(store, target, leave_out)
    except OSError as error:
        raise StoreError(f"{flag} {shown_url(url)}: {error}; or name another folder in RLOOP_CACHE") from error
    return target


def fetched_word(word: str, flag: str, *, leave_out: tuple[str, ...] = ()) -> str:
    """The local copy of what a URL names; any other text as it is."""
    return str(fetched(word, flag, leave_out=leave_out)) if is_url(word) else word


def url_of(copy: Path) -> str:
    """The URL that a folder or file is the local copy of; empty if it is none."""
    try:
        url = _beside(copy.absolute(), _URL).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    return url if is_url(url) and cache_folder("fetched", url) == copy.absolute() else ""


def fetched_run(url: str, flag: str = "", *, policies: bool = False) -> Path:
    """The local copy of a run in a store, to be read only: without checkpoints.

    Args:
        policies: with the weights of its policies.

    Raises:
        StoreError: as `fetched`.
    """
    return fetched(url, flag, leave_out=_CHECKPOINTS if policies else (*_CHECKPOINTS, *_WEIGHTS))


def _fetch_folder(store: Store, target: Path, leave_out: Collection[str]) -> None:
    found = {
        name: one for name, one in store.objects().items() if not any(fnmatch(name, pattern) for pattern in leave_out)
    }
    # The state of a run first: the files that come after it are then not older.
    names = sorted(found, key=lambda name: (name != "state.json", name))
    _fetch(store, {name: found[name] for name in names}, lambda name: target / name, target)
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if path.is_file() and name not in found and not any(fnmatch(name, pattern) for pattern in leave_out):
            path.unlink()


def _fetch(store: Store, wanted: Mapping[str, StoredObject], place: Callable[[str], Path], target: Path) -> None:
    """Download what has changed since the last time."""
    index = _beside(target, _INDEX)
    known = _read(index)
    new = {name: one for name, one in wanted.items() if known.get(name) != _entry(one) or not place(name).is_file()}
    size = sum(one.size for one in new.values())
    if size > _TOLD_BYTES:
        _log.info(f"{size / 1e9:,.1f} GB are fetched to {target}")
    for name, one in new.items():
        store.get(name, place(name))
        known[name] = _entry(one)
        write_text(index, json.dumps(known))


def _beside(copy: Path, end: str) -> Path:
    return copy.parent.with_name(copy.parent.name + end)


def _entry(one: StoredObject) -> list[object]:
    return [one.size, one.version]


def _read(index: Path) -> dict[str, list[object]]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process holds a lock, and hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, told = FolderLock(path), False
    while True:
        try:
            lock.acquire()
            break
        except LockedError as error:
            if not told:
                _log.info(f"{error}, which fetches the same; waiting for it")
            told = True
            time.sleep(_WAIT_S)
    try:
        yield
    finally:
        lock.release()
