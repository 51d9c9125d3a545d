"""Short names for what the command line swaps: `--algo dapo` is `--algo rloop_lightning.algorithms.dapo.DAPO`.

Packages of others add names under the entry-point group `rloop_lightning.GROUP`, GROUP as in `REGISTRIES`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points

from rloop_lightning.algorithms import ALGORITHMS, CONSOLIDATIONS
from rloop_lightning.data import PROBLEM_SOURCES
from rloop_lightning.engines import ENGINES
from rloop_lightning.errors import DoorError
from rloop_lightning.rewards import REWARDS

NONE = "none"

REGISTRIES: Mapping[str, Mapping[str, str]] = {
    "algorithms": ALGORITHMS,
    "consolidations": CONSOLIDATIONS,
    "engines": ENGINES,
    "data": PROBLEM_SOURCES,
    "rewards": REWARDS,
}


def names(registry: str) -> dict[str, str]:
    """Short name to class path, those of installed packages included; ours win."""
    installed = {
        entry.name: entry.value.replace(":", ".") for entry in entry_points(group=f"rloop_lightning.{registry}")
    }
    return {**installed, **REGISTRIES[registry]}


def find_class(registry: str, name: str, base: type) -> type:
    """The class of a short name or a class path.

    Raises:
        ValueError: there is none, or it is no subclass of `base`; says what there is.
    """
    known = names(registry)
    module, dot, attribute = known.get(name, name).rpartition(".")
    if not dot:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"unknown name {name!r}{hint} Known are {', '.join(sorted(known))}, or give a class path")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except DoorError:
        raise ValueError(f"{name!r} goes through a link into the package; give rloop_lightning.{name}") from None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"can't import {known.get(name, name)!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{known.get(name, name)!r} is no subclass of {base.__module__}.{base.__qualname__}")
    return found
