"""More rollouts than are decoded at once, of lengths that spread: our engine against transformers' continuous batching.

    python -m benchmarks continuous_batching [--against ../before]

Each side decodes at most 32 rows at once, of up to 2,048 tokens, in a process of its own. The sides take turns. With
`--against`, the engine of another checkout takes turns too.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import ROOT, Side, alternate, ratio_text
from benchmarks.models import SIZES, RandomPrompts, save_model
from benchmarks.options import Options
from benchmarks.report import Result, Table, size_text

_VOCABULARY = 2048  # enough that one token in hundreds is a stop token
_COLUMNS = ("model", "precision", "10 % / median / 90 % / most", "side", "tok/s", "ours is faster by", "peak memory")


@dataclass(frozen=True)
class Turn:
    """What a side answers: seconds, lengths of its completions in tokens, and its peak memory so far."""

    seconds: float
    lengths: Sequence[int]
    peak_bytes: int

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / sum(self.lengths)


def run(options: Options) -> Result:
    rows: list[list[Any]] = []
    raw = []
    for name in options.sizes_or(cpu=("0.86M", "11.5M"), cuda=("qwen3-0.6B",)):
        precision = "bfloat16" if options.device == "cuda" else "float32"
        with tempfile.TemporaryDirectory() as folder:
            turns = _compare(name, precision, options, Path(folder))
        rows += _rows(name, precision, turns)
        raw.append({"model": name, "turns": {side: [asdict(turn) for turn in mine] for side, mine in turns.items()}})
    notes = [
        f"{options.rounds} turns each; median, and of ratios of seconds a token (least to most). "
        f"{_rollouts(options)} rollouts, at most {_max_rows(options)} at once, of up to {_limit(options)} tokens."
    ]
    return Result([Table("Rows that enter as others end", _COLUMNS, rows, notes)], {"cases": raw})


def _compare(name: str, precision: str, options: Options, work: Path) -> dict[str, list[Turn]]:
    # Completions have a fifth of the limit on average; one in 150 reaches it.
    size = replace(SIZES[name], vocabulary=_VOCABULARY)
    request = {
        "model": str(save_model(size, work / "model", stop_rate=5 / _limit(options))),
        "device": options.device,
        "dtype": precision,
        "prompts": [problem.prompt for problem in RandomPrompts(count=_rollouts(options) // 4).train()],
        "rollouts": 4,
        "max_new_tokens": _limit(options),
        "max_rows": _max_rows(options),
    }
    sides = {"ours": ("torch", ROOT), "transformers": ("generate_batch", ROOT)}
    if options.against:
        sides["before"] = ("torch", options.against)
    script = str(ROOT / "benchmarks" / "side_generate.py")
    with ExitStack() as stack:
        turns = {}
        for side, (engine, root) in sides.items():
            arguments = [json.dumps({**request, "engine": engine})]
            process = stack.enter_context(Side(side, script, arguments, work / f"{side}.log", root=root))
            turns[side] = partial(_turn, process)
        alternate(turns, rounds=1)  # not counted
        return alternate(turns, options.rounds)


def _turn(side: Side) -> Turn:
    return Turn(**side.ask("turn"))


def _rows(name: str, precision: str, turns: Mapping[str, Sequence[Turn]]) -> list[list[Any]]:
    ours = turns["ours"]
    lengths = np.concatenate([turn.lengths for turn in ours])
    low, middle, high = np.percentile(lengths, [10, 50, 90])
    spread = f"{low:.0f} / {middle:.0f} / {high:.0f} / {lengths.max()}"
    rows = []
    for side, mine in turns.items():
        speed = statistics.median(1 / turn.seconds_per_token for turn in mine)
        ratio = ratio_text([turn.seconds_per_token for turn in mine], [turn.seconds_per_token for turn in ours])
        faster = "" if side == "ours" else ratio
        rows.append([name, precision, spread, side, f"{speed:,.0f}", faster, size_text(mine[-1].peak_bytes)])
    return rows


def _limit(options: Options) -> int:
    return 32 if options.toy else 2048


def _max_rows(options: Options) -> int:
    return 4 if options.toy else 256 if options.device == "cuda" else 32


def _rollouts(options: Options) -> int:
    return 4 * _max_rows(options)
