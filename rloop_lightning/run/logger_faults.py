"""Failed writes of loggers, told as all other failed writes are: with the path, the reason and the free space.

TensorBoard writes in a thread of its own, whose error has no path, and Lightning hides it in a ValueError about the
metric. Lightning calls the loggers itself as well, so their methods are wrapped.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from rloop_lightning.system.files import WriteError

_METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize")
_OF_THE_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ESTALE,
}
"""Other errors are of a network, as with loggers that upload."""


def name_failed_writes(logger: Logger) -> None:
    """Make the methods of a logger raise WriteError for a failed write.

    `finalize` raises none if the run fails anyway, because the first error counts.
    """
    for name in _METHODS:
        setattr(logger, name, _named(logger, name))


def open_files(logger: Logger) -> None:
    """Open a logger's files, as Lightning does at the start of each phase.

    Raises:
        WriteError: they can't be made.
    """
    with naming(logger):
        getattr(logger, "experiment", None)


def _named(logger: Logger, name: str) -> Callable[..., Any]:
    call = getattr(logger, name)

    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            with naming(logger):
                return call(*args, **kwargs)
        except WriteError:
            if name == "finalize" and "success" not in (*args, *kwargs.values()):
                return None
            raise

    return wrapped


@contextmanager
def naming(logger: Logger) -> Iterator[None]:
    """Raise WriteError for a failed write in the block."""
    try:
        yield
    except (OSError, ValueError) as error:
        cause = _failed_write(error)
        if cause is None:
            raise
        raise cause if isinstance(cause, WriteError) else WriteError(_path(logger, cause), cause, 0) from error


def _failed_write(error: BaseException | None) -> OSError | None:
    """The failed write that an error is, or was raised from."""
    while error is not None and not (isinstance(error, OSError) and error.errno in _OF_THE_DISK):
        error = error.__cause__ or error.__context__
    return error


def _path(logger: Logger, error: OSError) -> Path:
    """The file of a failed write, or the folder of the logger."""
    place = error.filename or logger.log_dir or logger.save_dir
    return Path(place) if isinstance(place, str | Path) else Path.cwd()
