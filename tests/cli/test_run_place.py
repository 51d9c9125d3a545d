"""Runs in a store, from the command line to the objects: killed, resumed elsewhere, refused, and cut off."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from killing import Environment, Kill, Patch
from s3_server import SECRET, S3Server
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning import train
from rloop_lightning.cli.main import main
from rloop_lightning.cli.run_place import run_place
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.run.claim import RunClaim
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.system import store as store_module
from rloop_lightning.system.fetched import fetched
from rloop_lightning.system.store import Store
from rloop_lightning.system.store_urls import cache_folder

SENT = "rloop_lightning.system.store:Store._sent"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this machine; a process of its own gets it as `Environment(machine(cache))`."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RLOOP_CACHE", str(folder))
    monkeypatch.setattr(store_module, "_PAUSES_S", (0.0, 0.0))
    return folder


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    files.pipe("/test_run_place/other", b"")
    yield files
    files.rm("/test_run_place", recursive=True)


def machine(cache: Path, **variables: str) -> dict[str, str]:
    return {"RLOOP_CACHE": str(cache), **variables}


def folder_in(cache: Path) -> Path:
    """The local folder of the one run."""
    (found,) = cache.glob("runs/*/run")
    return found


@pytest.mark.parametrize("each", [True, False], ids=["each checkpoint", "states alone"])
@pytest.mark.parametrize(
    "killed",
    [
        Kill(SENT, 2),  # after the first state
        Kill(SENT, 2, "step-000003.ckpt"),
        Kill("rloop_lightning.system.store:Store._removed", 1, ".ckpt"),
        Kill(SENT, 1, "round-0/policy/model.safetensors"),
    ],
    ids=["start", "checkpoint", "removal", "policy"],
)
def test_a_run_killed_in_an_upload_resumes_on_another_machine_with_the_same_bits(
    tiny: TinyRun, finished: Path, tmp_path: Path, killed: Kill, each: bool
) -> None:
    """Whether a save uploads depends on how long the last upload took: each does, or those of states alone."""
    url, log = f"file://{tmp_path}/store/run", tmp_path / "log"
    rest = Patch("rloop_lightning.run.mirror:_REST", 0 if each else 1e9, killed)
    assert tiny.fit_apart(url, log, Environment(machine(tmp_path / "first"), rest)) == -9
    shutil.rmtree(tmp_path / "first")
    second = Environment(machine(tmp_path / "second"))
    assert resume(url, log, second) == 0, log.read_text()
    assert_same_run(folder_in(tmp_path / "second"), finished)
    assert_same_run(tmp_path / "store" / "run", finished)


def test_a_run_on_s3_with_data_and_model_from_there(tmp_path: Path, s3: S3Server) -> None:
    rows = [{"problem": f"{i}+1=", "answer": str(i + 1)} for i in range(24)]
    for name, some in (("train", rows[:20]), ("test", rows[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    where = {name: s3.upload(tmp_path / f"{name}.jsonl", f"sets/{name}.jsonl") for name in ("train", "test")}
    for file in embedded_model_path().iterdir():
        s3.upload(file, f"model/{file.name}")
    local, remote = ({"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}, where)
    runs = {}
    for kind, (sets, model) in {
        "local": (local, str(embedded_model_path())),
        "s3": (remote, s3.url("model")),
    }.items():
        (tmp_path / kind).mkdir()
        runs[kind] = TinyRun.written(
            tmp_path / kind,
            data={"name": "files", "path": sets["train"], "eval": sets["test"], "validation_size": 0},
            policy={"model": model},
        )
    expected = runs["local"].finished(tmp_path / "expected")
    log, url = tmp_path / "log", s3.url("runs/run")
    first, second = (Environment(machine(tmp_path / name, **s3.variables)) for name in ("first", "second"))
    killed = Environment(first.variables, Kill(SENT, 1, "round-0/explore/policy/model.safetensors"))
    assert runs["s3"].fit_apart(url, log, killed) == -9
    shutil.rmtree(tmp_path / "first")
    assert resume(url, log, second) == 0, log.read_text()
    stored = s3.download("runs/run", tmp_path / "stored")
    assert_same_run(stored, expected)
    assert "run.claim.json" not in s3.names("runs/run")
    settings = yaml.safe_load((stored / "config.yaml").read_text())
    assert settings["data"]["path"] == "s3://bucket/sets/train.jsonl"
    assert settings["data"]["eval"] == "s3://bucket/sets/test.jsonl"
    assert settings["policy"]["model"] == "s3://bucket/model"
    assert SECRET not in log.read_text()
    assert not [path for path in stored.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_store_that_fails_loses_nothing_and_the_resume_uploads_the_rest(
    tiny: TinyRun,
    cache: Path,
    memory: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url = "memory://test_run_place/run"
    with monkeypatch.context() as cut:
        cut.setattr(Store, "_sent", _cut)
        assert tiny.fit(url) == 1
    assert caplog.text.count("the run goes on, and the next save uploads what is missing") == 1
    assert f"upload the rest from this machine with: rloop-fit --resume {url}" in capfd.readouterr().err
    assert (folder_in(cache) / "final" / "model.safetensors").is_file()
    assert memory.find("/test_run_place/run") == []
    assert main(["--resume", url]) == 0
    assert f"{url} has no state of the run yet; it is uploaded from {folder_in(cache)}" in caplog.text
    assert f"a copy of all of it is in {url}" in capfd.readouterr().out
    names = {path.relative_to(folder_in(cache)).as_posix() for path in folder_in(cache).rglob("*") if path.is_file()}
    stored = {path.removeprefix("/test_run_place/run/") for path in memory.find("/test_run_place/run")}
    assert stored == names - {"run.lock"}
    assert main(["--out", url]) == 2
    assert f"--out {url} already contains a run; resume it with --resume {url}" in capfd.readouterr().err


def test_a_second_process_is_refused(
    cache: Path, memory: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = "memory://test_run_place/run"
    with run_place(("--out", url)):
        assert main(["--out", url]) == 2
        assert main(["--resume", url]) == 2
    told = capfd.readouterr().err
    assert f"--out {url} is in use by process {os.getpid()} on host" in told
    assert f"--resume {url} is in use by process {os.getpid()} on host" in told


def test_a_local_folder_in_use_is_not_touched(cache: Path, memory: Any, capfd: pytest.CaptureFixture[str]) -> None:
    url = "memory://test_run_place/run"
    out = cache_folder("runs", url)
    with RunClaim(RunFolder(out)) as claim:
        claim.take(resumes=False)
        assert main(["--resume", url]) == 2
    assert f"--resume {url}: {out} is in use by this process; wait until it ends" in capfd.readouterr().err
    assert memory.find("/test_run_place/run") == []


def test_train_takes_a_place_in_a_store(tiny: TinyRun, cache: Path, memory: Any) -> None:
    url = "memory://test_run_place/run"
    result = train(config=tiny.config, out=url)
    assert result.folder == folder_in(cache)
    assert memory.exists("/test_run_place/run/final/model.safetensors")
    shutil.rmtree(cache)
    assert train(resume=url).results == result.results


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "ftp://x/y"], "--out ftp://x/y: the scheme ftp:// is not supported"),
        (["--out=memory://x/y?key=hidden"], "--out memory://x/y?...: a URL must not hold credentials or a query"),
        (["--resume", "memory://test_run_place/none"], "--resume memory://test_run_place/none: no state.json there"),
        (["--out", "memory://test_run_place"], "--out memory://test_run_place is not empty, it contains other;"),
        (["--policy.model", "memory://x/none"], "--policy.model memory://x/none: can't read the store: no such object"),
        (["--plan", "--policy.model", "memory://x/none"], "--policy.model memory://x/none: can't read the store"),
        (["--data", "memory://x/none.jsonl"], "--data memory://x/none.jsonl: can't read the store: no such object"),
        (["--policy.model", "memory://a:hidden@x/y"], "--policy.model memory://...@x/y: a URL must not hold"),
        (["--data", "memory://x/y?sig=hidden"], "--data memory://x/y?...: a URL must not hold"),
    ],
)
def test_what_can_t_be_used_is_refused_before_a_model_is_loaded_and_leaves_nothing(
    arguments: list[str], expected: str, cache: Path, memory: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    told = capfd.readouterr().err
    assert expected in told
    assert "hidden" not in told
    assert not [path for path in cache.rglob("*") if path.is_file() and "runs" in path.parts]
    assert memory.find("/test_run_place") == ["/test_run_place/other"]


def test_all_faults_are_told_at_once(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--policy.model", "memory://x/none", "--data", "memory://x/none.jsonl", "--loop.rounds", "0"]) == 2
    told = capfd.readouterr().err
    assert all(text in told for text in ("--policy.model memory", "--data memory", "--loop.rounds: expected"))


def test_a_settings_file_can_t_name_the_place(cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.yaml").write_text("out: memory://x/y\n")
    assert main(["--config", str(tmp_path / "out.yaml")]) == 2
    assert "--out memory://x/y: give a URL on the command line, not in a settings file" in capfd.readouterr().err


def test_a_start_that_is_refused_gives_the_place_back(
    cache: Path, memory: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", "memory://test_run_place/run", "--loop.rounds", "0"]) == 2
    assert "--loop.rounds" in capfd.readouterr().err
    assert memory.find("/test_run_place/run") == []
    assert not list(cache.glob("runs/*"))


def test_the_files_of_a_url_are_read_as_those_of_a_folder(cache: Path, memory: Any) -> None:
    from rloop_lightning.data.files import ProblemFiles

    for name in ("a", "b"):
        memory.pipe(f"/test_run_place/sets/{name}.jsonl", b'{"problem": "1+1=", "answer": "2"}\n')
    memory.pipe("/test_run_place/eval.v2.jsonl", b'{"problem": "1+2=", "answer": "3"}\n')
    fetched.cache_clear()
    source = ProblemFiles("memory://test_run_place/sets", eval="memory://test_run_place/eval.v2.jsonl")
    assert [problem.id for problem in source.train()] == ["a.jsonl:1", "b.jsonl:1"]
    assert list(source.evaluation()) == ["eval.v2"]
    memory.pipe("/test_run_place/bad.jsonl", b"{")
    with pytest.raises(ValueError, match=r"--data memory://test_run_place/bad\.jsonl: bad"):
        ProblemFiles("memory://test_run_place/bad.jsonl").train()


def _cut(self: Store, path: Path, place: str) -> Any:
    raise OSError("the cable is cut")
