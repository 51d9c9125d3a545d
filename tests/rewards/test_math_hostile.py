"""10,000 answers that are made to break a grader: none hangs, crashes or leaks, and each scores 0 or is right."""

import os
import random
import threading
import time
from pathlib import Path

import pytest

from rloop_lightning.rewards.math import MathReward
from rloop_lightning.types import Problem

GOLD = "918273"
COUNT = 10_000
MEMORY_MB = 512
TIME_LIMIT_S = 1.0


def box(text: str) -> str:
    return rf"\boxed{{{text}}}"


# Each takes a worker to one of its limits or near it, so there are few.
EXPENSIVE = [
    box("10^10^10^10"),
    "10^{10^{10^{10}}}",
    box(r"9**9**9**9"),
    box("1000000000!"),
    box("{" * 1900 + "1" + "}" * 1900),
    box("(" * 1900 + "1" + ")" * 1900),
    box(r"\frac{1}{" * 300 + "1" + "}" * 300),
    box(r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 25)] * 50) + r"\end{pmatrix}"),
    box(
        r"\det\begin{pmatrix}"
        + r"\\".join("&".join(f"x_{{{i}{j}}}" for j in range(9)) for i in range(9))
        + r"\end{pmatrix}"
    ),
    box(r"\sum_{i=1}^{10000000000} \frac{1}{i^2+i!}"),
    box(r"\binom{1000000000}{500000000}"),
    box(r"(a+b+c+d+e+f)^{300}"),
    box(r"\int_0^1 x^x e^{x^x} \sin(\cos(x^x)) dx"),
]
CODE = [
    "__import__('os').system('touch {}')",
    "open('{}','w')",
    "{{{{7*7}}}} ${{7*7}} <%= 7*7 %> {}",
    "lambda: exec('{}')",
    r"\input{{{}}}",
    r"\write18{{touch {}}}",
    "<script>{}</script>",
    "'; DROP TABLE golds; -- {}",
]
# No powers and factorials: by chance they are as dear as those above.
PIECES = [*"0123456789+-/_=(){}[]<>|&$%,.;:'\"~@#\\ \n\t", r"\frac", r"\sqrt", r"\boxed{", r"\left(", r"\right",
          r"\begin{pmatrix}", r"\end{cases}", r"\\", r"\infty", r"\text{", r"\cup", r"\{", "\ud800", "\udfff", "\x00",
          "\u202e", "٣", "²", "🙂", "answer is ", "None", "nan", "inf", "pi"]  # fmt: skip


def huge(rng: random.Random, i: int) -> str:
    """Far over the length limit, 100 kB to 1 MB."""
    return [
        lambda: box("9" * (1_000_000 + i)),
        lambda: box("{" * (100_000 + i) + "}" * (100_000 + i)),
        lambda: box("{" * (100_000 + i)),
        lambda: r"\boxed{" * (10_000 + i),
        lambda: box(r"\begin{matrix}" + "1&" * (50_000 + i) + r"\end{matrix}"),
        lambda: box("-" * (100_000 + i) + "1"),
        lambda: box(r"\sqrt{" * (20_000 + i) + "2" + "}" * (20_000 + i)),
    ][i % 7]()


def soup(rng: random.Random, i: int) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, 10))) + f" {i}"


def code(rng: random.Random, i: int) -> str:
    return CODE[i % len(CODE)].format(f"pwned-{i}")


def hostile() -> tuple[list[str], list[str]]:
    """Answers for `box` and texts for `auto`, all different."""
    rng = random.Random(0)
    boxed = [huge(rng, i) for i in range(210)]
    boxed += [box(soup(rng, i)) for i in range(900)]
    boxed += [box(code(rng, i)) for i in range(900)]
    boxed += [f"{code(rng, i)} {soup(rng, i)}" for i in range(2500)]  # no box, or none that is closed
    boxed += [rf"{code(rng, i)} \boxed{{{i}" for i in range(2490)]
    texts = [soup(rng, i) for i in range(1000)] + [code(rng, i) for i in range(800)]
    texts += [huge(rng, i)[-200_000:] + f" {i}" for i in range(7)]
    texts += [box(f"{i}\ud800") for i in range(COUNT - len(boxed) - len(texts) - len(EXPENSIVE))]
    return boxed, texts + EXPENSIVE


class MemoryWatch(threading.Thread):
    """The largest address space of any worker, MiB."""

    def __init__(self, *rewards: MathReward) -> None:
        super().__init__(daemon=True)
        self.rewards = rewards
        self.seen: set[int] = set()
        self.peak_mb = 0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.01):
            for reward in self.rewards:
                for pid in list(reward.pool.pids()):
                    try:
                        status = Path(f"/proc/{pid}/status").read_text()
                    except OSError:
                        continue
                    fields = dict(line.split(":", 1) for line in status.splitlines())
                    self.seen.add(pid)
                    if "VmPeak" in fields and fields["Name"].strip().startswith("python"):
                        self.peak_mb = max(self.peak_mb, int(fields["VmPeak"].split()[0]) >> 10)


def children() -> set[int]:
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.mark.timeout(240)
def test_ten_thousand_hostile_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where code that is run would leave its files
    boxed, texts = hostile()
    assert len({*boxed, *texts}) == len(boxed) + len(texts) == COUNT
    before = children()
    limits = {"workers": 2, "time_limit_s": TIME_LIMIT_S, "memory_limit_mb": MEMORY_MB}
    of_box, auto = MathReward(extract="box", **limits), MathReward(extract="auto", **limits)
    watch = MemoryWatch(of_box, auto)
    watch.start()
    problem = Problem(id="p", prompt="", answer=GOLD)
    right = [f"{answer[:3000]} so {box(GOLD)}" for answer in texts[:40]]
    started = time.monotonic()
    # Right answers stand among the hostile ones.
    assert of_box.rewards([problem] * (len(boxed) + 40), boxed + right) == [0.0] * len(boxed) + [1.0] * 40
    counts_of_box = of_box.metrics()
    of_box.close()
    assert auto.rewards([problem] * len(texts), texts) == [0.0] * len(texts)
    assert auto.rewards([problem] * 3, [box(GOLD)] * 3) == [1.0] * 3
    took_s = time.monotonic() - started
    watch.stop.set()
    watch.join()
    auto.close()
    counts = auto.metrics()
    print(f"{COUNT} in {took_s:.0f} s; peak {watch.peak_mb} MiB, {len(watch.seen)} workers; {counts_of_box}; {counts}")
    assert took_s < 150
    assert 0 < watch.peak_mb <= MEMORY_MB
    assert counts["timed_out"] + counts["crashed"] <= len(EXPENSIVE) + 20
    assert children() <= before
    assert [pid for pid in watch.seen if Path(f"/proc/{pid}").exists()] == []
    assert os.listdir(tmp_path) == []
