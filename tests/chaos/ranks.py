"""Kills random processes (ranks) of jobs at random moments: `make chaos RANKS=2 RUNS=30`.

Half of the jobs are started rank by rank, as torchrun and srun do, and the killed rank dies at some time after the
ranks have come together. The others are started by the command itself, and a rank is killed at any time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import torch.distributed as dist
from chaos.table import replaced
from rank_jobs import begin_ranks, kill_all, run_ranks, wait_until_ended
from same_run import assert_same_run
from tiny_run import TinyRun

BEGIN, END = "<!-- chaos of ranks: begin -->", "<!-- chaos of ranks: end -->"
STRATEGIES = ("ddp", "fsdp2")
WITHIN_S = 60.0
"""All ranks must have ended so soon after one was killed."""

_LIMIT_S = 600.0
_RUN: Mapping[str, Mapping[str, Any]] = {
    "reward": {"name": "reward_functions.boxed"},
    "algo": {"updates_per_step": 2},
    "loop": {"explore_steps": 3, "problems_per_step": 2, "rollouts_per_problem": 4},
    "capture": {"every_n_steps": 2, "extra_rollouts": 1, "extra_problems": 2},
    "eval": {"samples": 1, "k": [1], "max_problems": 2, "every_n_steps": 2, "sets_inside": ["test"]},
}


@dataclass(frozen=True)
class KilledTogether:
    """SIGKILL some time after the ranks have come together."""

    seconds: float

    def arm(self) -> None:
        Thread(target=self._kill, daemon=True).start()

    def _kill(self) -> None:
        while not dist.is_initialized():
            time.sleep(0.02)
        time.sleep(self.seconds)
        os.kill(os.getpid(), signal.SIGKILL)


class Lost(AssertionError):
    """Something did not hold."""


@dataclass
class Jobs:
    """The jobs of a rehearsal.

    Args:
        folder: where they are.
        size: ranks of a job.
        seed: of all draws.
        seconds: how long an uninterrupted one takes.
    """

    folder: Path
    size: int
    seed: str
    seconds: dict[str, float] = field(default_factory=dict)

    def make_reference(self, strategy: str) -> None:
        """Make the uninterrupted job."""
        began = time.monotonic()
        codes, said, _ = self.play(self.folder / strategy, strategy, None, Random(0), itself=False)
        if any(codes):
            raise Lost(f"the uninterrupted run ends with exit codes {codes}\n{said}")
        self.seconds[strategy] = time.monotonic() - began

    def play(
        self, folder: Path, strategy: str, rank: int | None, random: Random, *, itself: bool
    ) -> tuple[list[int], str, float]:
        """Start or resume a job, kill a rank, and wait for the end of all.

        Returns the exit codes of the processes that were started here, what they said, and the seconds from the kill
        to the end, which are 0 if none was killed.
        """
        folder.mkdir(exist_ok=True)
        out = folder / "run"
        log = folder / f"log-{len(list(folder.glob('log-*')))}"
        if (out / "state.json").exists():
            arguments = ["--resume", str(out)]
        else:
            shutil.rmtree(out, ignore_errors=True)
            config = TinyRun.written(folder, **_RUN).config
            arguments = ["--config", str(config), "--out", str(out), "--trainer.strategy", strategy]
        if itself:
            arguments += ["--trainer.devices", str(self.size)]
        seconds = random.uniform(0, self.seconds.get(strategy, 0.0) * (1.0 if itself else 0.7))
        faults = {} if rank is None or itself else {rank: KilledTogether(seconds)}
        processes, logs = begin_ranks(1 if itself else self.size, arguments, log, faults=faults, lost_after_s=None)
        killed_at, tells = 0.0, True
        if itself and rank is not None:
            processes[0].join(seconds)
            victim = processes[0].pid if rank == 0 else _child(processes[0].pid, rank)
            if victim is not None and processes[0].exitcode is None:
                tells = rank > 0 or any(_has_joined(_child(processes[0].pid, one)) for one in range(1, self.size))
                kill_all([victim])
                killed_at = time.monotonic()
        until = time.monotonic() + _LIMIT_S
        while any(process.exitcode is None for process in processes) and time.monotonic() < until:
            time.sleep(0.05)
            if rank is not None and not itself and not killed_at and processes[rank].exitcode == -signal.SIGKILL:
                killed_at = time.monotonic()
            if killed_at and time.monotonic() - killed_at > WITHIN_S:
                break
        left = wait_until_ended(log, max(1.0, killed_at + WITHIN_S - time.monotonic()) if killed_at else 5.0)
        ended = time.monotonic()
        kill_all(left)
        for process in processes:
            process.join()
        said = "\n".join(f"--- {one}\n{one.read_text(errors='replace')}" for one in logs)
        if left:
            raise Lost(f"{len(left)} processes are left {WITHIN_S:.0f} s after rank {rank} was killed\n{said}")
        complete = f"is in {out / 'final'}" in said  # then the others have left, or were about to
        if killed_at and tells and not complete and f"rank {rank} " not in said:
            raise Lost(f"no message names rank {rank}\n{said}")
        if "Traceback" in said:
            raise Lost(f"a traceback is shown\n{said}")
        return [process.exitcode for process in processes], said, ended - killed_at if killed_at else 0.0


def _child(process: int, rank: int) -> int | None:
    """The process that the command has started as this rank; None if it has not."""
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        try:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if f"RANK={rank}".encode() in environment:
            return int(child)
    return None


def _has_joined(process: int | None) -> bool:
    """Whether a process is connected to its job. One that is still starting dies with rank 0, and says nothing."""
    try:
        return any("socket:" in os.readlink(one) for one in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False


@dataclass(frozen=True)
class Played:
    """A job whose ranks were killed, and which was resumed to its end.

    Args:
        kills: by what was killed, and how.
        slowest: seconds from a kill to the end of all ranks, at most.
        lost: why something was lost; empty if nothing was.
    """

    kills: Counter[str]
    slowest: float
    lost: str = ""


def play(jobs: Jobs, number: int) -> Played:
    """One job, killed up to three times, drawn from the seed and its number."""
    random = Random(f"{jobs.seed} ranks {number}")
    strategy = STRATEGIES[number % len(STRATEGIES)]
    folder = jobs.folder / f"job-{number}"
    kills: Counter[str] = Counter()
    slowest = 0.0
    try:
        for _ in range(random.choice([1, 1, 2, 3])):
            rank, itself = random.randrange(jobs.size), random.random() < 0.5
            who = "rank 0" if rank == 0 else "another rank"
            kind = f"{who}, {strategy}, started by {'the command' if itself else 'a launcher'}"
            try:
                _, _, seconds = jobs.play(folder, strategy, rank, random, itself=itself)
            except Lost:
                kills[kind] += 1
                raise
            kills[kind] += seconds > 0  # else it had ended before, or the rank had not begun
            slowest = max(slowest, seconds)
        kills = +kills
        codes, said, _ = jobs.play(folder, strategy, None, random, itself=random.random() < 0.25)
        if any(codes):
            raise Lost(f"it does not resume, exit codes {codes}\n{said}")
        assert_same_run(folder / "run", jobs.folder / strategy / "run")
    except AssertionError as error:
        return Played(kills, slowest, f"job {number} in {folder}: {error}")
    shutil.rmtree(folder)
    return Played(kills, slowest)


def table(played: list[Played]) -> str:
    """A row for everything that was killed."""
    kinds = sorted({kind for one in played for kind in one.kills})
    lines = [("killed", "times", "jobs", "same bits", "lost"), ("---", *["--:"] * 4)]
    for kind in kinds:
        jobs = [one for one in played if kind in one.kills]
        lost = sum(bool(one.lost) for one in jobs)
        times = sum(one.kills[kind] for one in jobs)
        lines.append((kind, *map(str, (times, len(jobs), len(jobs) - lost, lost))))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def kills_of(played: list[Played]) -> int:
    return sum(one.kills.total() for one in played)


def played_until(kills: int, jobs: Jobs, at_once: int) -> list[Played]:
    """Play jobs, some at the same time, until there were so many kills; tells of each."""
    played: list[Played] = []
    began, number = time.monotonic(), 0
    with ThreadPoolExecutor(at_once) as pool:
        running: set[Future[Played]] = set()
        while running or kills_of(played) < kills:
            while len(running) < at_once and kills_of(played) < kills:
                running.add(pool.submit(play, jobs, number))
                number += 1
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                played.append(one.result())
                now, newest = time.monotonic() - began, played[-1]
                print(f"{now:6.0f} s  {len(played)} jobs, {kills_of(played)} kills: {dict(newest.kills)}", flush=True)
                if newest.lost:
                    print(f"\nLOST {newest.lost}", flush=True)
    return played


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2, help="processes of a job")
    parser.add_argument("--runs", type=int, default=30, help="kills, at least")
    parser.add_argument("--jobs", type=int, default=1, help="jobs at the same time")
    parser.add_argument("--document", type=Path, help="write the table between the markers of this file")
    options = parser.parse_args()
    seed = os.environ.get("RLOOP_CHAOS_SEED", "0")
    jobs = Jobs(Path(tempfile.mkdtemp(prefix="rloop-chaos-ranks-")), options.ranks, seed)
    print(f"chaos: {options.runs} kills of {options.ranks} ranks with RLOOP_CHAOS_SEED={seed} in {jobs.folder}")
    run_ranks(1, ["--help"], jobs.folder / "help")  # the fork server is there, before time is measured
    for strategy in STRATEGIES:
        jobs.make_reference(strategy)
    print(f"uninterrupted: {jobs.seconds}", flush=True)
    played = played_until(options.runs, jobs, options.jobs)
    kills = kills_of(played)
    lost, slowest = sum(bool(one.lost) for one in played), max(one.slowest for one in played)
    said = (
        f"{kills} kills in {len(played)} jobs of {options.ranks} ranks on {date.today()}, seed {seed}: {lost} lost. "
        f"After a kill, all ranks had ended within {slowest:.0f} s."
    )
    print(f"\n{said}\n\n{table(played)}")
    if options.document is not None:
        document = options.document.read_text(encoding="utf-8")
        options.document.write_text(replaced(document, f"\n{said}\n\n{table(played)}\n", BEGIN, END), encoding="utf-8")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
