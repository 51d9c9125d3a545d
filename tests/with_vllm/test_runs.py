"""Whole runs on vLLM, from the command line to files: a process of the run's own, a kill, and a server's address."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from fake_vllm import serving
from killing import Kill
from rank_jobs import run_ranks
from same_run import assert_same_run
from tiny_run import TinyRun, resume

import rloop_lightning
from rloop_lightning.cli.main import main
from rloop_lightning.engines.vllm.process import write_plugin

ENGINE = {"name": "vllm", "max_new_tokens": 24, "cpu_cache_gib": 0.25}
GENERATE = "rloop_lightning.engines.vllm.engine:VLLMEngine.begin"


@pytest.fixture(scope="module")
def own(python: str, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A tiny run whose engine is a process of its own."""
    folder = tmp_path_factory.mktemp("vllm")
    return TinyRun.written(folder, engine={**ENGINE, "python": python}, loop={"explore_steps": 2})


@pytest.fixture(scope="module")
def finished(own: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own.finished(tmp_path_factory.mktemp("finished") / "run")


def engines_of(trainer: int) -> list[int]:
    """The processes of vLLM that a trainer, dead or alive, has started."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"RLOOP_ENGINE_PARENT={trainer}".encode() in environment:
                found.append(int(path.name))
    return found


def dead_trainers() -> set[int]:
    """The processes that have started an engine of vLLM and were killed."""
    folders = Path(tempfile.gettempdir()).glob("rloop-engine-*")
    return {pid for folder in folders if not Path("/proc", str(pid := int(folder.name.split("-")[2]))).exists()}


def test_a_run_of_rloop_on_vllm(finished: Path) -> None:
    rows = [
        row for shard in sorted(finished.glob("round-0/pool/*.parquet")) for row in pq.read_table(shard).to_pylist()
    ]
    assert len(rows) == 2 * 4 * 4
    assert all(row["text"] for row in rows)
    assert (finished / "final" / "model.safetensors").exists()
    metrics = (finished / "metrics.csv").read_text().splitlines()
    assert len(metrics) > 3


def test_a_killed_run_leaves_no_engine_and_resumes_to_the_same_bits(
    own: TinyRun, finished: Path, tmp_path: Path
) -> None:
    before, shared = dead_trainers(), set(os.listdir("/dev/shm"))
    out, log = tmp_path / "run", tmp_path / "log"
    assert own.fit_apart(out, log, Kill(GENERATE, 3)) == -signal.SIGKILL, log.read_text()  # the second rollout step
    (trainer,) = dead_trainers() - before
    end = time.monotonic() + 60
    while (left := engines_of(trainer)) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if "rloop" in name]
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, finished)
    assert trainer not in dead_trainers()  # the folder that the killed one left


@pytest.fixture(scope="module")
def served(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that rloop-serve started for the embedded policy, in vLLM's environment."""
    folder = tmp_path_factory.mktemp("serve")
    write_plugin(folder)  # what `pip install --no-deps` would do
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = Path(rloop_lightning.__file__).parent / "assets" / "countdown-policy"
    command = [python, "-m", "rloop_lightning.engines.vllm.serve", str(model), "--port", str(port)]
    options = ["--max-model-len", "256", "--kv-cache-memory-bytes", str(2**28), "--dtype", "float32"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*command, *options], cwd=folder, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 600
        while server.poll() is None and time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.3)
        assert server.poll() is None, (folder / "log").read_text()[-3000:]
        yield url
    finally:
        server.terminate()
        server.wait(30)


def test_a_run_on_a_server_that_runs_already(served: str, tmp_path: Path, own: TinyRun, finished: Path) -> None:
    """Its rollouts are those of a run with a process of its own: seeds do not depend on who serves."""
    out = tmp_path / "run"
    config = TinyRun.written(tmp_path, engine={**ENGINE, "url": served}, loop={"explore_steps": 2})
    assert config.fit(out) == 0
    assert first_rollouts(out) == first_rollouts(finished)


def test_an_update_that_a_killed_run_left_unfinished_is_begun_anew(served: str, tmp_path: Path, finished: Path) -> None:
    httpx.post(f"{served}/start_weight_update").raise_for_status()
    out = tmp_path / "run"
    config = TinyRun.written(tmp_path, engine={**ENGINE, "url": served}, loop={"explore_steps": 2})
    assert config.fit(out) == 0
    assert first_rollouts(out) == first_rollouts(finished)


def sharded(config: TinyRun, tmp_path: Path) -> Path:
    """The folder of a run of two ranks that share the policy's weights."""
    out = tmp_path / "run"
    arguments = ["--config", str(config.config), "--out", str(out), "--trainer.strategy", "fsdp2"]
    job = run_ranks(2, arguments, tmp_path / "job")
    assert job.codes == [0, 0], job.said
    return out


def first_rollouts(run: Path) -> list[list[int]]:
    return pq.read_table(run / "round-0/pool/step-000001.parquet").column("completion_ids").to_pylist()


@pytest.mark.parametrize("staleness", [0, 1])
def test_sharded_ranks_on_a_server(served: str, tmp_path: Path, finished: Path, staleness: int) -> None:
    """Rank 0 asks the server. Both give it their shards, and compute the logprobs that each push is checked with."""
    loop = {"explore_steps": 2, "staleness": staleness}
    out = sharded(TinyRun.written(tmp_path, engine={**ENGINE, "url": served}, loop=loop), tmp_path)
    assert first_rollouts(out) == first_rollouts(finished)
    with (out / "metrics.csv").open(newline="") as file:
        gaps = [float(gap) for row in csv.DictReader(file) if (gap := row["policy/probe_gap_nats"])]
    assert len(gaps) == 2
    assert 0 < max(gaps) < 1e-3


def test_sharded_ranks_with_a_process_each(python: str, tmp_path: Path, finished: Path) -> None:
    config = TinyRun.written(tmp_path, engine={**ENGINE, "python": python}, loop={"explore_steps": 2})
    assert first_rollouts(sharded(config, tmp_path)) == first_rollouts(finished)


def test_a_server_with_another_model_and_one_that_is_gone(
    served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy_folder: Path
) -> None:
    config = TinyRun.written(tmp_path, engine={**ENGINE, "url": served})
    arguments = ["--config", str(config.config), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--policy.model", str(policy_folder)]) == 2
    said = capsys.readouterr().err
    assert f"--engine.url {served}: it serves another model than --policy.model" in said
    with serving({}) as gone:
        pass
    assert main([*arguments, "--engine.url", gone]) == 2
    assert f"--engine.url {gone}: no answer from vLLM" in capsys.readouterr().err
