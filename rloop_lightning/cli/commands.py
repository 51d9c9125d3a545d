"""The entry points of the console commands.

Importing Lightning, torch and their dependencies takes nearly all of a command's start time. The imports create more
than half a million permanent objects. Repeated garbage collections over them take a seventh of that time. So garbage
collection is off during the imports, and later collections skip these objects. `--help` and `--version`
need none of the imports.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from importlib import import_module

from rloop_lightning.cli import instant
from rloop_lightning.errors import Stopped
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.working_directory import search_working_directory


def rloop_fit() -> int:
    """The `rloop-fit` command; see `cli.main.main`."""
    return _signalled("rloop-fit", instant.fit_answer, "main", "no run was started")


def rloop_eval() -> int:
    """The `rloop-eval` command; see `cli.evaluate.main`."""
    return _signalled("rloop-eval", instant.eval_answer, "evaluate", "nothing was evaluated")


def rloop_compare() -> int:
    """The `rloop-compare` command; see `cli.compare.main`."""
    return _signalled("rloop-compare", instant.compare_answer, "compare", "no run was started")


def rloop_data() -> int:
    """The `rloop-data` command; see `cli.data.main`."""
    return _plain(instant.data_answer, "data")


def rloop_report() -> int:
    """The `rloop-report` command; see `cli.report.main`."""
    return _plain(instant.report_answer, "report")


def rloop_reward() -> int:
    """The `rloop-reward` command; see `cli.reward.main`."""
    return _plain(lambda _: None, "reward")


Answer = Callable[[list[str]], "int | None"]


def _signalled(command: str, answer: Answer, module: str, undone: str) -> int:
    """A command that handles signals from before its imports on.

    Args:
        command: its name.
        answer: gives the exit code of what is answered before the imports, else None.
        module: the module of `cli` with its `main`.
        undone: what did not happen if a signal comes during the imports.
    """
    search_working_directory()
    if (code := answer(sys.argv[1:])) is not None:
        return code
    with StopSignals():
        try:
            return _main(module)()
        except Stopped as stopped:
            print(f"\n{command}: {stopped}; {undone}", file=sys.stderr)
            return stopped.exit_code


def _plain(answer: Answer, module: str) -> int:
    search_working_directory()
    return _main(module)() if (code := answer(sys.argv[1:])) is None else code


def _main(module: str) -> Callable[[], int]:
    gc.disable()
    try:
        return import_module(f"rloop_lightning.cli.{module}").main
    finally:
        gc.freeze()
        gc.enable()
