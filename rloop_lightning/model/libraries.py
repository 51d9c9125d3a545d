"""The libraries that read a model, transformers and those that it calls: what they print, and what they raise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rloop_lightning.system.terminal import cause


@contextmanager
def library_errors(what: str, advice: str = "") -> Iterator[None]:
    """Raise what a library raises on a file that it does not expect as a ValueError. An OSError stays one.

    Args:
        what: what failed, the beginning of the message.
        advice: what to do, its end.
    """
    end = f"; {advice}" if advice else ""
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:
        raise OSError(f"{what}: {cause(error)}{end}") from error
    except BaseException as error:
        # It may be anything, such as an ImportError for a package that it needs. What a library in Rust raises for a
        # failed assertion is no Exception, and can't be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {cause(error)}{end}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and log messages of transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # for good: the run shows its own
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
