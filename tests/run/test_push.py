"""`--hub.push`: checked before the run, done after it, to a hub on this machine (tests/helpers/fake_hub.py)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import TOKEN, FakeHub
from tiny_run import TINY, TinyRun

from rloop_lightning import RunFault, train
from rloop_lightning.cli.main import main
from rloop_lightning.run.model_card import BaseFacts, base_facts
from rloop_lightning.run.state import LoopState
from rloop_lightning.system.hub import HubConfig, hub_answers, push_folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The hub of this process, where alice is logged in."""
    with FakeHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        address = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # it needs a server of its own
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        hub_answers.cache_clear()
        yield hub
    hub_answers.cache_clear()


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A complete run to change."""
    return Path(shutil.copytree(finished, tmp_path / "a run"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def uploaded(hub: FakeHub, name: str) -> dict[str, bytes]:
    return {path: bytes_ for path, bytes_ in hub.files[name].items() if path != ".gitattributes"}


def test_a_run_uploads_what_it_hands_over(hub: FakeHub, tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert tiny.fit(out, "--hub.push", "alice/tiny", "--loop.explore_steps=1") == 0
    assert uploaded(hub, "alice/tiny") == content(out / "final")
    assert hub.private == {"alice/tiny"}
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in out.rglob("*") if path.is_file())


def test_a_complete_run_is_uploaded_by_a_resume_as_the_environment_says(run: Path, tmp_path: Path) -> None:
    """In a process of its own, by hf_xet's client, with no more than the hub's own variables."""
    with FakeHub(large=()) as hub:
        hub.files["lab/tiny"] = {"model-00001-of-00002.safetensors": b"old", "notes.txt": b"mine"}
        own = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
        push = ["--resume", str(run), "--hub.push=lab/tiny", "--hub.private=false"]
        command = [sys.executable, "-m", "rloop_lightning", *push]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert f"the policy is at {hub.address}/lab/tiny" in done.stderr
        assert uploaded(hub, "lab/tiny") == {**content(run / "final"), "notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("earlier", "names"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), ("config.json", "model.safetensors")),
        (("model-00001-of-00002.safetensors", "model.safetensors.index.json"), ("config.json", "model.safetensors")),
        (("adapter_config.json", "model[1].safetensors"), ("adapter_config.json", "adapter_model.safetensors")),
    ],
    ids=["an adapter", "more files", "a model"],
)
def test_an_upload_removes_what_would_shadow_it_and_nothing_else(
    hub: FakeHub, tmp_path: Path, earlier: tuple[str, ...], names: tuple[str, ...]
) -> None:
    theirs = {"other/model.safetensors": b"theirs", "other/adapter_config.json": b"theirs", "notes.txt": b"theirs"}
    hub.files["alice/tiny"] = {**dict.fromkeys(earlier, b"old"), **theirs}
    for name in names:
        (tmp_path / "final" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "final" / name).write_text("new")
    push_folder(tmp_path / "final", HubConfig("alice/tiny"))
    assert uploaded(hub, "alice/tiny") == {**dict.fromkeys(names, b"new"), **theirs}


@pytest.mark.parametrize(
    ("push", "message"),
    [
        ("tiny", "--hub.push tiny: expected OWNER/NAME"),
        ("alice/ti ny", "--hub.push alice/ti ny: the hub allows letters"),
        ("alice/-", "the hub allows letters"),
        ("../x/y", "expected OWNER/NAME"),
        ("bob/tiny", "--hub.push bob/tiny: your account can't write there; name one of alice/tiny, lab/tiny"),
    ],
)
def test_a_wrong_name_is_refused_before_the_run(
    hub: FakeHub, tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], push: str, message: str
) -> None:
    assert tiny.fit(tmp_path / "run", "--hub.push", push, "--loop.problems_per_step=99") == 2
    said = capsys.readouterr().err
    assert message in said
    assert ("--loop.problems_per_step 99" in said) == (push == "bob/tiny")  # told with what else is found then
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("logged out", "no token; run `hf auth login`, or set HF_TOKEN"),
        ("wrong token", "refuses the token; run `hf auth login` again"),
        ("read token", "the token may only read"),
        ("offline", "HF_HUB_OFFLINE is set; leave the option out, and push later with --resume RUN --hub.push alice/x"),
        ("down", "doesn't answer; leave the option out, and push later with --resume RUN --hub.push alice/x"),
        ("broken", "doesn't say whose token this is (status 500)"),
    ],
)
def test_an_account_that_can_not_write_is_refused_before_the_run(
    hub: FakeHub,
    tiny: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
    message: str,
) -> None:
    if state == "logged out":
        monkeypatch.delenv("HF_TOKEN")
    elif state == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_nobodys")
    elif state == "read token":
        hub.role = "read"
    elif state == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif state == "down":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.refuses["whoami"] = 500
    assert tiny.fit(tmp_path / "run", "--hub.push", "alice/x") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_token_is_no_option(tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.fit(tmp_path / "run", "--hub.token", "hf_secret") == 2
    said = capsys.readouterr().err
    assert "--hub.token: run `hf auth login`, or set HF_TOKEN; no option takes a token" in said
    assert "hf_secret" not in said


def test_a_failed_upload_keeps_the_run_and_names_the_command_that_works(
    hub: FakeHub, tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    hub.refuses["/commit/"] = 403
    assert tiny.fit(out, "--hub.push", "alice/tiny", "--loop.explore_steps=1") == 1
    told = capsys.readouterr()
    assert "(handed over)" in told.out
    assert f"rloop-fit: error: --hub.push alice/tiny: {out}/final could not be uploaded: " in told.err
    assert "403" in told.err
    (command,) = [line for line in told.err.splitlines() if "upload it with: " in line]
    program, *arguments = shlex.split(command.partition("upload it with: ")[2])
    assert program == "rloop-fit"
    hub.refuses.clear()
    assert main(arguments) == 0
    assert uploaded(hub, "alice/tiny") == content(out / "final")


def test_a_resume_of_a_run_with_an_upload_does_not_wait_for_the_hub(
    hub: FakeHub,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = LoopState.load(run / "state.json")
    hub_settings = {**state.settings["hub"], "push": "alice/tiny"}
    replace(state, settings={**state.settings, "hub": hub_settings}).save(run / "state.json")
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert main(["--resume", str(run), "--hub.push", "alice/tiny"]) == 2
        assert "leave the option out" in capsys.readouterr().err
        assert main(["--resume", str(run)]) == 1
        goes_on = "the run goes on, and its end tries the upload unless you give --hub.push null"
        assert f"--hub.push alice/tiny: HF_HUB_OFFLINE is set; {goes_on}" in caplog.messages
        assert "the run is complete and saved; upload it with: " in capsys.readouterr().err
        caplog.clear()
        assert main(["--resume", str(run), "--hub.push", "null"]) == 0
        assert goes_on not in caplog.text
    assert hub.files == {}


def test_train_uploads_too(hub: FakeHub, tmp_path: Path) -> None:
    settings = {group: dict(fields) for group, fields in TINY.items()}
    settings["loop"]["explore_steps"] = 1
    result = train(**settings, hub={"push": "alice/tiny", "private": False}, out=tmp_path / "run")  # type: ignore[arg-type]
    assert uploaded(hub, "alice/tiny") == content(result.final)
    assert hub.private == set()
    hub.refuses["/commit/"] = 403
    (result.final / "README.md").unlink()  # a commit of nothing is none
    hub.files["alice/tiny"].clear()
    with pytest.raises(RunFault, match="the run is complete and saved"):
        train(resume=tmp_path / "run", hub={"push": "alice/tiny"})


def test_a_base_policy_of_the_hub_is_named_with_its_licence(hub: FakeHub) -> None:
    said = b"---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"
    hub.files["lab/base"] = {"README.md": said}
    link = "https://huggingface.co/lab/base/blob/main/LICENSE"
    licence = {"license": "other", "license_name": "own", "license_link": link}
    assert base_facts("lab/base") == BaseFacts("lab/base", "lab/base", licence)
    assert base_facts("lab/other") == BaseFacts("lab/other", "lab/other")
