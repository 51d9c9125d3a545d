"""Measures how fast the math reward checks GSM8K responses, compared with sequential calls of plain math-verify.

The input is JSON lines with `gold`, `pred` (a whole response) and `expected`. Before the clock starts, workers are
started, and plain math-verify is imported and called once. No verdict is cached between turns. The sides take turns,
and the best turn of each side counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from math_verify import parse, verify

from benchmarks.measure import alternate
from benchmarks.options import Options
from benchmarks.report import Result, Table
from rloop_lightning.rewards.math import MathReward
from rloop_lightning.types import Problem

PLAIN = "plain math-verify, sequential"
_TOY_RESPONSES = 8


def run(options: Options) -> Result:
    title, columns = "Checking answers", ["", "answers/s", "times plain", "agreement"]
    if not options.responses.is_file():
        note = f"Not measured: there is no {options.responses.name}; name the file by --responses."
        return Result([Table(title, columns, [], [note])])
    lines = options.responses.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: _TOY_RESPONSES if options.toy else None]]
    turns = alternate(_sides(rows, workers=(1,) if options.toy else (1, 2)), rounds=min(2, options.rounds))
    plain = min(seconds for seconds, _ in turns[PLAIN])
    cells, raw = [], {}
    for name, mine in turns.items():
        seconds, verdicts = min(mine, key=lambda turn: turn[0])
        agreement = sum(v == row["expected"] for v, row in zip(verdicts, rows, strict=True)) / len(rows)
        cells.append([name, f"{len(rows) / seconds:,.0f}", f"{plain / seconds:.2f}", f"{agreement:.2%}"])
        raw[name] = {"seconds": [seconds for seconds, _ in mine], "agreement": agreement}
    return Result([Table(title, columns, cells, [f"{len(rows)} responses."])], raw)


def _sides(rows: Sequence[dict[str, Any]], workers: Sequence[int]) -> dict[str, Callable[[], tuple[float, list[bool]]]]:
    """The sides by name: functions that check all responses and return seconds and verdicts."""
    problems = [Problem(id=str(i), prompt="", answer=row["gold"]) for i, row in enumerate(rows)]
    texts = [row["pred"] for row in rows]

    def plain() -> list[bool]:
        return [bool(verify(parse(problem.answer), parse(text))) for problem, text in zip(problems, texts, strict=True)]

    def rewarded(extract: str, count: int) -> Callable[[], list[bool]]:
        def check() -> list[bool]:
            reward._verdicts.clear()
            return [scored.success for scored in reward(problems, texts)]

        reward = MathReward(extract=extract, workers=count)
        warm = [Problem(id="warm", prompt="", answer="1")] * 16 * count
        reward(warm, [rf"\boxed{{{i}}}" for i in range(len(warm))])
        return check

    verify(parse("1"), parse("$1$"))
    sides = {PLAIN: _timed(plain)}
    for extract in ("auto", "last"):
        for count in workers:
            sides[f"MathReward, {extract}, {count} workers"] = _timed(rewarded(extract, count))
    return sides


def _timed(check: Callable[[], list[bool]]) -> Callable[[], tuple[float, list[bool]]]:
    def turn() -> tuple[float, list[bool]]:
        started = time.perf_counter()
        verdicts = check()
        return time.perf_counter() - started, verdicts

    return turn
