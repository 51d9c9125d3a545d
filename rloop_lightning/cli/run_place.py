"""Runs whose folder is copied to an object store: `rloop-fit --out s3://bucket/run`, `--resume s3://bucket/run`.

The run works in a local folder. `run_place` claims the place in the store, brings the local folder to its state, and
uploads what the run saves (run/mirror.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rloop_lightning.cli.arguments import UsageError, pairs
from rloop_lightning.errors import ClaimError, StateError
from rloop_lightning.run.claim import RunClaim
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.mirror import RunMirror, UploadError
from rloop_lightning.run.start import RunFolderError
from rloop_lightning.run.store_lock import StoreLock
from rloop_lightning.system.lock import FolderLock, LockedError
from rloop_lightning.system.store import Store
from rloop_lightning.system.store_errors import StoreError
from rloop_lightning.system.store_urls import cache_folder, is_url, shown_url
from rloop_lightning.system.terminal import one_line

_log = logging.getLogger(__name__)

_FLAGS = ("--resume", "--out")


def place_of(argv: Sequence[str]) -> tuple[str, str] | None:
    """The option and the URL of a command line that runs in a store; None if it does not.

    Raises:
        UsageError: it names a run to resume and another place.
    """
    given = {flag: value for flag, value in pairs(argv) if flag in _FLAGS and value}
    refuse_other_place(given.get("--resume"), given.get("--out"))
    found = next(((flag, given[flag]) for flag in _FLAGS if flag in given), None)
    return found if found and is_url(found[1]) else None


def refuse_other_place(resume: str | None, out: str | None) -> None:
    """Refuse a resume that names a place, which it would not write to.

    Raises:
        UsageError: says so.
    """
    if resume is not None and out not in (None, resume):
        shown = shown_url(resume) if is_url(resume) else one_line(resume, limit=200)
        raise UsageError(f"--out: the run of --resume {shown} goes on where it is; leave --out out")


def with_local_folder(argv: Sequence[str], place: tuple[str, str], claim: RunClaim) -> list[str]:
    """The command line with the local folder in place of the URL."""
    flag, url = place
    local = str(claim.folder.out)
    joined = f"{flag}={url}"
    return [local if word == url else f"{flag}={local}" if word == joined else word for word in argv]


@contextmanager
def run_place(place: tuple[str, str] | None) -> Iterator[RunClaim | None]:
    """The claim, not yet taken, on the local folder of a run in a store; None if there is no store.

    Args:
        place: the option, `--out` or `--resume`, and the URL.

    Raises:
        UsageError: the store can't be used, another process runs there, or there is no run, or one for `--out`.
        RunFolderError: the local folder can't be written.
        UploadError: at the end, files could not be uploaded.
    """
    if place is None:
        yield None
        return
    flag, url = place
    shown, out = shown_url(url).rstrip("/"), cache_folder("runs", url)
    try:
        store = Store.at(url.rstrip("/"), flag)
        out.parent.mkdir(parents=True, exist_ok=True)
        FolderLock(RunFolder(out).lock).check()
        lock = StoreLock(store)
        lock.take(f"{flag} {shown}")
    except (StoreError, ClaimError) as error:
        raise UsageError(str(error)) from error
    except LockedError as error:
        raise UsageError(f"{flag} {shown}: {error}; wait until it ends, or stop it") from error
    except OSError as error:
        raise RunFolderError(f"{flag} {shown}: {error}; name another folder in RLOOP_CACHE") from error
    try:
        mirror = RunMirror(out, store, shown, lock)
        _begin(mirror, flag)
        _log.info(f"{shown}: the run works in {out}")
        try:
            yield RunClaim(RunFolder(out, shown, mirror))
        except BaseException:
            try:
                mirror.close()
            except UploadError as error:
                _log.warning(str(error))
            raise
        mirror.close()
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # no run was started, or there is one
            out.parent.rmdir()


def _begin(mirror: RunMirror, flag: str) -> None:
    """Bring the local folder to the state of the store, or see that the place is empty."""
    try:
        if flag == "--resume":
            mirror.download()
        elif faults := mirror.begin_faults():
            raise UsageError("\n".join(faults))
    except (StoreError, StateError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise RunFolderError(str(error)) from error
