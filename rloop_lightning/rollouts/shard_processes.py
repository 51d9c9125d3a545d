"""Counts and draws over the shards of large pools in several processes, with the same result as in one.

    processes = processes_for(shards)
    counts = counts_of(shards, processes)
    drawn = draw_from(shards, hard_problems, rules, processes)

Each process takes a run of neighbouring shards (shard_process.py). Its request is JSON, its answer an Arrow stream. The
answers are merged in the order of the shards.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from rloop_lightning.errors import DamagedError, RunFault
from rloop_lightning.rollouts.expert_draw import Drawn, DrawRules
from rloop_lightning.rollouts.pool_scan import counts_in, sum_counts
from rloop_lightning.system import dies_with_parent
from rloop_lightning.system.cpu import usable_cores
from rloop_lightning.system.terminal import one_line

DAMAGED = 3
"""The exit code of a process that found a damaged shard; its standard error names it."""

_BYTES_EACH = 256 << 20  # of shards; a process takes about a second to start
_MOST = 32
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from rloop_lightning.rollouts.shard_process import main; sys.exit(main())"
)


def processes_for(shards: Sequence[Path]) -> int:
    """Processes that are worth their start: one for each core, if it gets enough shards."""
    size = sum(path.stat().st_size for path in shards)
    return max(1, min(usable_cores(), size // _BYTES_EACH, _MOST))


def counts_of(shards: Sequence[Path], processes: int = 1) -> pa.Table:
    """Count every problem's `rollouts` and `successes` in some shards, in no particular order.

    Raises:
        DamagedError: a file is not a shard of a pool, or damaged; the message names it.
        RunFault: a process ended early.
    """
    if processes == 1:
        return counts_in(shards)
    with _running({"task": "count"}, shards, processes) as parts:
        return sum_counts([pa.Table.from_batches(batches, schema) for schema, batches in map(_Part.answer, parts)])


def draw_from(shards: Sequence[Path], problems: Collection[str], rules: DrawRules, processes: int = 1) -> Drawn:
    """Draw from the successes of `problems` in some shards.

    Raises: as for `counts_of`.
    """
    drawn = Drawn(rules)
    if processes == 1:
        drawn.take(shards, problems)
        return drawn
    request = {"task": "draw", "problems": sorted(problems), "rules": asdict(rules)}
    with _running(request, shards, processes) as parts:
        for part in parts:
            schema, batches = part.answer()
            drawn.merge(batches, schema)
    return drawn


@dataclass(frozen=True)
class _Part:
    """A process and the shards that it reads."""

    process: subprocess.Popen[bytes]
    shards: Sequence[Path]
    errors: IO[bytes]

    def ask(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            with self.process.stdin as stream:
                stream.write(json.dumps({**request, "shards": [str(path) for path in self.shards]}).encode())
        except BrokenPipeError:
            self._check()

    def answer(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """The schema and the batches of the answer, which are read when they are asked for."""
        try:
            reader = pa.ipc.open_stream(self.process.stdout)
        except (pa.ArrowInvalid, OSError):  # it ended without an answer
            self._check()
            raise
        return reader.schema, self._batches(reader)

    def _batches(self, reader: pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except (pa.ArrowInvalid, OSError):  # it ended in the middle
            self._check()
            raise
        self._check()

    def _check(self) -> None:
        """Wait for the process's end.

        Raises:
            RunFault: it did not end well.
        """
        code = self.process.wait()
        if not code:
            return
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip()
        if code == DAMAGED:
            raise DamagedError(said)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = one_line(said[-300:]) or "it said nothing"
        raise RunFault(
            f"a process that filters {self.shards[0]} and the {len(self.shards) - 1:,} shards after it {how} ({said}); "
            "each core gets such a process: with fewer cores, as with `taskset -c 0 rloop-fit --resume ...`, they take "
            "less memory"
        )


@contextmanager
def _running(request: dict[str, Any], shards: Sequence[Path], processes: int) -> Iterator[list[_Part]]:
    """Processes at work on neighbouring shards, in order. They are gone after the block."""
    with ExitStack() as stack:
        parts = []
        for some in _split(shards, processes):
            errors = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                _command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
            stack.callback(_end, process)
            parts.append(_Part(process, some, errors))
        for part in parts:
            part.ask(request)
        yield parts


def _command() -> list[str]:
    """A new interpreter, which ends with this process and gets no signal of its terminal."""
    own = [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path)]
    return [sys.executable, "-IS", dies_with_parent.__file__, str(os.getpid()), *own]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # without effect on one that has ended
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()


def _split(shards: Sequence[Path], parts: int) -> list[Sequence[Path]]:
    """Neighbouring shards, in parts of about the same number of bytes; no part is empty."""
    ends = list(itertools.accumulate(path.stat().st_size for path in shards))
    cuts = [bisect_right(ends, number * ends[-1] // parts) for number in range(parts + 1)]
    return [shards[start:end] for start, end in itertools.pairwise(cuts) if end > start]
