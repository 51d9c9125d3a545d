"""The swappable parts of a run, and what a part's name on the command line stands for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rloop_lightning.cli.declared import declared_class
from rloop_lightning.cli.registry import NONE, is_function, names
from rloop_lightning.data.hub_rows import parse_hub_name
from rloop_lightning.data.rows import looks_like_a_file
from rloop_lightning.system.imports import import_object, is_unnamed


@dataclass(frozen=True)
class Swappable:
    """A group of the command line whose class the user chooses.

    Args:
        registry: registry of the short names.
        base_path: import path of the required base class.
        default: short name used by default.
        what: description for the help.
        also: what else may be given in place of a short name, for the help.
    """

    registry: str
    base_path: str
    default: str
    what: str
    also: tuple[str, ...] = ()

    @property
    def base(self) -> Any:
        """The required base class, imported."""
        return import_object(self.base_path)

    @property
    def help(self) -> str:
        """The description with the short names."""
        known = [*sorted(names(self.registry)), *([NONE] if self.registry == "consolidations" else [])]
        return f"{self.what}: {', '.join((*known, *self.also))}, or a class path"


SWAPPABLE = {
    "algo": Swappable(
        "algorithms", "rloop_lightning.algorithms.base.Algorithm", "dapo", "the RL algorithm of the exploration"
    ),
    "consolidate": Swappable(
        "consolidations",
        "rloop_lightning.algorithms.consolidation.Consolidation",
        "rft",
        "the consolidation after each round",
    ),
    "engine": Swappable(
        "engines", "rloop_lightning.engines.base.RolloutEngine", "torch", "the engine that generates rollouts"
    ),
    "data": Swappable(
        "data",
        "rloop_lightning.data.base.ProblemSource",
        "countdown",
        "the problems",
        ("a file or folder (train.jsonl)", "a data set on the hub (openai/gsm8k:main)"),
    ),
    "reward": Swappable(
        "rewards",
        "rloop_lightning.rewards.base.Reward",
        "the data's own",
        "the reward",
        ("a function of yours (my_module.my_function)",),
    ),
}


def names_with(group: str, field: str) -> list[str]:
    """The short names of a group's classes that have an argument."""
    classes = {name: declared_class(path) for name, path in names(SWAPPABLE[group].registry).items()}
    return sorted(name for name, declared in classes.items() if declared is not None and field in declared.arguments)


def expand(group: str, name: str) -> dict[str, str]:
    """Expand a part's name to settings: `--data train.jsonl` is `--data files --data.path train.jsonl`.

    A file or folder expands to `files`, `organisation/name` to `hub`, and a function to `--reward function`. Everything
    else is a short name or a class path.
    """
    if name in names(SWAPPABLE[group].registry) or is_unnamed(name):
        return {"name": name}
    if group == "reward" and is_function(name):
        return {"name": "function", "function": name}
    if group != "data":
        return {"name": name}
    if looks_like_a_file(name):
        return {"name": "files", "path": name}
    if hub := parse_hub_name(name, "train"):
        given = {"dataset": hub.dataset, "config": hub.config, "split": hub.split, "revision": hub.revision}
        return {"name": "hub", **{field: value for field, value in given.items() if value is not None}}
    return {"name": name}
