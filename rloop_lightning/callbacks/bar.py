"""One line of progress on stderr: a bar that redraws itself in a terminal, a line per minute in a log file."""

from __future__ import annotations

import io
import sys
from contextlib import ExitStack
from time import perf_counter
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_TERMINAL_INTERVAL_S = 0.25
_LOG_FILE_INTERVAL_S = 60.0
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}{status}]"


class Bar:
    """Title, share done, elapsed time, time left and a status.

    Args:
        title: title of the bar, such as "round 1/3 explore".
        total: how much there is to do.
        done: how much of it is done already.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._in_terminal = sys.stderr.isatty()
        self._meter = _Meter(
            total=total,
            initial=done,
            desc=title,
            file=sys.stderr if self._in_terminal else io.StringIO(),
            dynamic_ncols=self._in_terminal,
            mininterval=float("inf"),  # `show` decides when to draw
            bar_format=_FORMAT,
        )
        self._shown_at = perf_counter()
        self._open = ExitStack()
        if self._in_terminal:
            self._open.enter_context(logging_redirect_tqdm())  # log messages appear above the bar
            self._open.callback(self._meter.close)

    @property
    def done(self) -> int:
        return int(self._meter.n)

    @done.setter
    def done(self, value: int) -> None:
        self._meter.n = value

    @property
    def total(self) -> int:
        return int(self._meter.total or 0)

    @total.setter
    def total(self, value: int) -> None:
        self._meter.total = value

    @property
    def is_due(self) -> bool:
        """Whether the line may be shown again."""
        interval = _TERMINAL_INTERVAL_S if self._in_terminal else _LOG_FILE_INTERVAL_S
        return perf_counter() - self._shown_at >= interval

    def set(self, left: str, status: str) -> None:
        """Set the time left and the status, and show them if that is due."""
        self._meter.left = left
        self._meter.status = f", {status}" if status else ""
        if self.is_due:
            self._show()

    def close(self) -> None:
        """Show the final line."""
        self._show()
        self._open.close()

    def _show(self) -> None:
        self._shown_at = perf_counter()
        if self._in_terminal:
            self._meter.refresh()
        else:
            print(self._meter, file=sys.stderr, flush=True)


class _Meter(tqdm):
    """Formats the line. tqdm's own estimates know nothing of evaluations."""

    left = "?"
    status = ""

    @property
    def format_dict(self) -> dict[str, Any]:
        return {**super().format_dict, "left": self.left, "status": self.status}
