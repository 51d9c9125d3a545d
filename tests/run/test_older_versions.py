"""Runs of older versions of the package go on, and those of newer ones are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rloop_lightning.cli.main import main
from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.run.state import STATE_VERSION, LoopState
from rloop_lightning.system.json_file import json_checksum

KEPT = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def of_version_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A copy of a kept run, in a folder from which its relative paths are right."""
    shutil.copytree(KEPT / "version-0", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path


def test_a_killed_run_of_version_0_goes_on(of_version_0: Callable[[str], Path]) -> None:
    run = of_version_0("killed")
    shards = {path.name: path.read_bytes() for path in (run / "round-0" / "pool").glob("*.parquet")}
    rows = read_metrics(run / "metrics.csv")
    assert main(["--resume", str(run)]) == 0
    assert shards.items() <= {path.name: path.read_bytes() for path in (run / "round-0" / "pool").glob("*")}.items()
    now = read_metrics(run / "metrics.csv")
    assert now[: len(rows)] == rows
    assert [row["step"] for row in now if row["phase"] == "explore"] == [1, 2, 3, 4]
    state = LoopState.load(run / "state.json")
    assert state.phase == "done"
    assert state.settings["policy"] == yaml.safe_load((run / "config.yaml").read_text())["policy"]
    assert yaml.safe_load((run / "config.yaml").read_text())["version"] == STATE_VERSION


def test_an_option_that_is_newer_than_the_run_has_its_default_there(
    of_version_0: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = of_version_0("killed")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for group, name in (("loop", "show_completions"), ("loop", "on_too_few_groups"), ("algo", "dual_clip")):
        del settings[group][name]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["--resume", str(run), "--loop.on_too_few_groups", "train"]) == 0
    kept = LoopState.load(run / "state.json").settings
    assert (kept["loop"]["show_completions"], kept["algo"]["dual_clip"]) == (50, 10)
    assert "--loop.on_too_few_groups train (before: end_phase)" in (run / "results.md").read_text()
    assert "dual_clip" not in (run / "results.md").read_text()


def test_a_complete_run_of_version_0_is_complete_and_takes_more_rounds(
    of_version_0: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = of_version_0("complete")
    assert main(["--resume", str(run)]) == 0
    assert not [record for record in caplog.records if "damaged" in record.message or "missing" in record.message]
    assert main(["--resume", str(run), "--loop.rounds", "2"]) == 0
    assert (run / "round-1" / "policy" / "model.safetensors").exists()


def newer(path: Path) -> None:
    values = json.loads(path.read_text())
    del values["sha256"]
    values |= {"version": STATE_VERSION + 1, "written_by": "rloop-lightning 99.0", "new": 1}
    path.write_text(json.dumps({**values, "sha256": json_checksum(values)}))


def test_a_run_of_a_newer_version_is_refused_by_name(
    of_version_0: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = of_version_0("killed")
    newer(run / "state.json")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["--resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"{run / 'state.json'} was written by rloop-lightning 99.0, in format {STATE_VERSION + 1}" in said
    assert f"reads formats up to {STATE_VERSION}" in said
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_settings_of_a_newer_version_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"version: {STATE_VERSION + 1}\nloop: {{rounds: 1}}\n")
    assert main(["--config", str(path), "--out", str(tmp_path / "run")]) == 2
    assert f"version: the settings are of version {STATE_VERSION + 1}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"stages_done": "3"},
        {"stages_done": -1},
        {"notes": 3},
        {"notes": [3]},
        {"budget": {"rollouts": "many"}},
        {"budget": {"unknown": 1}},
        {"results": {"base": [0.5]}},
        {"explore_steps": [4.5]},
        {"run_id": None},
        {"settings": []},
        {"added": 1},
    ],
    ids=str,
)
def test_a_state_with_other_fields_or_types_is_damaged(change: dict, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    LoopState("abc").save(path)
    values = json.loads(path.read_text()) | change
    del values["sha256"]
    path.write_text(json.dumps({**values, "sha256": json_checksum(values)}))
    with pytest.raises(DamagedError, match=r"state\.json is damaged"):
        LoopState.load(path)


def test_a_state_without_a_run_id_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"sha256": json_checksum({})}))
    with pytest.raises(DamagedError, match=r"state\.json is damaged"):
        LoopState.load(path)


def test_a_newer_state_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    LoopState("abc").save(path)
    newer(path)
    with pytest.raises(StateError, match="install that version or a newer one"):
        LoopState.load(path)
