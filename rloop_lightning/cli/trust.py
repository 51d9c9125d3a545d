"""Whose code the settings of a run name. A resume imports it, so a stranger's run needs `--trust`.

    code_faults(run, settings, chosen)         what to say before anything is imported
    strange_paths(settings)                    {"reward.name": "their_module.reward"}
    remember(run, paths)                       at the start of a run

Code of this package, of torch's optimizers, of Lightning's Trainer parts and of installed entry points needs no
question: the user has installed it, and knows what it does. Everything else has to be named on the command line, or
accepted. What a run of this user's has used is kept in his state folder, so that he can resume his own runs.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rloop_lightning.cli.registry import REGISTRIES, names
from rloop_lightning.cli.swappable import SWAPPABLE
from rloop_lightning.cli.yaml_text import YAMLFault, load_yaml
from rloop_lightning.system.files import write_text
from rloop_lightning.system.imports import module_origin
from rloop_lightning.system.terminal import one_line

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
_OWN = "rloop_lightning."
_KNOWN = (_OWN, "torch.optim.")
_KNOWN_TO_THE_TRAINER = (*_KNOWN, "lightning.", "pytorch_lightning.")
_NAMES_A_CLASS = "class_path"


def strange_paths(settings: Mapping[str, Any]) -> dict[str, str]:
    """By setting, the import paths that belong neither to this package, nor to torch, Lightning or an entry point.

    Args:
        settings: by group. Nothing that they name is imported.
    """
    installed = {path for registry in REGISTRIES for path in names(registry).values()}
    return {
        key: path
        for key, path in _import_paths(settings)
        if path not in installed and not _belongs(path, _KNOWN_TO_THE_TRAINER if key.startswith("trainer") else _KNOWN)
    }


def chosen_paths(values: Iterable[str], settings: Iterable[Mapping[str, Any]]) -> set[str]:
    """The import paths that the user gives himself.

    Args:
        values: of the command line: an import path, or a mapping that holds some.
        settings: of the user's settings files.
    """
    return {path for value in values for _, path in _strings("", value)} | {
        path for file in settings for path in strange_paths(file).values()
    }


def code_faults(
    run: Path,
    settings: Mapping[str, Any],
    chosen: Container[str],
    *,
    option: str = "--resume ",
    what: str = "a resume",
) -> list[str]:
    """The messages that ask for `--trust`; none if the user chose all code himself, now or when the run started.

    Args:
        run: the run folder.
        settings: of the run.
        chosen: import paths that the user gives with the resume.
        option: the option that names the run, for messages.
        what: what runs the code.
    """
    strange = strange_paths(settings)
    unknown = {key: path for key, path in strange.items() if path not in chosen}
    if not unknown or _remembered(run, strange.values()):
        return []
    lines = [
        f"{option}{run}: {one_line(key, limit=100)} names {one_line(path, limit=200)}, from "
        f"{module_origin(path) or 'a module that is not installed'}"
        for key, path in unknown.items()
    ]
    return [*lines, f"{option}{run}: {what} runs this code; if you trust it, add --trust"]


def _remembered(run: Path, paths: Iterable[str]) -> bool:
    """Whether this user has run just these paths in this folder before, from the same files."""
    try:
        return _record(run).read_text(encoding="utf-8") == _fingerprint(paths)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: the user has no home
        return False


def remember(run: Path, paths: Iterable[str]) -> bool:
    """Keep for the next resume that the user runs these paths in this folder. False if it can't be written."""
    try:
        write_text(_record(run), _fingerprint(paths))
    except (OSError, RuntimeError):
        return False
    return True


def _belongs(path: str, packages: tuple[str, ...]) -> bool:
    """Whether a module of these packages defines it, rather than `package.module.os.system`."""
    if not path.startswith(packages):
        return False
    try:
        return find_spec(path.rpartition(".")[0]) is not None
    except (ImportError, ValueError):  # its parent is no package
        return False


def _record(run: Path) -> Path:
    given = os.environ.get("XDG_STATE_HOME", "")
    state = Path(given) if os.path.isabs(given) else Path.home() / ".local" / "state"
    return state / "rloop-lightning" / "trusted" / hashlib.sha256(os.fsencode(run.resolve())).hexdigest()


def _fingerprint(paths: Iterable[str]) -> str:
    lines = sorted({f"{path}\t{module_origin(path)}\n" for path in paths})
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _import_paths(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Whatever could be imported, with its setting."""
    for group, values in settings.items():
        if group.partition(".")[0] not in (*SWAPPABLE, "trainer"):
            yield from _class_paths(group, values)
        elif not isinstance(values, Mapping) or not (group == "data" and _is_own_data(values)):
            yield from _strings(group, values)
        else:  # our problem sets have fields for text, such as the file train.jsonl, and none that imports
            yield from _class_paths(group, values)


def _is_own_data(values: Mapping[str, Any]) -> bool:
    path = names("data").get(str(values.get("name")), "")
    return _NAMES_A_CLASS not in values and path.startswith(_OWN)


def _class_paths(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Only what stands under `class_path`."""
    for place, text in _strings(key, value):
        if place.rpartition(".")[2] == _NAMES_A_CLASS:
            yield place, text


def _strings(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every text that has the form of an import path, and those in texts that the parser would read as mappings."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _strings(f"{key}.{number}", inner)
    elif isinstance(value, str):
        text = value.strip()
        if _IMPORT_PATH.fullmatch(text):
            yield key, text
            return
        try:
            inner = load_yaml(text)
        except YAMLFault:
            return
        if isinstance(inner, Mapping | list) or (isinstance(inner, str) and inner != text):
            yield from _strings(key, inner)
