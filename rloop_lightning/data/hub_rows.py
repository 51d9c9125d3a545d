"""Rows of Hugging Face data sets, read by the package `datasets`, which is imported on first use.

    NAME[@REVISION][:CONFIG[:SPLIT]]       openai/gsm8k:main:test

A data set's code is never run: `datasets` reads only its data files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rloop_lightning.data.rows import BadRow, Row
from rloop_lightning.system.hub import hub_answers, unreachable_hub

_SPEC = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:@\s]+))?"
    r"(?::(?P<config>[^:]*)(?::(?P<split>[^:].*))?)?",
)


@dataclass(frozen=True)
class HubName:
    """A data set on the hub, or a folder in the hub's layout.

    Args:
        dataset: `organisation/name`, or a folder.
        config: None takes the default configuration.
        split: None takes the only split, or the one that `usual_split` names.
        revision: a branch, tag or commit.
        usual_split: `train` for a training set, `test` for an evaluation set.
    """

    dataset: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    usual_split: str = "train"

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        config = f":{self.config or ''}" if self.config or self.split else ""
        return f"{self.dataset}{revision}{config}" + (f":{self.split}" if self.split else "")


def parse_hub_name(spec: str, usual_split: str) -> HubName | None:
    """Parse the name of a data set; None if it can't be one."""
    found = _SPEC.fullmatch(spec)
    if found is None:
        return None
    return HubName(found["name"], found["config"] or None, found["split"], found["revision"], usual_split)


def hub_rows(name: HubName) -> Iterator[Row | BadRow]:
    """The rows of a data set, in order."""
    try:
        split, table = _load(name)
    except _LoadError as error:
        yield BadRow("", str(error))
        return
    for number, values in enumerate(table):
        yield Row(f"{split}[{number}]", values)


class _LoadError(Exception):
    """A data set can't be loaded. The message says why and what to do."""


def _elsewhere(name: HubName) -> str:
    """How to use a data set without the hub."""
    return (
        f"get it where the hub answers, by `hf download {name.dataset} --repo-type dataset --local-dir FOLDER`, and "
        "give the file that holds the problems"
    )


def _load(name: HubName) -> tuple[str, Any]:
    """The split and its table."""
    try:
        import datasets
    except ImportError as error:
        raise _LoadError("needs the package datasets: pip install datasets") from error
    datasets.disable_progress_bars()
    local = Path(name.dataset).exists()
    offline = "" if local or hub_answers() else f" ({unreachable_hub()}; {_elsewhere(name)})"
    if offline:
        datasets.config.HF_HUB_OFFLINE = True  # otherwise `datasets` retries for half a minute
    try:
        loaded = datasets.load_dataset(name.dataset, name.config, split=name.split, revision=name.revision)
    except Exception as error:  # the hub's client, the network and the format parsers raise many types
        reason = str(error).strip().partition("\n")[0]
        neither = "" if local else "; no file or folder has that name either"
        raise _LoadError(f"can't be loaded: {reason or type(error).__name__}{offline}{neither}") from error
    split = name.split
    if split is None:
        split = next(iter(loaded)) if len(loaded) == 1 else name.usual_split
        if split not in loaded:
            raise _LoadError(f"has no split {split!r}, it has {', '.join(loaded)}; name one of them")
        loaded = loaded[split]
    media = (datasets.Image, datasets.Audio)  # decoding them takes time and extra packages
    loaded = loaded.remove_columns([key for key, kind in loaded.features.items() if isinstance(kind, media)])
    return split, loaded
