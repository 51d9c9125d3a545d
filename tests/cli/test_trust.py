"""A resume imports no code that only the run's settings name, unless the user trusts the run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import TinyRun

from rloop_lightning import train
from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.main import main
from rloop_lightning.cli.trust import strange_paths

MODULE = "a_strangers_module"
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
SOURCE = """
from pathlib import Path

from lightning.pytorch.callbacks import Callback

Path(__file__).with_suffix(".imported").touch()


class Watch(Callback):
    pass


def reward(problems, completions):
    return [float(len(text) % 2) for text in completions]
"""


@pytest.fixture(scope="module")
def made(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module, a complete run whose settings name it, and the state of the user who made it."""
    folder = tmp_path_factory.mktemp("trust")
    (folder / "code").mkdir()
    (folder / "code" / f"{MODULE}.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "code")
        patch.setenv("XDG_STATE_HOME", str(folder / "my-state"))
        callbacks = f"[{{class_path: {MODULE}.Watch}}]"
        assert tiny.fit(folder / "run", f"--reward={MODULE}.reward", f"--trainer.callbacks={callbacks}") == 0
    return folder


@pytest.fixture
def module(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module, not yet imported. It leaves a file where it is imported."""
    monkeypatch.syspath_prepend(made / "code")
    monkeypatch.setenv("XDG_STATE_HOME", str(made / "my-state"))
    file = made / "code" / f"{MODULE}.py"
    file.with_suffix(".imported").unlink(missing_ok=True)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return file


@pytest.fixture
def run(made: Path, module: Path) -> Path:
    return made / "run"


def become_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-of-another"))


def test_ones_own_run_is_resumed_without_a_question(run: Path) -> None:
    assert main(["--resume", str(run)]) == 0


def test_ones_own_run_that_a_kill_left_at_its_start_is_resumed_without_a_question(
    tiny: TinyRun, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("rloop_lightning.cli.prepare.keep_record", killed)  # right after the run has its state
        with pytest.raises(Killed):
            tiny.fit(tmp_path / "run", f"--reward={MODULE}.reward")
    assert (tmp_path / "run" / "state.json").exists()
    assert main(["--resume", str(tmp_path / "run"), "--dry_run"]) == 0


def test_a_strangers_run_is_refused_before_anything_is_imported(
    run: Path, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    become_another_user(tmp_path, monkeypatch)
    assert main(["--resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"reward.function names {MODULE}.reward, from {module}" in said
    assert f"trainer.callbacks.0.class_path names {MODULE}.Watch" in said
    assert "add --trust" in said
    assert not module.with_suffix(".imported").exists()
    with pytest.raises(UsageError, match="add --trust"):
        train(resume=run)


def test_trust_is_kept_for_the_next_resume(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become_another_user(tmp_path, monkeypatch)
    train(resume=run, trust=True)
    assert main(["--resume", str(run)]) == 0


def test_code_that_is_named_on_the_command_line_or_in_ones_own_file_is_chosen(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    become_another_user(tmp_path, monkeypatch)
    assert main(["--resume", str(run), "--reward", f"{MODULE}.reward"]) == 2
    said = capsys.readouterr().err
    assert f"{MODULE}.Watch" in said
    assert f"{MODULE}.reward" not in said
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"trainer": {"callbacks": [f"{MODULE}.Watch"]}}))
    assert main(["--resume", str(run), "--config", str(mine), "--reward", f"{MODULE}.reward"]) == 0


def test_a_run_that_was_moved_or_whose_code_comes_from_elsewhere_is_a_strangers(
    run: Path, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "moved")
    assert main(["--resume", str(tmp_path / "moved")]) == 2
    shutil.copytree(module.parent, tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert main(["--resume", str(run)]) == 2


def test_a_run_without_a_writable_state_folder_goes_on_and_says_so(
    module: Path, tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert tiny.fit(tmp_path / "run", f"--reward={MODULE}.reward") == 0
    assert "a resume of this run needs --trust" in caplog.text


def test_trust_belongs_to_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "trusting.yaml"
    settings.write_text("trust: true\n")
    assert main(["--config", str(settings), "--trust", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "trust: give --trust on the command line, not in a file" in said
    assert "--trust needs --resume RUN" in said


@pytest.mark.parametrize(
    "settings",
    [
        {"algo": "evil.Algo"},
        {"algo": {"class_path": "evil.Algo"}},
        {"reward": {"name": "function", "function": "evil.f"}},
        {"reward": {"name": "weighted", "rewards": {"a": {"class_path": "evil.R"}}}},
        {"reward": {"name": "weighted", "rewards": {"a": "evil.R"}}},
        {"trainer": {"strategy": {"class_path": "evil.S"}}},
        {"trainer": {"callbacks": ["evil.C"]}},
        {"trainer": {"callbacks": [{"class_path": LAMBDA, "init_args": {"a": "os.f"}}]}},
        {"trainer": {"callbacks": "[{class_path: evil.C}]"}},
        {"trainer": {"callbacks": '{"class_path": "evil\\x2eC"}'}},
        {"trainer.callbacks": "evil.C"},
        {"trainer": {"logger+": ["evil.L"]}},
        {"trainer": {"profiler": "lightning.pytorch.cli.os.system"}},
        {"data": {"name": "evil.Data"}},
        {"data": {"name": "files", "path": "a.jsonl", "eval": {"class_path": "evil.D"}}},
        {"loop": {"class_path": "evil.L"}},
    ],
)  # fmt: skip
def test_every_way_to_name_code_is_seen(settings: dict) -> None:
    assert len(strange_paths(settings)) == 1


def test_the_packages_own_parts_and_plain_settings_are_no_code(finished: Path) -> None:
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    assert strange_paths(settings) == {}
    files = {"name": "files", "path": "train.jsonl", "eval": "test.jsonl", "template": "{problem}"}
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "grad/norm"}}
    own = {"algo": "rloop_lightning.algorithms.dapo.DAPO", "data": files, "trainer": {"callbacks": [stopping]}}
    assert strange_paths(own) == {}
