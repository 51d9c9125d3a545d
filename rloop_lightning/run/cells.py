"""The process of a cell: its script, its log, and how it ended.

    process = CellProcess(cell, Launch(), options=[])
    process.ended()          # None while it runs, then its exit code

A cell runs by its script, which begins the run or resumes it. So the script may be run again by hand, or by a cluster
that has taken the machine away.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rloop_lightning.run.study import Cell
from rloop_lightning.system import dies_with_parent
from rloop_lightning.system.files import write_text
from rloop_lightning.system.terminal import one_line

COMMAND = "{command}"
"""Stands for the command of a cell in a launcher."""

_PLACE = re.compile(r"\{(command|cell|log)\}")
_OF_AN_OPTION = re.compile(r"-[\w-]+=?\{log\}")

FIT = (sys.executable, "-m", "rloop_lightning")
"""The command `rloop-fit`."""

_LOG_END = 1 << 16  # bytes of a log that are searched for an error


@dataclass(frozen=True)
class Launch:
    """How cells are started.

    Args:
        launcher: a command line, in which `{command}` stands for the cell's script, `{cell}` for the name of the cell
            and `{log}` for its log; empty starts the script on this machine.
        threads: threads of a new cell; None leaves their number to torch. A launcher's cells are not told.
    """

    launcher: str = ""
    threads: int | None = None

    def arguments(self, cell: Cell) -> list[str]:
        """The command that starts a cell."""
        script = str(cell.script.absolute())
        if not self.launcher:
            return [sys.executable, "-IS", dies_with_parent.__file__, str(os.getpid()), "/bin/sh", script]
        name = f"{cell.arm.folder_name}-seed-{cell.seed}"
        values = {"command": script, "cell": name, "log": str(cell.log.absolute())}

        def filled(word: str) -> str:
            # A word of its own is an argument, as is a log in --output={log}; inside another word, a shell reads it.
            quoted = not (_PLACE.fullmatch(word) or _OF_AN_OPTION.fullmatch(word))
            return _PLACE.sub(lambda place: shlex.quote(values[place[1]]) if quoted else values[place[1]], word)

        return list(map(filled, shlex.split(self.launcher)))

    def threads_of(self, cell: Cell) -> int | None:
        """The threads of a cell. One that has begun keeps its number, so that its results keep their bits."""
        if self.launcher:
            return None
        state = cell.state()
        before = state.machine.get("threads") if state else None
        return before if isinstance(before, int) and before > 0 else self.threads


class CellProcess:
    """A cell that runs.

    Args:
        cell: the cell.
        launch: how it is started.
        settings: the file with its settings.
        options: further options of a new run.

    Raises:
        OSError: its files can't be written, or the launcher can't be started.
    """

    def __init__(self, cell: Cell, launch: Launch, settings: Path, options: Sequence[str] = ()) -> None:
        self.cell = cell
        write_text(cell.script, script(cell, settings, options, launch.threads_of(cell)))
        cell.script.chmod(0o755)
        self._log_start = cell.log.stat().st_size if cell.log.exists() else 0
        with cell.log.open("ab") as log:
            # In a session of its own: Ctrl-C in the terminal reaches the study alone, which passes it on once.
            self._process = subprocess.Popen(
                launch.arguments(cell),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to stop. The first time it finishes and saves its training step, the second time it stops at once."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()

    def complaint(self) -> str:
        """What it said of its failure, on one line: its first error, else its last line."""
        return complaint_in(self.cell.log, self._log_start)


def complaint_in(log: Path, start: int = 0) -> str:
    """The first error in the end of a log, from a byte on, else its last line; on one line."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _LOG_END))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return one_line(errors[0] if errors else lines[-1] if lines else "it said nothing", limit=300)


def script(cell: Cell, settings: Path, options: Sequence[str], threads: int | None) -> str:
    """A shell script that begins the run of a cell, or resumes it."""
    out = str(cell.run.out)
    begin = [*FIT, "--config", str(settings), "--seed_everything", str(cell.seed), "--out", out, *options]
    resume = [*FIT, "--resume", out]
    states = (cell.run.state, cell.run.previous_state)
    begun = " || ".join(f"[ -e {shlex.quote(str(state))} ]" for state in states)
    lines = [
        "#!/bin/sh",
        "# Begins this cell of a study, or resumes it. rloop-compare writes this file.",
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
        *([] if threads is None else [f"export OMP_NUM_THREADS={threads}"]),
        f"if {begun}; then",
        f"  exec {shlex.join(resume)}",
        "fi",
        f"exec {shlex.join(begin)}",
    ]
    return "\n".join(lines) + "\n"
