"""Compares VLLMEngine with vLLM driven directly, and measures pushes of weights.

All sides have the same weights and prompts. vLLM driven directly is `vllm.LLM` in one process of its own
(side_vllm.py); the engine's two modes are a process of the trainer's, over a Unix socket, and a server of rloop-serve,
over TCP. They take turns, A B C A B C. Beside wall-clock time, the CPU seconds of all processes of a side are measured:
on a busy machine they say more.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.generate_vs_hf import DTYPES, Request, request_for, vllm_arguments
from benchmarks.measure import ROOT, Side, alternate, ratio_text, seconds_text
from benchmarks.models import SIZES, save_model
from benchmarks.options import Options
from benchmarks.report import Result, Table
from rloop_lightning.engines.vllm.engine import VLLMEngine
from rloop_lightning.engines.vllm.process import write_plugin
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy

_START_S = 900
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Turn:
    """One request of a side: seconds, CPU seconds of all its processes, and tokens."""

    seconds: float
    cpu_seconds: float
    tokens: int


def run(options: Options) -> Result:
    rows, pushes, raw = [], [], []
    for name in options.sizes_or(cpu=("0.86M", "11.5M"), cuda=("0.5B",)):
        for precision in ("fp32",) if options.toy or options.device == "cpu" else ("bf16",):
            for spread in (False, True):
                with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                    request = request_for(spread, options)
                    rate = 5 / request.max_new_tokens if spread else 0
                    model = save_model(SIZES[name], Path(folder) / "model", stop_rate=rate)
                    sides, engine, policy = _sides(model, precision, request, options, Path(folder), stack)
                    alternate(sides, rounds=1)  # not counted
                    turns = alternate(sides, options.rounds)
                    seconds = _push_seconds(engine, policy, options.rounds)
                megabytes = sum(weight.numel() * weight.element_size() for weight in policy.parameters()) / 1e6
                pushes.append([name, precision, f"{megabytes:.1f}", seconds_text(seconds)])
                rows.append([name, precision, "spread" if spread else "equal", *_cells(turns)])
                raw.append(
                    {
                        "model": name,
                        "precision": precision,
                        "spread": spread,
                        "turns": {side: [asdict(turn) for turn in mine] for side, mine in turns.items()},
                    }
                )
    columns = ["model", "precision", "lengths", "vLLM tok/s", "process tok/s", "process / vLLM", "url tok/s",
               "url / vLLM", "CPU s per 1,000 tokens: vLLM, process, url"]  # fmt: skip
    notes = [f"{options.rounds} turns each; median, and of ratios (least to most)."]
    return Result(
        [
            Table("VLLMEngine and vLLM", columns, rows, notes),
            Table("Pushes of weights, probe included", ["model", "precision", "MB", "seconds"], pushes, notes),
        ],
        {"cases": raw},
    )


def _sides(
    model: Path, precision: str, request: Request, options: Options, work: Path, stack: ExitStack
) -> tuple[Mapping[str, Callable[[], Turn]], VLLMEngine, Policy]:
    """A turn of each side, the engine with a process of its own, and its policy."""
    arguments = vllm_arguments(model, precision, request)
    script = str(ROOT / "benchmarks" / "side_vllm.py")
    direct = stack.enter_context(Side("vLLM", script, arguments, work / "vllm.log", options.vllm_python))
    policy = Policy.load(PolicyConfig(model=str(model), dtype=DTYPES[precision])).to(request.device)
    url, server = stack.enter_context(_served(model, precision, options.vllm_python, work))
    own = VLLMEngine(python=options.vllm_python, max_new_tokens=request.max_new_tokens)
    running = VLLMEngine(url=url, max_new_tokens=request.max_new_tokens)
    for engine in (own, running):
        engine.bind(policy)
        stack.callback(engine.close)
        engine.generate(request.problems[:1], 1, engine.sampling(0))  # starts the process
    sides = {
        "vLLM": partial(_direct_turn, direct),
        "process": partial(_engine_turn, own, request, own.process_id or 0),
        "url": partial(_engine_turn, running, request, server),
    }
    return sides, own, policy


def _engine_turn(engine: VLLMEngine, request: Request, process: int) -> Turn:
    """The trainer's own CPU time counts, too."""
    started, cpu, mine = time.perf_counter(), cpu_seconds(process), time.process_time()
    rollouts = engine.generate(request.problems, request.rollouts, engine.sampling(0))
    seconds, spent = time.perf_counter() - started, cpu_seconds(process) - cpu + time.process_time() - mine
    return Turn(seconds, spent, sum(rollout.length for rollout in rollouts))


def _direct_turn(side: Side) -> Turn:
    cpu = cpu_seconds(side.pid)
    answer = side.ask("turn")
    return Turn(answer["seconds"], cpu_seconds(side.pid) - cpu, sum(answer["lengths"]))


def _push_seconds(engine: VLLMEngine, policy: Policy, rounds: int) -> list[float]:
    """Seconds of pushes after a change of all weights: fingerprint, transfer, probe."""
    seconds = []
    for _ in range(rounds):
        with torch.no_grad():
            for weight in policy.parameters():
                weight.mul_(1.001)
        started = time.perf_counter()
        engine.sync()
        seconds.append(time.perf_counter() - started)
    return seconds


def cpu_seconds(process: int) -> float:
    """CPU seconds of a process and of those under it."""
    times, parents = {}, {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(path.name)] = int(fields[1])
            times[int(path.name)] = int(fields[11]) + int(fields[12])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return sum(times[one] for one in found) / _TICKS_PER_S


def _cells(turns: Mapping[str, Sequence[Turn]]) -> list[str]:
    per_token = {side: [turn.seconds / turn.tokens for turn in mine] for side, mine in turns.items()}
    speed = {side: f"{statistics.median(1 / seconds for seconds in mine):,.0f}" for side, mine in per_token.items()}
    cpu = [statistics.median(1e3 * turn.cpu_seconds / turn.tokens for turn in mine) for mine in turns.values()]
    cells = [speed["vLLM"]]
    for side in ("process", "url"):
        cells += [speed[side], ratio_text(per_token["vLLM"], per_token[side])]
    return [*cells, ", ".join(f"{seconds:.3f}" for seconds in cpu)]


@contextmanager
def _served(model: Path, precision: str, python: str, work: Path) -> Iterator[tuple[str, int]]:
    """Address and process id of a server that rloop-serve started."""
    folder = work / "serve"
    folder.mkdir()
    write_plugin(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-m", "rloop_lightning.engines.vllm.serve", str(model), "--port", str(port)]
    options = ["--dtype", DTYPES[precision], "--kv-cache-memory-bytes", str(2**30), "--max-num-seqs", "256"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    with (work / "serve.log").open("wb") as log:
        server = subprocess.Popen([*command, *options], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError((work / "serve.log").read_text()[-3000:]) from None
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.terminate()
        server.wait()
