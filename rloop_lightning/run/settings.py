"""The settings of a run. A resume reads them from the state; config.yaml has them for readers and for `--config`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import yaml

from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.state import STATE_VERSION, LoopState
from rloop_lightning.system.files import write_text

VERSION_KEY = "version"
"""The key in config.yaml of the version of its format, `STATE_VERSION`."""

_LONGEST = 1 << 20  # bytes; a config.yaml that the package wrote is much shorter


def recorded_settings(folder: RunFolder) -> dict[str, Any]:
    """The settings of a run as groups; none if it has no readable ones."""
    # A run of version 0 has its settings in config.yaml alone.
    return state_settings(folder) or (yaml.safe_load(_config_text(folder)) or {})


def state_settings(folder: RunFolder) -> dict[str, Any]:
    """The settings in the newest state of a run, as groups; none if it has none or is not readable."""
    try:
        state, _ = folder.newest_state()
    except StateError:
        return {}
    return {} if state is None else dict(state.settings)


def settings_text(settings: Mapping[str, Any]) -> str:
    """The content of config.yaml."""
    return yaml.safe_dump({VERSION_KEY: STATE_VERSION, **settings}, sort_keys=False, allow_unicode=True)


def write_config(folder: RunFolder, state: LoopState) -> None:
    """Write config.yaml from a state, unless it is so already."""
    if state.settings and _config_text(folder) != settings_text(state.settings):
        write_text(folder.config, settings_text(state.settings))


def config_faults(folder: RunFolder) -> list[str]:
    """A message if config.yaml is not what the run wrote."""
    written = []
    for path in folder.states[:2]:  # a kill may have come between a change and its copy in config.yaml
        with suppress(DamagedError):
            written.append(LoopState.load(path).settings)
    if not any(written) or _config_text(folder) in map(settings_text, written):
        return []
    return [
        f"{folder.config} is missing, damaged or was changed; it is written again. To change a setting, give its flag "
        f"with --resume {folder}"
    ]


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings with dotted keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _config_text(folder: RunFolder) -> str:
    if not folder.config.is_file():
        return ""
    with folder.config.open("rb") as file:
        return file.read(_LONGEST).decode(errors="replace")
