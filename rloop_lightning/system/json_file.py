"""Small JSON files with a checksum and a version of their format.

    write_json(run / "state.json", {"round": 1}, version=1)
    read_json(run / "state.json", newest=1)  # -> ({"round": 1}, 1)

A file without a version has version 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rloop_lightning import __version__
from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.system.files import write_text
from rloop_lightning.system.terminal import one_line

_PACKAGE = "rloop-lightning"
# Keys of the file itself. The checksum is over all other keys.
_CHECKSUM, _VERSION, _WRITER = "sha256", "version", "written_by"


def write_json(path: Path, values: Mapping[str, Any], *, version: int) -> None:
    """Write a JSON object atomically.

    Raises:
        WriteError: the file can't be written.
    """
    content = {_VERSION: version, _WRITER: f"{_PACKAGE} {__version__}", **values}
    write_text(path, json.dumps({**content, _CHECKSUM: json_checksum(content)}, indent=2) + "\n")


def read_json(path: Path, *, newest: int, checked_since: int = 0) -> tuple[dict[str, Any], int]:
    """The values in a file, and the version of their format.

    Args:
        path: the file.
        newest: the newest version that the caller can read.
        checked_since: the first version that has checksums.

    Raises:
        DamagedError: the file is missing, or its content is not what was written.
        StateError: a newer version of the package wrote it.
    """
    try:
        values = json.loads(path.read_bytes())
        version = values.get(_VERSION, 0)
        intact = version < checked_since or values.pop(_CHECKSUM) == json_checksum(values)
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except OSError as error:
        raise DamagedError(f"{path} can't be read ({error.strerror})") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise DamagedError(f"{path} is damaged (its checksum differs)")
    writer = values.pop(_WRITER, _PACKAGE)
    values.pop(_VERSION, None)
    if not isinstance(version, int) or version < 0:
        raise DamagedError(f"{path} is damaged (its version is {one_line(repr(version))})")
    if version > newest:
        raise StateError(
            f"{path} was written by {one_line(str(writer))}, in format {version}; {_PACKAGE} {__version__} "
            f"reads formats up to {newest}; install that version or a newer one"
        )
    return values, version


def json_checksum(values: Any) -> str:
    """A checksum of a value, equal for values with equal JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
