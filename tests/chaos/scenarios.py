"""One injected run each: what befalls it is drawn, and its result must have the bits of the uninterrupted run.

scenario = SCENARIOS["kills"]
result = scenario(reference, Random("0 kills 3"), folder)       # raises Lost
"""

from __future__ import annotations

import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic, sleep

from chaos.damage import UNREAD, damage, files_by_kind
from chaos.faults import (
    FullDiskAtOperation,
    KilledAtOperation,
    KilledByClock,
    Strike,
    StruckWorkers,
    TornAtOperation,
)
from chaos.reference import Reference, resume, start
from killing import Fault
from same_run import assert_same_run


@dataclass(frozen=True)
class Result:
    """An injected run.

    Args:
        injected: how often what was done to it.
        named: files that it named as damaged, unwritable or in use.
        refused: whether it ended with exit code 2, because nothing can rebuild what was damaged.
    """

    injected: Counter[str]
    named: int = 0
    refused: bool = False


class Lost(AssertionError):
    """A run did not come to the uninterrupted run's result, or a damage was not named."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


@dataclass
class Attempt:
    """A run in a folder of its own, and its story for a message."""

    reference: Reference
    random: Random
    folder: Path
    injected: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.out = self.folder / "run"

    @property
    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    @property
    def has_state(self) -> bool:
        return any((self.out / name).exists() for name in ("state.json", "state.previous.json"))

    def inject(self, what: str, detail: object = "") -> None:
        self.injected[what] += 1
        self.story.append(f"{what} {detail}")

    def go_on(
        self, fault: Fault | None = None, *, begun: bool | None = None, restart_from: str = ""
    ) -> tuple[int, str]:
        """Exit code and log of a resume; of a new run if none has begun, because a kill came before its first state."""
        log = self.folder / f"{len(self.logs):02d}.log"
        log.touch()
        if self.has_state if begun is None else begun:
            code = resume(self.out, log, fault, restart_from=restart_from)
        else:
            shutil.rmtree(self.out, ignore_errors=True)
            code = start(self.reference.tiny, self.out, log, fault)
        self.story.append(f"-> exit code {code}")
        said = log.read_text(errors="replace")
        self.require("Traceback" not in said, "a traceback is shown")
        return code, said

    def complete(self) -> str:
        """Go on to the end. Returns the log."""
        code, said = self.go_on()
        self.require(code == 0, f"the run does not resume, exit code {code}")
        self.same()
        return said

    def same(self) -> None:
        try:
            assert_same_run(self.out, self.reference.out)
        except Exception as error:
            self.require(False, f"another result: {type(error).__name__}: {str(error)[:2000]}")

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            logs = "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-1500:]}" for log in self.logs)
            story = "\n".join([otherwise, *self.story, f"its folder: {self.folder}", logs])
            raise Lost(story, Result(self.injected))

    def operation(self) -> int:
        """A file operation of the run, drawn."""
        return self.random.randint(1, self.reference.operations)

    def size(self) -> int:
        """A size in bytes, drawn: as likely below the size of a small file as below that of a large one."""
        largest = max(path.stat().st_size for path in self.reference.out.rglob("*") if path.is_file())
        return int(largest ** self.random.random())


def kills(reference: Reference, random: Random, folder: Path) -> Result:
    """Killed up to three times, resumes included: by the clock, before a file operation, in the middle of a write."""
    attempt = Attempt(reference, random, folder)
    for _ in range(random.choice([1, 1, 2, 3])):
        if not kill(attempt):
            break
    attempt.complete()
    return Result(attempt.injected)


def kill(attempt: Attempt) -> bool:
    """Let the run go on until it is killed. False if it came to its end before."""
    match attempt.random.choice(["clock", "operation", "write"]):
        case "clock":
            what, fault = "SIGKILL by the clock", KilledByClock(attempt.random.uniform(0, attempt.reference.seconds))
        case "operation":
            what, fault = "SIGKILL at a file operation", KilledAtOperation(attempt.out, attempt.operation())
        case _:
            what = "killed in the middle of a write"
            fault = TornAtOperation(attempt.out, attempt.operation(), attempt.size())
    attempt.story.append(repr(fault))
    code, said = attempt.go_on(fault)
    # A library's own thread may get the failed write as an error, which the run reports.
    is_told = code == 1 and isinstance(fault, TornAtOperation) and "rloop-fit: error: can't write" in said
    attempt.require(is_told or code in (0, -signal.SIGKILL, -signal.SIGXFSZ), f"unexpected exit code {code}")
    if code:
        attempt.inject(what)
    return code != 0


def damages(reference: Reference, random: Random, folder: Path) -> Result:
    """Killed, then a file of any kind is damaged; or damaged when it was complete."""
    attempt = Attempt(reference, random, folder)
    kill(attempt)
    while not attempt.has_state:
        kill(attempt)
    kinds = files_by_kind(attempt.out)
    kind = random.choice(sorted(kinds))
    alone = kind == "the state" and len(kinds[kind]) == 1
    file = random.choice(kinds[kind])
    before = (attempt.out / file).read_bytes()
    deed, content = damage(attempt.out / file, random)
    attempt.injected = Counter({kind: 1})
    attempt.story.append(f"{file} ({kind}): {deed}")
    code, said = attempt.go_on(begun=True)
    named = _named(said, attempt.out, file)
    if alone and code == 2 and file.name in said and str(attempt.out) in said:
        return Result(attempt.injected, named=1, refused=True)
    attempt.require(code == 0, f"{file} was damaged ({deed}), and the run does not resume, exit code {code}")
    path = attempt.out / file
    left = (path.read_bytes() if path.is_file() else None) == content and (reference.out / file).exists()
    attempt.require(named or not left or kind in UNREAD, f"{file} was damaged ({deed}), and nothing is said of it")
    if left and named:
        make_again(attempt, said, path, before)
    attempt.same()
    return Result(attempt.injected, named=int(named))


def make_again(attempt: Attempt, said: str, path: Path, before: bytes) -> None:
    """Do what a run advises for a damaged file that it does not need: repeat a phase, or put the file back."""
    if advice := re.search(r"--restart_from (\S+) makes it again", said):
        code, _ = attempt.go_on(begun=True, restart_from=advice[1])
        attempt.require(code == 0, f"{advice[0]} was advised, and ends with exit code {code}")
    else:
        path.write_bytes(before)


def _named(said: str, out: Path, file: Path) -> bool:
    """Whether a log names a file by its whole path, or by its path in the run folder if that has several parts."""
    return (
        str(out / file) in said
        or (len(file.parts) > 1 and str(file) in said)
        or (file.name.startswith("_") and file.name in said)
    )


def full_disks(reference: Reference, random: Random, folder: Path) -> Result:
    """Out of disk at any write: exit code 1 with the path named, and a resume completes the run."""
    attempt = Attempt(reference, random, folder)
    if random.random() < 0.5:
        kill(attempt)
    fault = FullDiskAtOperation(attempt.out, attempt.operation(), attempt.size())
    attempt.inject("full disk", fault)
    code, said = attempt.go_on(fault)
    attempt.require(code in (0, 1), f"a full disk ends with exit code {code}")
    named = code == 1
    attempt.require(not named or str(attempt.out) in said, "a full disk, and no path is named")
    attempt.complete()
    return Result(Counter({"full disk": attempt.injected["full disk"]}), named=int(named))


def concurrent_starts(reference: Reference, random: Random, folder: Path) -> Result:
    """Several processes on one run folder: one runs, the others end with exit code 2 and name it."""
    attempt = Attempt(reference, random, folder)
    number = random.choice([2, 3])
    how = random.choice(["new runs", "resumes", "a resume of a running run"])
    if how == "resumes":
        while not attempt.has_state:
            kill(attempt)
    what = f"{number} {how} at once" if how != "a resume of a running run" else how
    attempt.injected = Counter({what: 1})
    attempt.story.append(what)
    logs = [folder / f"at-once-{i}.log" for i in range(number)]

    def one(log: Path) -> int:
        if how == "resumes":
            return resume(attempt.out, log)
        if how == "new runs" or log == logs[0]:
            return start(reference.tiny, attempt.out, log)
        until = monotonic() + 60
        while not attempt.has_state and monotonic() < until:
            sleep(0.01)
        sleep(random.uniform(0, reference.seconds / 4))
        return resume(attempt.out, log)

    with ThreadPoolExecutor(number) as pool:
        codes = list(pool.map(one, logs))
    attempt.story.append(f"-> exit codes {codes}")
    said = {log: log.read_text(errors="replace") for log in logs}
    attempt.require(not any("Traceback" in text for text in said.values()), "a traceback is shown")
    attempt.require(set(codes) <= {0, 2} and codes.count(0) == 1, "not one of them runs")
    losers = [said[log] for log, code in zip(logs, codes, strict=True) if code == 2]
    attempt.require(all(str(attempt.out) in text for text in losers), "a refused one does not name the folder")
    attempt.require(all("process " in text or "already" in text for text in losers), "who runs is not named")
    attempt.same()
    return Result(attempt.injected, named=len(losers))


def struck_workers(reference: Reference, random: Random, folder: Path) -> Result:
    """Reward workers are killed, or stopped for longer than their limit. The reference is a run with such workers."""
    attempt = Attempt(reference, random, folder)
    strikes = []
    for _ in range(random.choice([1, 2, 3])):
        stopped_s = random.choice([0.0, random.uniform(0.1, 3.0)])
        after_s = random.uniform(0.2, reference.seconds / 2)
        strikes.append(Strike(after_s, stopped_s, random.random(), busy=random.random() < 0.5))
        attempt.inject("reward worker stopped" if stopped_s else "reward worker killed", strikes[-1])
    code, _ = attempt.go_on(StruckWorkers(tuple(strikes)))
    attempt.require(code == 0, f"the run does not end well, exit code {code}")
    attempt.same()
    return Result(attempt.injected)


SCENARIOS: dict[str, Callable[[Reference, Random, Path], Result]] = {
    "kills": kills,
    "damages": damages,
    "full disks": full_disks,
    "concurrent starts": concurrent_starts,
    "struck workers": struck_workers,
}
