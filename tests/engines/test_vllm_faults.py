"""What the user is told where vLLM is missing, another, not there, stuck or lost. No vLLM is needed for any of it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import JsonHandler, answers, interpreter, listening, serving
from tiny_run import TinyRun

from rloop_lightning.engines.vllm.checks import shape_of
from rloop_lightning.engines.vllm.client import Server
from rloop_lightning.engines.vllm.engine import VLLMEngine
from rloop_lightning.engines.vllm.process import EngineProcess
from rloop_lightning.engines.vllm.settings import ProcessSettings
from rloop_lightning.errors import EngineError
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem

MakePolicy = Callable[..., Policy]
PROBLEMS = [Problem(id="a", prompt="abc", answer="")]


@pytest.fixture(scope="module")
def policy(make_policy: MakePolicy) -> Policy:
    return make_policy()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "url"}, "--engine.mode url: give the servers' addresses with --engine.url http://HOST:PORT"),
        (
            {"mode": "process", "url": "http://a:1"},
            "--engine.mode process starts a server of its own; leave out --engine.url http://a:1, or the mode",
        ),
        ({"url": "a:8000"}, "--engine.url a:8000: expected http://HOST:PORT"),
        ({"url": "http://a:8000/v1"}, "--engine.url http://a:8000/v1: expected http://HOST:PORT"),
        ({"url": "http://a:80a0"}, "--engine.url http://a:80a0: expected http://HOST:PORT"),
        ({"url": "http://a:99999"}, "--engine.url http://a:99999: expected http://HOST:PORT"),
        ({"url": "http://[::1"}, "--engine.url http://[::1: expected http://HOST:PORT"),
        *(
            (
                {"url": url, "mode": "process"},
                "--engine.url: an address must not hold credentials or a query, since config.yaml records it; give "
                "http://HOST:PORT, and reach a server that asks for a password through a tunnel, such as ssh -N -L "
                "8000:localhost:8000 HOST and --engine.url http://localhost:8000",
            )
            for url in ("http://a:1,http://me:se,same@b:8000", "http://a:8000?key=sesame", "me:sesame@a")
        ),
        ({"temperature": 0.001}, "--engine.temperature 0.001: vLLM takes 0, or at least 0.01"),
        ({"max_rows": 0}, "--engine.max_rows: expected an integer > 0, got 0"),
        ({"timeout_s": 0}, "--engine.timeout_s: expected a number > 0, got 0"),
    ],
)
def test_settings_that_contradict(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"--engine\.") as error:
        VLLMEngine(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/no/such/python", "there is no such program"),
        ("/bin/true", "it is no Python interpreter"),
        (sys.executable, "it can't import vllm"),
    ],
)
def test_an_interpreter_without_vllm(policy: Policy, python: str, message: str) -> None:
    (fault,) = VLLMEngine(python=python, max_new_tokens=4).validate_with(policy)
    assert fault.startswith(f"--engine.python {python}: {message}")
    assert "docs/vllm.md" in fault


def test_an_interpreter_with_another_version(policy: Policy, tmp_path: Path) -> None:
    python = interpreter(tmp_path, "0.25.1")
    (fault,) = VLLMEngine(python=python, max_new_tokens=4).validate_with(policy)
    assert fault.startswith(f"--engine.python {python}: vLLM 0.25.1 is not supported; install 0.30")
    for version in ("0.30.0", "0.30.2"):
        assert VLLMEngine(python=interpreter(tmp_path, version), max_new_tokens=4).validate_with(policy) == []


def test_an_interpreter_is_found_from_the_users_folder(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = Path(interpreter(tmp_path, "0.30.0"))
    monkeypatch.chdir(tmp_path)
    relative = f"./{python.relative_to(tmp_path)}"
    assert VLLMEngine(python=relative, max_new_tokens=4).validate_with(policy) == []


def test_a_server_that_can_not_sleep(policy: Policy, tmp_path: Path) -> None:
    python = interpreter(tmp_path, "0.30.0")
    (fault,) = VLLMEngine(python=python, sleep=True, max_new_tokens=4).validate_with(policy)
    assert fault == "--engine.sleep true frees the memory of a GPU, and this run is on cpu; leave it out"
    with serving(answers(shape_of(policy))) as url:
        (fault,) = VLLMEngine(url=url, sleep=True, max_new_tokens=4).validate_with(policy)
    assert fault.startswith("--engine.sleep true: servers of --engine.url are not the trainer's to put to sleep")


@pytest.mark.parametrize(
    ("device", "given", "visible", "expected"),
    [
        ("cuda:1", {}, None, {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda:1", {}, "4,GPU-5", {"CUDA_VISIBLE_DEVICES": "GPU-5"}),
        ("cuda", {}, None, {"CUDA_VISIBLE_DEVICES": "0"}),
        ("cuda:1", {"devices": "2,3"}, "4,5", {"CUDA_VISIBLE_DEVICES": "2,3"}),
        ("cuda:0", {"tensor_parallel": 2}, None, {}),
        ("cpu", {}, None, {}),
    ],
)
def test_a_process_sees_the_gpu_of_its_trainer(
    device: str,
    given: dict[str, Any],
    visible: str | None,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a launcher sets no LOCAL_RANK."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    rest = {"python": "python", "dtype": "float32", "max_rows": 1, "memory_share": 0.4, "cpu_cache_gib": 1.0}
    defaults = {**rest, "devices": "", "tensor_parallel": 1, "sleep": False, "options": ()}
    assert ProcessSettings(**{**defaults, **given}).environment(torch.device(device)) == expected


def test_the_command_refuses_before_the_run(tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert tiny.fit(out, "--engine", "vllm", "--engine.python", "/no/such/python") == 2
    assert "--engine.python /no/such/python: there is no such program" in capsys.readouterr().err
    assert tiny.fit(out, "--engine", "vllm", "--engine.url", "http://127.0.0.1:9") == 2
    assert "--engine.url http://127.0.0.1:9: no answer from vLLM" in capsys.readouterr().err
    assert not out.exists()


def faults(policy: Policy, given: dict[str, object], **settings: object) -> list[str]:
    with serving(given) as url:
        found = VLLMEngine(url=url, max_new_tokens=4, **settings).validate_with(policy)
        return [fault.removeprefix(f"--engine.url {url}: ") for fault in found]


def test_a_server_that_fits(policy: Policy) -> None:
    assert faults(policy, answers(shape_of(policy))) == []


def test_a_server_of_another_version(policy: Policy) -> None:
    (fault,) = faults(policy, answers(shape_of(policy), version="0.33.0"))
    assert fault.startswith("vLLM 0.33.0 is not supported; install 0.30")


def test_a_server_with_another_model(policy: Policy, make_policy: MakePolicy) -> None:
    (fault,) = faults(policy, answers(shape_of(make_policy(num_hidden_layers=3, hidden_size=64))))
    assert "it serves another model than --policy.model: hidden_size 64 instead of 32" in fault
    assert "num_hidden_layers 3 instead of 2" in fault
    (fault,) = faults(policy, answers(shape_of(make_policy("llama"))))
    assert "LlamaForCausalLM instead of Qwen2ForCausalLM" in fault


def test_a_server_with_other_settings(policy: Policy) -> None:
    wrong = {"logprobs_mode": "raw_logprobs", "generation_config": "auto"}
    first, second = faults(policy, answers(shape_of(policy), **wrong))
    assert "--logprobs-mode raw_logprobs" in first
    assert "--generation-config auto" in second


def test_a_vllm_that_takes_no_weights(policy: Policy) -> None:
    given = answers(shape_of(policy))
    del given["/server_info"]
    (fault,) = faults(policy, given)
    assert "this vLLM takes no weights; start it with rloop-serve" in fault


def test_a_web_page_is_no_server(policy: Policy) -> None:
    class Page(JsonHandler):
        def answer(self, path: str, body: bytes) -> None:
            self.send_text("<html>")

    with listening(Page) as url:
        (fault,) = VLLMEngine(url=url, max_new_tokens=4).validate_with(policy)
    assert fault.startswith(f"--engine.url {url}: its answer to /version is no JSON; is it a vLLM server?")
    (fault,) = faults(policy, {**answers(shape_of(policy)), "/v1/models": {"models": []}})
    assert fault.startswith("it does not answer as vLLM 0.30 does; start one with: rloop-serve MODEL")


def test_requests_longer_than_a_server_takes(policy: Policy) -> None:
    with serving(answers(shape_of(policy), max_model_len=20)) as url:
        engine = VLLMEngine(url=url, max_new_tokens=18)
        engine.bind(policy)
        with pytest.raises(EngineError, match="takes 20 tokens of prompt and completion, and 21 are needed"):
            engine.generate(PROBLEMS, 1, engine.sampling(0))


def test_a_server_that_does_not_answer_is_stuck(policy: Policy) -> None:
    with serving({**answers(shape_of(policy)), "/pause": None}) as url:
        engine = VLLMEngine(url=url, max_new_tokens=4, timeout_s=1.0)
        engine.bind(policy)
        with pytest.raises(EngineError, match=r"stuck: no answer for 1 s \(--engine\.timeout_s 1"):
            engine.generate(PROBLEMS, 1, engine.sampling(0))


def test_no_request_goes_out_on_a_connection_that_the_server_is_about_to_close() -> None:
    class Closing(JsonHandler):
        """Closes a connection at its first request after 1.2 s without one, as a server that was about to."""

        last = float("inf")

        def answer(self, path: str, body: bytes) -> None:
            self.close_connection = time.monotonic() - self.last > 1.2
            self.last = time.monotonic()
            if not self.close_connection:
                self.send({})

    async def ask_twice(url: str) -> None:
        server = Server(url)
        for pause in (0, 1.3):
            await asyncio.sleep(pause)
            assert await server.get("/version") == {}

    with listening(Closing) as url:
        asyncio.run(ask_twice(url))


def test_a_process_gets_its_flags_and_devices(policy: Policy, tmp_path: Path) -> None:
    python = interpreter(tmp_path, "0.30.0", 'echo "GPUs $CUDA_VISIBLE_DEVICES, $@"; exit 3')
    engine = VLLMEngine(python=python, max_new_tokens=100, devices="2,3", max_rows=9, options=("--seed=5",))
    engine.bind(policy)
    with pytest.raises(EngineError) as error:
        engine.generate(PROBLEMS, 1, engine.sampling(0))
    (told,) = [line for line in str(error.value).splitlines() if "GPUs" in line]
    assert told.startswith("  GPUs 2,3, -m rloop_lightning.engines.vllm.serve /")
    assert "--backend shm --load-format dummy --dtype float32" in told


def test_a_signal_to_the_trainers_group_spares_the_server(policy: Policy, tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches the whole group; the trainer then finishes its step with the server."""
    python = interpreter(tmp_path, "0.30.0", "exec sleep 30")
    process = EngineProcess(python, policy, [], {})
    try:
        assert os.getpgid(process.pid) == process.pid != os.getpgrp()
    finally:
        process.stop()


