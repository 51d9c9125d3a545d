"""Short names of swappable parts: `--algo dapo` is `--algo rloop_lightning.algorithms.dapo.DAPO`.

Third-party packages add names under the entry-point group `rloop_lightning.GROUP`, with GROUP as in `REGISTRIES`.
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points

from rloop_lightning.algorithms import ALGORITHMS, CONSOLIDATIONS
from rloop_lightning.data import PROBLEM_SOURCES
from rloop_lightning.engines import ENGINES
from rloop_lightning.rewards import REWARDS
from rloop_lightning.system.imports import import_object

NONE = "none"

REGISTRIES: Mapping[str, Mapping[str, str]] = {
    "algorithms": ALGORITHMS,
    "consolidations": CONSOLIDATIONS,
    "engines": ENGINES,
    "data": PROBLEM_SOURCES,
    "rewards": REWARDS,
}


def names(registry: str) -> dict[str, str]:
    """Short names to class paths, including those of installed packages. Ours take precedence."""
    return {**_installed(registry, tuple(sys.path)), **REGISTRIES[registry]}


@functools.cache
def _installed(registry: str, search_path: Sequence[str]) -> Mapping[str, str]:
    """Those of the packages on `sys.path`. It takes about 0.02 s to look through all of them."""
    entries = entry_points(group=f"rloop_lightning.{registry}")
    return {entry.name: entry.value.replace(":", ".") for entry in entries}


def find_class(registry: str, name: str, base: type) -> type:
    """The class of a short name or class path.

    Raises:
        ValueError: it is unknown, or not a subclass of `base`; lists the known names.
    """
    known = names(registry)
    path = known.get(name, name)
    if "." not in path:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"unknown name {name!r}{hint} Known are {', '.join(sorted(known))}, or give a class path")
    found = import_object(path)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{path!r} is not a subclass of {base.__module__}.{base.__qualname__}")
    return found


def is_function(path: str) -> bool:
    """Whether an import path refers to a callable that is not a class."""
    try:
        found = import_object(path)
    except ValueError:
        return False
    return callable(found) and not isinstance(found, type)
