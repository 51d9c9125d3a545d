"""Exceptions that end a run early: faults, whose message says what to do, and signals.

A signal is not an error, and handlers of errors must not catch it. `Stopped` is therefore a `BaseException`, like
KeyboardInterrupt.
"""

from __future__ import annotations

import signal


class RunFault(RuntimeError):
    """A fault during a run. Its message names the file or flag and says what to do. The command's exit code is 1."""


class NonFiniteError(RunFault):
    """A policy's weights or logits are NaN or infinite. The message says which; the run adds the cause and the fix."""


class DiagnosedError(RunFault):
    """A fault with its cause and the options that help. The message says whether and how the run can be resumed."""


class DamagedError(RunFault):
    """A file's content is not what was written to it."""


class EngineError(RunFault):
    """A rollout engine is lost, stuck or unusable. The message says which, with its last log lines if it has a log."""


class PushError(RunFault):
    """A folder could not be uploaded to the hub. What it holds is on disk."""


class StateError(ValueError):
    """A run can't be resumed, because no readable state of it is left. The command's exit code is 2."""


class ClaimError(ValueError):
    """A run can't have its folder: another process uses it, it holds other files, or it can't be written.

    The command's exit code is 2.
    """


class DoorError(ImportError):
    """A room is imported by the name of the link to it at the repository's root, which would make its classes anew.

    Args:
        door: the link's name.
    """

    def __init__(self, door: str) -> None:
        super().__init__(f"{door} is a link into the package; import rloop_lightning.{door}", name=door)


class Stopped(BaseException):
    """A signal ends the run.

    Args:
        number: the signal's number.
        saved: what was saved last, for the message.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.saved = saved

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as in shells: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number
