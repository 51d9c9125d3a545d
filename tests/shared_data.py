"""Public data sets that tests read and that are not part of the project: JSON lines under `$RLOOP_SHARED/data`.

Without the variable they are looked for in `shared/data` beside the project's folder; a test that finds none is skipped
and says so.
"""

import json
import os
from pathlib import Path

import pytest


def shared_rows(name: str) -> list[dict]:
    """The rows of a file; skips the test if it is not there."""
    folder = Path(os.environ.get("RLOOP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = folder / "data" / name
    if not path.is_file():
        pytest.skip(f"no {path}; set RLOOP_SHARED to the folder that holds data/{name}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
