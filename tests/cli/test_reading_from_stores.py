"""Commands that read a run or a policy from a store give what they give for a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rloop_lightning.cli.data import main as data
from rloop_lightning.cli.evaluate import main as evaluate
from rloop_lightning.cli.report import main as report

URL = "memory://test_reading/run"


@pytest.fixture
def stored(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The tiny run in a store."""
    monkeypatch.setenv("RLOOP_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.put(f"{finished}/", "/test_reading/run/", recursive=True)
    yield files
    files.rm("/test_reading", recursive=True)


def test_a_run_in_a_store_is_read_as_one_on_disk(
    stored: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tables, exports = [], []
    for kind, run in (("disk", str(finished)), ("store", URL)):
        assert data(["refilter", run, "--filter.max_success_rate", "0.5"]) == 0
        tables.append(capsys.readouterr().out)
        exported = tmp_path / f"{kind}.jsonl"
        assert data(["export", run, "--what", "pool", "--format", "messages", "--out", str(exported)]) == 0
        exports.append(exported.read_text())
        capsys.readouterr()
    assert tables[0] == tables[1]
    assert exports[0] == exports[1]
    assert report([URL]) == 0
    assert "run" in (tmp_path / "report.html").read_text()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".safetensors", ".ckpt")]
    options = ["--eval.samples", "1", "--eval.k", "[1]", "--out"]
    assert evaluate([str(finished), *options, str(tmp_path / "of-disk")]) == 0
    assert evaluate([URL, *options, str(tmp_path / "of-store")]) == 0
    results = [(tmp_path / name / "results.md").read_text() for name in ("of-disk", "of-store")]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        (report, ["memory://test_reading/none"], "memory://test_reading/none: can't read the store: no such object"),
        (report, [URL, "--out", "s3://bucket/x.html"], "--out s3://bucket/x.html: it takes a local path"),
        (data, ["refilter", "memory://test_reading/none"], "memory://test_reading/none: can't read the store"),
        (
            data,
            ["check", "countdown", "--policy.model", "memory://x/none"],
            "--policy.model memory://x/none: can't read the store",
        ),
        (
            data,
            ["export", URL, "--what", "pool", "--format", "messages", "--out", "s3://b/x.jsonl"],
            "--out s3://b/x.jsonl: it takes a local path",
        ),
        (evaluate, ["memory://test_reading/none", "--data", "x.jsonl"], "memory://test_reading/none: can't read the"),
        (evaluate, [URL, "--out", "s3://bucket/x"], "--out s3://bucket/x: it takes a local path"),
        (evaluate, ["--resume", "s3://bucket/x"], "--resume s3://bucket/x: it takes a local path"),
    ],
)
def test_what_is_missing_in_a_store_or_can_t_be_written_there_is_told(
    stored: Any, command: Any, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(arguments) == 2
    assert expected in capsys.readouterr().err
