"""What `rloop-data` reads of an existing run: its settings, its problem sets and its tokenizer.

The run may be somebody else's: classes that its settings name are imported only if they are this package's, or the user
trusts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.config_files import with_parts
from rloop_lightning.cli.parse_errors import Context, parse
from rloop_lightning.cli.registry import find_class
from rloop_lightning.cli.swappable import SWAPPABLE, expand
from rloop_lightning.cli.trust import code_faults, strange_paths
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.errors import StateError
from rloop_lightning.model.adapter_folder import base_of
from rloop_lightning.model.config import model_source
from rloop_lightning.model.loading import is_folder, load_tokenizer
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.problem_record import recorded_date
from rloop_lightning.run.settings import recorded_settings
from rloop_lightning.run.state import LoopState
from rloop_lightning.system.fetched import fetched_run
from rloop_lightning.system.imports import is_unnamed
from rloop_lightning.system.store_errors import StoreError
from rloop_lightning.system.store_urls import is_url
from rloop_lightning.system.terminal import one_line

WITHOUT = "--format prompt-completion with --without_prompts needs no data"


@dataclass(frozen=True)
class StoredRun:
    """A run folder with its state and settings."""

    folder: RunFolder
    state: LoopState
    settings: Mapping[str, Any]

    @classmethod
    def at(cls, path: str) -> StoredRun:
        """Read a run at a path or a URL.

        Raises:
            UsageError: there is no readable run, or the store can't be read.
        """
        try:
            folder = RunFolder(fetched_run(path) if is_url(path) else Path(path))
            state, _ = folder.newest_state()
        except (StateError, StoreError) as error:
            raise UsageError(str(error)) from error
        if state is None:
            raise UsageError(f"{path}: no {folder.state.name} there; give the folder of a run")
        settings = recorded_settings(folder)
        if not isinstance(settings, dict) or not settings:
            raise UsageError(f"{path}: the settings of the run are not there")
        return cls(folder, state, settings)

    def group(self, name: str) -> dict[str, Any]:
        """The settings of a group."""
        values = self.settings.get(name)
        return dict(values) if isinstance(values, dict) else {}

    @property
    def model(self) -> str:
        return str(self.group("policy").get("model", ""))

    @property
    def data_name(self) -> str:
        """The name of the run's data: of a hub data set or a file, else the short name."""
        data = self.group("data")
        return str(data.get("dataset") or data.get("path") or data.get("name") or "")

    def source(self, data: str | None, *, trusted: bool) -> ProblemSource:
        """The problem sets, as the run reads them.

        Args:
            data: where they are now, as for `--data`; None is where they were.
            trusted: whether code of others that the settings name may be imported.

        Raises:
            UsageError: names all errors.
        """
        given = {"data": self.settings.get("data")}
        if strange_paths(given) and not trusted and (faults := self._code_faults()):
            raise UsageError("\n".join(faults))
        wrong: list[str] = []
        settings = with_parts(self.folder.config.name, given, wrong).get("data")
        if wrong or not isinstance(settings, dict):
            raise UsageError("\n".join(wrong) or f"{self.folder.config}: the run has no setting `data`")
        settings = self.folder.located(settings)
        name = str(settings.pop("name", SWAPPABLE["data"].default))
        if data is not None:
            settings |= _elsewhere(data, name)
        if is_unnamed(name):
            raise UsageError(f"--data: the run began with a Python object, {one_line(name)}; {WITHOUT}")
        try:
            cls = find_class(SWAPPABLE["data"].registry, name, SWAPPABLE["data"].base)
            source = _made(cls, settings, str(self.folder.config))
        except ValueError as error:
            raise UsageError(str(error)) from error
        source.today = self._first_day()
        return source

    def tokenizer(self) -> Any:
        """The tokenizer of the run's policy: the base policy's, else of the policy that the run handed over.

        Raises:
            ValueError: none of them can be loaded.
        """
        try:
            named = base_of(model_source(self.model))
        except ValueError as error:
            raise ValueError(f"the tokenizer of the run's policy, --policy.model {self.model}: {error}") from error
        folders = [self.folder.base, *([Path(named)] if is_folder(named) else []), self.folder.final]
        found = next((str(path) for path in folders if (path / "config.json").is_file()), named)
        try:
            return load_tokenizer(found)
        except (ValueError, OSError) as error:
            raise ValueError(f"the tokenizer of the run's policy, --policy.model {one_line(found)}: {error}") from error

    def _code_faults(self) -> list[str]:
        return code_faults(self.folder.out, self.settings, (), option="", what="reading the problems")

    def _first_day(self) -> date:
        """The date that chat templates saw."""
        return date.fromisoformat(self.state.began) if self.state.began else recorded_date(self.folder.problems)


def _elsewhere(data: str, name: str) -> dict[str, Any]:
    """The settings that say where the problems are now.

    Raises:
        UsageError: what is there can't be read as the run's data was.
    """
    settings = expand("data", data)
    if (kind := settings.pop("name")) != name:
        raise UsageError(
            f"--data {one_line(data, limit=200)}: it is of --data {one_line(kind)}, and the run's data of --data "
            f"{one_line(name)}; give a problem set of that kind"
        )
    return settings


def _made(cls: type[ProblemSource], settings: Mapping[str, Any], file: str) -> ProblemSource:
    """A problem source from its recorded settings.

    Args:
        file: their file, for messages.

    Raises:
        ValueError: names all wrong settings.
    """
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(cls, "data")
    accepted, wrong = parse(parser, {"data": dict(settings)}, [], Context(lambda key: file))
    if accepted is None or wrong:
        raise ValueError("\n".join(wrong))
    # A class without arguments is no group of the parser.
    return parser.instantiate(accepted).data if "data" in accepted else cls()