def test_only_folders_of_dead_trainers_of_this_container_are_removed(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    python = interpreter(tmp_path, "0.30.0")
    process = EngineProcess(python, policy, [], {})
    (mine,) = tmp_path.glob("rloop-engine-*")
    ids = mine.name.split("-")[3]
    dead, elsewhere = (tmp_path / f"rloop-engine-{2**22 + 1}-{one}-abc" for one in (ids, "0" * 8))
    dead.mkdir()
    elsewhere.mkdir()
    other = EngineProcess(python, policy, [], {})
    assert (mine.exists(), dead.exists(), elsewhere.exists()) == (True, False, True)
    process.stop()
    other.stop()
    assert process.last_lines() == "its log is gone"


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("echo no free memory; exit 3", "vLLM ended with exit code 3"),
        ("echo no free memory; kill -9 $$", "vLLM was killed by signal 9"),
        ("echo no free memory; exec sleep 30", r"stuck: no answer for 2 s \(--engine\.start_s 2"),
    ],
)
def test_a_process_that_does_not_start(policy: Policy, tmp_path: Path, server: str, message: str) -> None:
    engine = VLLMEngine(python=interpreter(tmp_path, "0.30.0", server), max_new_tokens=4, start_s=2.0)
    engine.bind(policy)
    with pytest.raises(EngineError, match=message) as error:
        engine.generate(PROBLEMS, 1, engine.sampling(0))
    assert "the last lines of its log:\n  no free memory" in str(error.value)
