"""Log messages and warnings of libraries that would hide ours."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# A user can't change how they use each other.
_LIBRARIES = (
    r"(torch|lightning|lightning_utilities|torchmetrics|transformers|peft|datasets|huggingface_hub|tensorboard)\b"
)

_REPEATED = (
    r"GPU available but not used",  # --trainer.accelerator cpu says so
    r".*does not have many workers",  # the loop's streams need none
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide what Lightning logs in every phase (devices, seeds, adverts), and warnings about the libraries' own code.

    Lightning's other warnings stay. So do all errors, but for the second copy of a failed write of TensorBoard.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    _hide_errors_of_tensorboard()
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=_LIBRARIES)
        for message in _REPEATED:
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _hide_errors_of_tensorboard() -> None:
    """Hide failed writes in TensorBoard's thread, which the main thread raises too.

    Until the process ends: after a failed run, the thread may write once more.
    """
    shown = threading.excepthook
    if getattr(shown, "hides_tensorboard", False):
        return

    def show(error: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(error.thread).__module__.partition(".")[0] == "tensorboard"
        if not (of_tensorboard and isinstance(error.exc_value, OSError)):
            shown(error)

    show.hides_tensorboard = True  # type: ignore[attr-defined]  # marks the hook, so that it is set once
    threading.excepthook = show
