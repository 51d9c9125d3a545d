"""How fast the math reward checks GSM8K responses, beside plain math-verify called one answer after another.

    python benchmarks/reward_throughput.py path/to/gsm8k_responses.jsonl

Each line of the file: `gold`, `pred` (a whole response) and `expected`. Workers are started, and plain math-verify is
imported and called once, before the clock runs; no verdict is remembered from one measurement to the next. The best of
`--repeats` passes counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from math_verify import parse, verify

from rloop_lightning.rewards.math import MathReward
from rloop_lightning.types import Problem


def measure(check: Callable[[], list[bool]], repeats: int) -> tuple[float, list[bool]]:
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        verdicts = check()
        best = min(best, time.perf_counter() - started)
    return best, verdicts


def main(argv: Sequence[str] | None = None) -> list[tuple[str, float, float]]:
    """Print the table; its rows are name, answers a second, agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path)
    parser.add_argument("--limit", type=int, default=None, help="only the first responses")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args(argv)
    lines = arguments.responses.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: arguments.limit]]
    problems = [Problem(id=str(i), prompt="", answer=row["gold"]) for i, row in enumerate(rows)]
    texts = [row["pred"] for row in rows]

    def plain() -> list[bool]:
        return [bool(verify(parse(problem.answer), parse(text))) for problem, text in zip(problems, texts, strict=True)]

    def rewarded(extract: str, workers: int) -> Callable[[], list[bool]]:
        def check() -> list[bool]:
            reward._verdicts.clear()
            return [scored.success for scored in reward(problems, texts)]

        reward = MathReward(extract=extract, workers=workers)
        warm = [Problem(id="warm", prompt="", answer="1")] * 16 * workers
        reward(warm, [rf"\boxed{{{i}}}" for i in range(len(warm))])
        return check

    verify(parse("1"), parse("$1$"))
    checks = {"plain math-verify, sequential": plain}
    for extract in ("auto", "last"):
        for workers in arguments.workers:
            checks[f"MathReward, {extract}, {workers} workers"] = rewarded(extract, workers)
    table = []
    for name, check in checks.items():
        seconds, verdicts = measure(check, arguments.repeats)
        agreement = sum(v == row["expected"] for v, row in zip(verdicts, rows, strict=True)) / len(rows)
        table.append((name, len(rows) / seconds, agreement))
    print(f"{len(rows)} responses\n\n| | answers/s | times plain | agreement |\n| --- | ---: | ---: | ---: |")
    for name, rate, agreement in table:
        print(f"| {name} | {rate:,.0f} | {rate / table[0][1]:.2f} | {agreement:.2%} |")
    return table


if __name__ == "__main__":
    main()
