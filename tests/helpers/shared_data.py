"""Public data sets that tests read and that are not part of the project: JSON lines under `$RLOOP_SHARED/data`.

Without the variable they are looked for in `shared/data` beside the project's folder; a test that finds none is skipped
and says so.
"""

import json
import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("RLOOP_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"


def shared(name: str) -> Path:
    """A file of the shared data; skips the test, with the reason, if it is not there."""
    if not (SHARED / name).is_file():
        pytest.skip(f"no {SHARED / name}; set RLOOP_SHARED to the folder that holds data/{name}")
    return SHARED / name


def shared_rows(name: str) -> list[dict]:
    """The rows of a file; skips the test if it is not there."""
    return [json.loads(line) for line in shared(name).read_text(encoding="utf-8").splitlines()]
