"""Clocks, peak memory, and sides that take turns.

A side is one program under measurement, in its own process. It waits for a command before each step and reports the
step's cost. Several sides can thus be measured in turns, and no two of them compute at the same time:

    with Side("ours", "benchmarks.side_rloop", arguments, log) as ours, Side("theirs", ...) as theirs:
        reports = alternate({"ours": ours.step, "theirs": theirs.step}, rounds=5)

In the side's process, a `Gate` waits and reports.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

ROOT = Path(__file__).resolve().parent.parent
_LOG_TAIL_CHARACTERS = 3000
# A side's threads spin briefly after their last work. The next side starts when they sleep.
_SETTLE_S = 0.2

T = TypeVar("T")


@dataclass(frozen=True)
class StepReport:
    """The cost of one rollout step of a side.

    Args:
        seconds: duration of the whole step.
        generated_tokens: completion tokens.
        mean_length: completion length, tokens.
        reward: mean reward over the step's rollouts.
        generate_s: seconds of generation, measured by the side itself; 0 if it does not measure them.
        update_s: seconds of the update, measured likewise.
        trained_tokens: prompt and completion tokens in the update; 0 if the side does not report them.
        attended: pairs of a token and an earlier token or itself, in those sequences; 0 if not reported.
        parts: seconds by part of the step, if requested.
        peak_bytes: the process's peak memory so far; on a GPU, the peak device memory.
        base_bytes: the memory in use before the first step.
    """

    seconds: float
    generated_tokens: float
    mean_length: float
    reward: float
    generate_s: float = 0.0
    update_s: float = 0.0
    trained_tokens: float = 0.0
    attended: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    base_bytes: int = 0


class Gate:
    """Paces a training loop in a side's process. Call it once per iteration, at any place.

    `pass_step` reports the iteration that ends here and waits until the next may begin. All work of a step lies between
    two passes, wherever in the loop the gate is.

    Args:
        device: "cpu" or "cuda"; with "cuda", clocks wait for the device.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.parts = PartClock(device)
        # Keeps the output of libraries out of the reports.
        self._reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._started = 0.0
        self._base_bytes = 0

    def open(self) -> None:
        """Wait for the first step."""
        self._base_bytes = memory_bytes(self.device)
        self._wait()

    def pass_step(self, *, more: bool, **measured: float) -> None:
        """Report the step that ends here. If `more` follow, wait for the next command."""
        seconds = now(self.device) - self._started
        report = StepReport(
            seconds=seconds,
            parts=self.parts.take(),
            peak_bytes=peak_bytes(self.device),
            base_bytes=self._base_bytes,
            **measured,
        )
        print(json.dumps(asdict(report)), file=self._reports, flush=True)
        if more:
            self._wait()

    def _wait(self) -> None:
        word = sys.stdin.readline().strip()
        if not word:
            raise SystemExit("the benchmark went away")
        self.parts.running = word == "parts"
        self._started = now(self.device)


class PartClock:
    """Sums the time spent in chosen functions. While it is off, it costs one check of a flag per call."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.running = False
        self._seconds: dict[str, float] = defaultdict(float)

    def watch(self, owner: type, name: str, part: str | Callable[[], str]) -> None:
        """Count the time in `owner.name` as `part`. If `part` is a function, it chooses the part at each call."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self.running:
                return inner(*args, **kwargs)
            counted = part if isinstance(part, str) else part()
            started = now(self.device)
            try:
                return inner(*args, **kwargs)
            finally:
                self._seconds[counted] += now(self.device) - started

        setattr(owner, name, watched)

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


class Side:
    """A side as seen by the parent: a process that does one step per command.

    Args:
        name: the side's name in messages.
        module: the module to run, such as `benchmarks.side_rloop`, or the path of a script.
        arguments: the module's arguments.
        log: file for its output.
        python: the interpreter.
        root: the checkout whose code runs.

    Raises:
        RuntimeError: from `step`, if the process ended; the message shows the end of its log.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        log: Path,
        python: str = sys.executable,
        root: Path = ROOT,
    ) -> None:
        self.name = name
        self.log = log
        what = [module] if module.endswith(".py") else ["-m", module]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [python, *what, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=root,
                env=side_environment(root),
                text=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def step(self, word: str = "step") -> StepReport:
        """Do one step; the word "parts" also measures its parts."""
        return StepReport(**self.ask(word))

    def ask(self, word: str) -> dict[str, Any]:
        """Send a line and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            tail = self.log.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
            raise RuntimeError(f"{self.name} ended with exit code {code}; the end of its output:\n{tail}")
        time.sleep(_SETTLE_S)
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process; its remaining work is not measured."""
        self._process.kill()
        self._process.communicate()


def side_environment(root: Path = ROOT) -> dict[str, str]:
    """This process's environment, with the project importable and without network access for libraries."""
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def alternate(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Each side's results of `rounds` turns, A B A B ..., so that drift of the machine affects all sides."""
    results: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, turn in sides.items():
            results[name].append(turn())
    return results


def now(device: str) -> float:
    """The time in seconds, after all pending work of the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def memory_bytes(device: str) -> int:
    """Memory in use; on a GPU, the memory of tensors."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    return _status_bytes("VmRSS")


def peak_bytes(device: str) -> int:
    """The largest `memory_bytes` since the process began."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return _status_bytes("VmHWM")


@contextmanager
def peaks_of_children() -> Iterator[dict[int, int]]:
    """Yield the largest memory of each child process that lives in the block, by its id, as last looked at."""
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            for pid in _children():
                with suppress(OSError, RuntimeError):  # it has ended
                    peaks[pid] = _status_bytes("VmHWM", pid)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def _children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for one in lists for pid in one.read_text().split()]


def _status_bytes(key: str, pid: int | str = "self") -> int:
    # Not getrusage: its maximum includes the parent's memory at the start of this process.
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no {key}")


def ratio_text(slower: Sequence[float], faster: Sequence[float]) -> str:
    """The speed-up as "4.2x (3.9 to 4.4)": median, minimum and maximum of the pairs' ratios."""
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def seconds_text(seconds: Sequence[float]) -> str:
    """Median, minimum and maximum."""
    return f"{statistics.median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"
