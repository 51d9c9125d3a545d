"""An evaluation that is killed, stopped, damaged or disturbed goes on from its folder with the same bits."""

from __future__ import annotations

import os
import shutil
import signal
from datetime import date
from pathlib import Path

import pytest
from killing import Fault, FullDisk, Kill, Signal, run_fit
from safetensors.torch import load_file, save_file

from rloop_lightning.cli.evaluate import main
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.system.lock import FolderLock

# Two problems a part, so that there are two parts a set.
SETTINGS = ["--eval.sets=[test,ood]", "--eval.max_problems=4", "--engine.max_rows=4"]
UNEQUAL = {"evaluation.lock", "_SHA256SUMS"}  # who holds it; and lines of files that were written twice


def evaluate(arguments: list[str], log: Path, kill: Fault | None = None) -> int:
    """Exit code of `rloop-eval` in a process of its own."""
    return run_fit(arguments, log, kill, debug=False, command="rloop_lightning.cli.evaluate")


def command(run: Path, out: Path) -> list[str]:
    """The command line that evaluates two policies of a run with its settings."""
    return [str(run), str(run / "round-0" / "explore" / "policy"), *SETTINGS, "--out", str(out)]


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in UNEQUAL)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that was not disturbed; it is only read."""
    folder = tmp_path_factory.mktemp("whole")
    assert evaluate(command(finished, folder / "out"), folder / "log") == 0
    return folder / "out"


def test_an_evaluation_has_several_parts_a_set(whole: Path) -> None:
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("part-*.parquet"))
    assert names == [
        f"{policy}/rollouts/{name}/part-{first:06d}.parquet"
        for policy in sorted(path.name for path in whole.iterdir() if path.is_dir())
        for name in ("00-test", "01-ood")
        for first in (0, 2)
    ]


MOMENTS = {
    "between the settings": Kill("os:replace", 1, "config.yaml"),
    "in the middle of the first set": Kill("rloop_lightning.engines.decoding:Decoding.run", 2),
    "in the middle of the last set": Kill("rloop_lightning.engines.decoding:Decoding.run", 8),
    "before a part is there": Kill("os:replace", 2, "part-000002"),
    "before a part has its checksum": Kill("rloop_lightning.evaluation.rollout_parts:add_checksum", 4),
    "before the record": Kill("os:replace", 2, "evaluation.parquet"),
    "before the record has its checksum": Kill("rloop_lightning.evaluation.record:add_checksum", 1),
    "before the results": Kill("os:replace", 2, "results.json"),
    "between the results and the table": Kill("os:replace", 2, "results.md"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_changes_no_bit_and_a_resume_repeats_one_part_only(
    moment: str, finished: Path, whole: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    assert evaluate(command(finished, out), log, MOMENTS[moment]) == -9, log.read_text()
    before = {path: path.stat().st_ino for path in out.rglob("part-*.parquet")}
    assert evaluate(["--resume", str(out)], log) == 0, log.read_text()
    assert contents(out) == contents(whole)
    assert sum(path.stat().st_ino != inode for path, inode in before.items()) <= 1  # written again
    assert not list(out.rglob("*.partial"))


def test_a_kill_before_the_first_state_leaves_a_folder_to_begin_in(finished: Path, whole: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = command(finished, out)
    assert evaluate(arguments, log, Kill("os:replace", 1, "evaluation.json")) == -9
    assert evaluate(["--resume", str(out)], log) == 2
    assert "evaluation.json is missing; give the folder of an evaluation, or start a new one" in log.read_text()
    assert evaluate(arguments, log) == 0, log.read_text()
    assert contents(out) == contents(whole)


def test_a_signal_stops_at_once_and_says_how_to_go_on(finished: Path, whole: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    stop = Signal("rloop_lightning.engines.decoding:Decoding.run", 3, number=signal.SIGTERM)
    assert evaluate(command(finished, out), log, stop) == 143
    assert f"stopped by SIGTERM; continue with: rloop-eval --resume {out}" in log.read_text()
    assert evaluate(["--resume", str(out)], log) == 0
    assert contents(out) == contents(whole)


def test_a_full_disk_is_told_and_what_is_there_stays_whole(finished: Path, whole: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    full = FullDisk("rloop_lightning.evaluation.rollout_parts:add_checksum", 3, bytes=100)
    assert evaluate(command(finished, out), log, full) == 1
    said = log.read_text()
    assert "rloop-eval: error: can't write" in said
    assert f"continue with: rloop-eval --resume {out}" in said
    assert evaluate(["--resume", str(out)], log) == 0
    assert contents(out) == contents(whole)


def test_damage_is_made_good(whole: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(whole, out)
    first, second = sorted(path for path in out.iterdir() if path.is_dir())
    os.truncate(first / "rollouts" / "01-ood" / "part-000000.parquet", 100)
    (first / "evaluation.parquet").unlink()
    (second / "evaluation.parquet").write_bytes(b"")
    (out / "results.md").unlink()
    (out / "config.yaml").unlink()
    assert evaluate(["--resume", str(out)], log) == 0, log.read_text()
    assert contents(out) == contents(whole)
    os.truncate(out / "results.json", 50)
    assert evaluate(["--resume", str(out)], log) == 0, log.read_text()
    assert contents(out) == contents(whole)


def test_a_complete_evaluation_is_told_again_without_loading_a_policy(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    monkeypatch.setattr("rloop_lightning.model.source.load_model", lambda *args, **kwargs: pytest.fail("it was loaded"))
    assert main(["--resume", str(out)]) == 0
    assert (whole / "results.md").read_text() in capsys.readouterr().out


def test_a_policy_or_problems_that_have_changed_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = shutil.copytree(finished / "final", tmp_path / "policy")
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(f'{{"problem": "1 {a}={a}:", "answer": "{a}"}}\n' for a in range(4)))
    out, log = tmp_path / "out", tmp_path / "log"
    sizes = ["--eval.samples=2", "--eval.k=[2]", "--engine.max_new_tokens=8", "--engine.max_rows=4"]
    arguments = [str(policy), "--data", str(problems), *sizes, "--data.template={problem}", "--out", str(out)]
    kill = Kill("os:replace", 1, "part-000002")
    assert evaluate(arguments, log, kill) == -9, log.read_text()
    text = problems.read_text()
    problems.write_text(text.replace("1 3", "1 4"))
    assert main(["--resume", str(out)]) == 2
    said = capsys.readouterr().err
    assert "the problems are not those of the evaluation: sums: the text of 1 problem (sums.jsonl:4)" in said
    assert "restore --data as it was when the evaluation started, or start a new evaluation" in said
    problems.write_text(text)
    weights = load_file(policy / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, policy / "model.safetensors", {"format": "pt"})
    assert main(["--resume", str(out)]) == 2
    assert "model.safetensors is not what the evaluation began with (its checksum differs)" in capsys.readouterr().err


def test_the_settings_of_an_evaluation_stay_as_they_are(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", str(whole), "countdown", "--data", "test.jsonl", "--eval.samples=3"]) == 2
    said = capsys.readouterr().err
    assert "its policies, sets and settings are those it began with" in said
    assert "leave out countdown, --data, --eval.samples=3" in said
    assert main(["countdown", "--data", "countdown", "--out", str(whole)]) == 2
    assert f"already contains an evaluation; continue it with --resume {whole}" in capsys.readouterr().err


def test_one_process_at_a_time(finished: Path, whole: Path, tmp_path: Path) -> None:
    out, log = shutil.copytree(whole, tmp_path / "out"), tmp_path / "log"
    with FolderLock(out / "evaluation.lock"):
        assert evaluate(["--resume", str(out)], log) == 2
    said = log.read_text()
    assert f"--resume {out} is in use by process {os.getpid()} on host" in said
    assert "wait until it ends, or stop it" in said


def test_a_policy_of_the_hub_is_resumed_from_the_same_revision_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "hub" / "models--acme--model", tmp_path / "out"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(embedded_model_path(), cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for module in ("model.folder", "model.loading", "system.hub"):
        monkeypatch.setattr(f"rloop_lightning.{module}.hub_answers", lambda: False)
    sizes = ["--eval.samples=1", "--eval.k=[1]", "--eval.max_problems=2", "--engine.max_new_tokens=4"]
    sizes += ["--data.test_size=2", "--eval.sets=[test]"]
    assert main(["acme/model", "--data", "countdown", *sizes, "--out", str(out)]) == 0
    (out / "00-acme-model" / "evaluation.parquet").unlink()
    assert main(["--resume", str(out)]) == 0
    (out / "00-acme-model" / "evaluation.parquet").unlink()
    (cache / "refs" / "main").write_text("b" * 40)
    capsys.readouterr()
    assert main(["--resume", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"acme/model: the hub now has revision {'b' * 40}, and the evaluation began with {'a' * 40}" in said


def test_chat_templates_see_the_date_on_which_the_evaluation_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Earlier(date):
        @classmethod
        def today(cls) -> date:
            return date(1999, 8, 7)

    policy, problems, out = tmp_path / "policy", tmp_path / "sums.jsonl", tmp_path / "out"
    shutil.copytree(embedded_model_path(), policy)
    (policy / "chat_template.jinja").write_text("{{ strftime_now('%Y %d') }} {{ messages[0].content }}")
    problems.write_text('{"problem": "1 2=3:", "answer": "3"}\n')
    sizes = ["--eval.samples=2", "--eval.k=[2]", "--engine.max_new_tokens=8", "--data.instruction="]
    monkeypatch.setattr("rloop_lightning.cli.evaluate.date", Earlier)
    assert main([str(policy), "--data", str(problems), *sizes, "--out", str(out)]) == 0
    monkeypatch.undo()
    before = contents(out)
    (prompts,) = out.glob("00-*/problems.parquet")
    (prompts.parent / "evaluation.parquet").unlink()
    assert main(["--resume", str(out)]) == 0
    assert contents(out) == before
    again = tmp_path / "again"
    assert main([str(policy), "--data", str(problems), *sizes, "--out", str(again)]) == 0
    assert next(again.glob("00-*/problems.parquet")).read_bytes() != prompts.read_bytes()


def test_what_can_not_be_sampled_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    monkeypatch.setattr("rloop_lightning.engines.torch_engine.trial_fault", lambda policy: "--policy.model: it can't")
    sizes = ["--eval.samples=1", "--eval.k=[1]", "--engine.max_new_tokens=4", "--eval.sets=[test]"]
    assert main(["countdown", "--data", "countdown", *sizes, "--out", str(out)]) == 2
    assert "rloop-eval: error: countdown: it can't" in capsys.readouterr().err
    assert not out.parent.exists()
