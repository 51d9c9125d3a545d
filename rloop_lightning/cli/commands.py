"""The entry points of the console commands `rloop-fit`, `rloop-data`, `rloop-report` and `rloop-reward`.

Importing Lightning, torch and their dependencies takes nearly all of a command's start time. The imports create more
than half a million permanent objects. Repeated garbage collections over them take a seventh of that time. So garbage
collection is off during the imports, and later collections skip these objects. `--help` and `--version`
need none of the imports.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rloop_lightning.cli.instant import data_answer, fit_answer, report_answer
from rloop_lightning.errors import Stopped
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.working_directory import search_working_directory


def rloop_fit() -> int:
    """The `rloop-fit` command; see `cli.main.main`. Signals are handled from before the imports on."""
    search_working_directory()
    if (code := fit_answer(sys.argv[1:])) is not None:
        return code
    with StopSignals():
        try:
            with _no_garbage_among_imports():
                from rloop_lightning.cli.main import main
            return main()
        except Stopped as stopped:
            print(f"\nrloop-fit: {stopped}; no run was started", file=sys.stderr)
            return stopped.exit_code


def rloop_data() -> int:
    """The `rloop-data` command; see `cli.data.main`."""
    search_working_directory()
    if (code := data_answer(sys.argv[1:])) is not None:
        return code
    with _no_garbage_among_imports():
        from rloop_lightning.cli.data import main
    return main()


def rloop_report() -> int:
    """The `rloop-report` command; see `cli.report.main`."""
    search_working_directory()
    if (code := report_answer(sys.argv[1:])) is not None:
        return code
    with _no_garbage_among_imports():
        from rloop_lightning.cli.report import main
    return main()


def rloop_reward() -> int:
    """The `rloop-reward` command; see `cli.reward.main`."""
    search_working_directory()
    with _no_garbage_among_imports():
        from rloop_lightning.cli.reward import main
    return main()


@contextmanager
def _no_garbage_among_imports() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
