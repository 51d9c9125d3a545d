"""Compares generation and update with the machine's limits: arithmetic, and for decoding, memory bandwidth.

The limits are measured in the same run, before and after everything else, and the better value counts: the rate of a
large square matrix product, the rate of a product of the model's own shape (a micro-batch of 2048 tokens through its
MLP), and the bandwidth of copying a buffer that exceeds all caches. They are compared with whole rollout steps of ours.

Arithmetic is counted for the model, as in model FLOP utilisation: one forward pass for each generated token and each
prompt, and three for the update of each row. Recomputation is not counted. Bytes are those that decoding must read: the
weights for every column of tokens, and every row's keys and values.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.measure import StepReport, now
from benchmarks.models import SIZES, Size, save_model
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.step_vs_trl import open_side, random_task
from benchmarks.task import OURS, Task, variants

UPDATE_BAR = "Bar: the update reaches 50 % of the square product's rate on the 11.5M model."
_MICRO_BATCH_TOKENS = 2048
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(options: Options) -> Result:
    sizes = options.sizes_or(cpu=("0.86M", "11.5M"), cuda=("0.5B", "1.5B"))
    square = 256 if options.toy else 8192 if options.device == "cuda" else 2048
    before = _ceilings(sizes, square, options)
    measured: list[tuple[str, str, Task, list[StepReport]]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in sizes:
            task = random_task(str(save_model(SIZES[name], work / name)), options)
            for variant in variants(OURS, options):
                if variant == "bf16 update":  # its generation is the same as for fp32
                    continue
                with open_side("ours", variant, task, options, 1 + options.rounds, work) as side:
                    steps = [side.step() for _ in range(1 + options.rounds)][1:]
                measured.append((name, variant, task, steps))
    after = _ceilings(sizes, square, options)
    ceilings = {key: max(before[key], after[key]) for key in before}
    rows = [_row(SIZES[name], name, variant, task, steps, ceilings) for name, variant, task, steps in measured]
    columns = ["model", "precision", "generation GFLOP/s", "of the square product", "update GFLOP/s",
               "of the square product", "of the model's product", "decoding GB/s", "of the copy"]  # fmt: skip
    tables = [
        Table("Ceilings", ["", "measured"], [[key, _rate_text(key, rate)] for key, rate in ceilings.items()]),
        Table("Generation and update against them", columns, rows, [f"{task.shared_text()}. {UPDATE_BAR}"]),
    ]
    raw = {f"{name}, {variant}": [vars(step) for step in steps] for name, variant, _, steps in measured}
    return Result(tables, {"ceilings": ceilings, "steps": raw})


def precision_of(variant: str) -> str:
    """The precision of the matrix products of a variant of `OURS`."""
    return "bf16" if variant.startswith("bf16") else "fp32"


def _ceilings(sizes: Sequence[str], square: int, options: Options) -> dict[str, float]:
    """FLOP/s and bytes/s by name."""
    found = {}
    for precision in _DTYPES:
        found[f"{precision}, square product"] = _product_rate(square, square, square, precision, options)
        for name in sizes:
            size = SIZES[name]
            rate = _product_rate(_MICRO_BATCH_TOKENS, size.hidden, size.mlp, precision, options)
            found[f"{precision}, product of {name}"] = rate
    found["copy"] = _copy_rate(options)
    return found


def _product_rate(rows: int, inner: int, columns: int, precision: str, options: Options) -> float:
    """FLOP/s of [rows, inner] x [inner, columns]."""
    a = torch.randn(rows, inner, device=options.device).to(_DTYPES[precision])
    b = torch.randn(inner, columns, device=options.device).to(_DTYPES[precision])
    return 2 * rows * inner * columns / _seconds(lambda: a @ b, options)


def _copy_rate(options: Options) -> float:
    """Bytes/s, read and written."""
    source = torch.ones((1 << 20 if options.toy else 1 << 28) // 4, device=options.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), options)


def _seconds(work: Callable[[], object], options: Options) -> float:
    """Seconds of one call: the best of several bursts, each long enough for the clock."""
    work()
    calls = 1
    bursts: list[float] = []
    while len(bursts) < (1 if options.toy else 10):
        started = now(options.device)
        for _ in range(calls):
            work()
        seconds = now(options.device) - started
        if seconds < 0.02 and not options.toy:
            calls *= 2
        else:
            bursts.append(seconds / calls)
    return min(bursts)


def _row(
    size: Size, name: str, variant: str, task: Task, steps: Sequence[StepReport], ceilings: dict[str, float]
) -> list[str]:
    precision = precision_of(variant)
    square = ceilings[f"{precision}, square product"]
    generation = statistics.median(generation_flop(size, task, step) / step.generate_s for step in steps)
    update = statistics.median(update_flop(size, step) / step.update_s for step in steps)
    moved = statistics.median(decoded_bytes(size, task, step, precision) / step.generate_s for step in steps)
    return [
        name,
        variant,
        f"{generation / 1e9:,.0f}",
        f"{generation / square:.1%}",
        f"{update / 1e9:,.0f}",
        f"{update / square:.1%}",
        f"{update / ceilings[f'{precision}, product of {name}']:.1%}",
        f"{moved / 1e9:.2f}",
        f"{moved / ceilings['copy']:.1%}",
    ]


def generation_flop(size: Size, task: Task, step: StepReport) -> float:
    """Operations of a step's generation. Each prompt counts once, for any number of rollouts."""
    prompts = (step.trained_tokens - step.generated_tokens) / task.rollouts_per_problem
    return size.forward_flop(prompts + step.generated_tokens, step.generated_tokens, step.attended)


def update_flop(size: Size, step: StepReport) -> float:
    """Operations of a step's update: a forward pass, and a backward pass of twice that."""
    return 3 * size.forward_flop(step.trained_tokens, step.generated_tokens, step.attended)


def decoded_bytes(size: Size, task: Task, step: StepReport, precision: str) -> float:
    """Bytes that decoding must read: all weights for each column, and for each token what it attends to."""
    width = 4 if precision == "fp32" else 2
    columns = task.max_new_tokens  # with many rows, the longest completion nearly always reaches the limit
    cache = 2 * size.layers * (size.hidden // size.heads * size.kv_heads) * step.attended
    return width * (columns * (size.layer_weights + size.head_weights) + cache)


def _rate_text(name: str, rate: float) -> str:
    return f"{rate / 1e9:,.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}"
