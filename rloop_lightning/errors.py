"""What ends a run before its plan does: faults of which the message says what to do, and signals.

A signal is no error, and what catches errors must not catch it: `Stopped` is a `BaseException`, as KeyboardInterrupt.
"""

from __future__ import annotations

import signal


class RunFault(RuntimeError):
    """A fault during a run. Its message names file or flag and says what to do; the command's exit code is 1."""


class DamagedError(RunFault):
    """A file does not hold what was written to it."""


class StateError(ValueError):
    """A run can't be resumed, as nothing is left that says where it stands; the command's exit code is 2."""


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
        number: of the signal.
        saved: what was saved last, for the message.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.saved = saved

    @property
    def exit_code(self) -> int:
        """As shells count: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number
