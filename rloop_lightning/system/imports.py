"""Python objects by their import path, and what stands for one that has none.

import_object("my_module.my_function")
import_path(my_function)                 "my_module.my_function", or None for a lambda
unnamed(my_lambda)                       "<function my_module.<lambda>>", what config.yaml holds then
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from rloop_lightning.errors import DoorError, Stopped
from rloop_lightning.system.terminal import one_line


def import_object(path: str) -> Any:
    """What stands in a module under a name: `module.name`.

    Raises:
        ValueError: it can't be imported; says why.
    """
    module, dot, name = path.rpartition(".")
    if not dot:
        raise ValueError(f"{_shown(path)} is no import path; give module.name")
    try:
        return getattr(importlib.import_module(module), name)
    except DoorError:
        raise ValueError(f"{_shown(path)} goes through a link into the package; give rloop_lightning.{path}") from None
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException as error:  # a module of the user may raise anything, SystemExit included
        expected = isinstance(error, ImportError | AttributeError | ValueError | TypeError)
        what = "" if expected and str(error) else f"{type(error).__name__}: "
        told = one_line(f"{what}{error}".removesuffix(": "), limit=300)
        raise ValueError(f"can't import {_shown(path)}: {told}") from error


def _shown(path: str) -> str:
    return one_line(repr(path), limit=200)


def module_origin(path: str) -> str:
    """The file of the top-level module of an import path, which is not imported. Empty if it has none."""
    top = path.partition(".")[0]
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(top, None)
        except Exception:  # a finder of another package may raise anything
            continue
        if spec is not None:
            places = [*(spec.submodule_search_locations or [])]
            return spec.origin if spec.has_location and spec.origin else next(iter(places), "")
    return ""


def import_path(thing: Any) -> str | None:
    """The path by which another process imports a class or a function.

    None where there is none: a lambda, what a function or `__main__` defines, an object.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module in (None, "__main__") or name is None:
        return None
    return f"{module}.{name}" if getattr(sys.modules.get(module), name, None) is thing else None


def unnamed(thing: Any) -> str:
    """The name of an object that has no import path; no object that has one is named so."""
    if isinstance(thing, type) or not (hasattr(thing, "__qualname__") and hasattr(thing, "__module__")):
        cls = thing if isinstance(thing, type) else type(thing)
        return f"<object of {cls.__module__}.{cls.__qualname__}>"
    return f"<function {thing.__module__}.{thing.__qualname__}>"


def is_unnamed(name: object) -> bool:
    """Whether a name is one that `unnamed` gives."""
    return isinstance(name, str) and name.startswith("<")
