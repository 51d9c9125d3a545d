"""The plans, the table and the simulations of docs/scaling.md are what the commands beside them print."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "scaling_tables.py"


def test_every_command_prints_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made = runpy.run_path(str(SCRIPT))
    written = made["PAGE"].read_text(encoding="utf-8")
    assert made["page"]() == written, f"run {SCRIPT.relative_to(ROOT)} and look at what has changed"
    for name in (*made["PLANS"], *made["SIMULATIONS"]):
        assert f"<!-- command: {name} -->" in written
