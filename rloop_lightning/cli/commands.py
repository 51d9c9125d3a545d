"""The console commands `rloop-fit` and `rloop-data`: how they start.

Importing Lightning, torch and what they bring takes nearly all of the time until a command answers. It makes more than
half a million objects that stay to the end, and Python would look through them for garbage again and again: a seventh
of that time. So the imports run without garbage collection, and what they made is left out of every later one.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rloop_lightning.errors import Stopped
from rloop_lightning.system.signals import StopSignals


def rloop_fit() -> int:
    """The `rloop-fit` command; see `cli.main.main`. Deals with signals from before the imports on."""
    _find_classes_here()
    with StopSignals():
        try:
            with _no_garbage_among_imports():
                from rloop_lightning.cli.main import main
            return main()
        except Stopped as stopped:
            print(f"\nrloop-fit: {stopped}; no run was begun", file=sys.stderr)
            return stopped.exit_code


def rloop_data() -> int:
    """The `rloop-data` command; see `cli.data.main`."""
    _find_classes_here()
    with _no_garbage_among_imports():
        from rloop_lightning.cli.data import main
    return main()


def _find_classes_here() -> None:
    """A class path may name a module of the folder that the command is run in; what is installed comes first."""
    sys.path.append(os.getcwd())


@contextmanager
def _no_garbage_among_imports() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
