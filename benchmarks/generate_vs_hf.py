"""Compares our engine with `model.generate` of transformers, and with vLLM if an interpreter that has it is given.

All sides use the same weights in the same precision and sample completions of the same prompts at temperature 1. Ours
and `model.generate` run in this process, vLLM in its own. They take turns, A B C A B C. With equal lengths, every
completion reaches the limit. With spread lengths, stop tokens end completions at random: most early, few at the limit.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.measure import ROOT, Side, alternate, now, ratio_text
from benchmarks.models import SIZES, RandomPrompts, save_model
from benchmarks.options import Options
from benchmarks.report import Result, Table
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.model.loading import load_tokenizer
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem

ENGINE: Mapping[str, Mapping[str, Any]] = {
    "cpu": {"engine.max_rows": 1024},
    "cuda": {"engine.max_rows": 1024},
}
"""By device: the flags of `rloop-fit` that a user would choose for speed."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
SPREAD_BAR = "Bars: spread lengths at least 4x `model.generate`, and at least vLLM's throughput on a CPU."


@dataclass(frozen=True)
class Request:
    """A generation request: `rollouts` completions per problem, of at most `max_new_tokens` tokens."""

    problems: Sequence[Problem]
    rollouts: int
    max_new_tokens: int
    device: str


@dataclass(frozen=True)
class Turn:
    """The duration of one turn of a side, and the lengths of its completions, tokens."""

    seconds: float
    lengths: Sequence[int]

    @property
    def seconds_per_token(self) -> float:
        return self.seconds / sum(self.lengths)


def run(options: Options) -> Result:
    rows, raw = [], []
    for name in options.sizes_or(cpu=("0.86M", "11.5M"), cuda=("0.5B",)):
        for precision in ("fp32",) if options.toy else ("fp32", "bf16") if options.device == "cpu" else ("bf16",):
            for spread in (False, True):
                with tempfile.TemporaryDirectory() as folder:
                    turns = _compare(name, precision, spread, options, Path(folder))
                rows.append([name, precision, "spread" if spread else "equal", *_cells(turns)])
                plain = {side: [asdict(turn) for turn in mine] for side, mine in turns.items()}
                raw.append({"model": name, "precision": precision, "spread": spread, "turns": plain})
    flags = " ".join(f"--{name}={value}" for name, value in ENGINE[options.device].items())
    vllm = "" if options.vllm_python else " vLLM was not measured: --vllm-python names no interpreter that has it."
    notes = [
        f"{options.rounds} turns each; median, and of ratios (least to most). Ratios are of seconds a token. "
        f"Ours: `{flags}`, `--policy.dtype` as the precision. {SPREAD_BAR}{vllm}"
    ]
    columns = ["model", "precision", "lengths", "5 % / median / 95 % / most", "ours tok/s", "`generate` tok/s",
               "ours / `generate`", "vLLM tok/s", "ours / vLLM"]  # fmt: skip
    return Result([Table("Generation", columns, rows, notes)], {"cases": raw})


def request_for(spread: bool, options: Options) -> Request:
    """A request with enough rows to fill the device. Spread lengths get a higher limit, which few reach."""
    if options.toy:
        limit, problems, rollouts = 16 if spread else 8, 2, 4
    elif options.device == "cuda":
        limit, problems, rollouts = 1024 if spread else 512, 64, 8
    else:
        limit, problems, rollouts = 256 if spread else 64, 32, 8
    return Request(RandomPrompts(count=problems).train(), rollouts, limit, options.device)


def _compare(name: str, precision: str, spread: bool, options: Options, work: Path) -> dict[str, list[Turn]]:
    request = request_for(spread, options)
    # Completions have limit / 5 tokens on average. One in 150 reaches the limit; one in 20 has limit / 100 tokens.
    model = save_model(SIZES[name], work / "model", stop_rate=5 / request.max_new_tokens if spread else 0)
    sides: dict[str, Callable[[], Turn]] = {
        "ours": ours(model, precision, request),
        "generate": hugging_face(model, precision, request),
    }
    with ExitStack() as stack:
        if options.vllm_python:
            path = str(ROOT / "benchmarks" / "side_vllm.py")
            arguments = vllm_arguments(model, precision, request)
            side = Side("vLLM", path, arguments, work / "vllm.log", options.vllm_python)
            sides["vLLM"] = partial(_vllm_turn, stack.enter_context(side))
        alternate(sides, rounds=1)  # not counted
        return alternate(sides, options.rounds)


def ours(model: Path, precision: str, request: Request) -> Callable[[], Turn]:
    """Our engine and its policy, created from flags as in `rloop-fit`."""
    flags = {
        "policy.model": model,
        "policy.dtype": DTYPES[precision],
        "engine.max_new_tokens": request.max_new_tokens,
        **ENGINE[request.device],
    }
    cli = RLoopCLI([f"--{name}={value}" for name, value in flags.items()])
    engine = cli.parts.engine
    engine.bind(Policy.load(cli.policy_config).to(request.device))
    seeds = iter(range(1_000_000))

    def turn() -> Turn:
        started = now(request.device)
        engine.sync()
        rollouts = engine.generate(request.problems, request.rollouts, engine.sampling(next(seeds)))
        return Turn(now(request.device) - started, [rollout.length for rollout in rollouts])

    return turn


def hugging_face(folder: Path, precision: str, request: Request) -> Callable[[], Turn]:
    """`model.generate`, with all rows as one batch."""
    dtype = getattr(torch, DTYPES[precision])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(request.device).eval()
    stops = torch.tensor(model.generation_config.eos_token_id, device=request.device)
    prompts = [ids for ids in _prompt_ids(folder, request) for _ in range(request.rollouts)]
    width = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts], device=request.device)

    @torch.inference_mode()
    def turn() -> Turn:
        started = now(request.device)
        output = model.generate(
            input_ids,
            attention_mask=(input_ids != 0).long(),
            max_new_tokens=request.max_new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
        seconds = now(request.device) - started
        stopped = torch.isin(output[:, width:], stops)
        lengths = torch.where(stopped.any(-1), stopped.int().argmax(-1) + 1, stopped.shape[1])
        return Turn(seconds, lengths.tolist())

    return turn


def _prompt_ids(folder: Path, request: Request) -> list[list[int]]:
    tokenizer = load_tokenizer(str(folder))
    return [tokenizer.encode(problem.prompt, add_special_tokens=False) for problem in request.problems]


def vllm_arguments(folder: Path, precision: str, request: Request) -> list[str]:
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    settings = {
        "model": str(folder),
        "dtype": DTYPES[precision],
        "device": request.device,
        "prompts": _prompt_ids(folder, request),
        "rollouts": request.rollouts,
        "max_new_tokens": request.max_new_tokens,
        "stop_token_ids": [
            token for token in stops if token < vocabulary
        ],  # vLLM refuses stop tokens outside the vocabulary
    }
    return [json.dumps(settings)]


def _vllm_turn(side: Side) -> Turn:
    return Turn(**side.ask("turn"))


def _cells(turns: Mapping[str, Sequence[Turn]]) -> list[str]:
    lengths = np.concatenate([turn.lengths for turn in turns["ours"]])
    low, middle, high = np.percentile(lengths, [5, 50, 95])
    speed = {side: statistics.median(1 / turn.seconds_per_token for turn in mine) for side, mine in turns.items()}
    cells = [f"{low:.0f} / {middle:.0f} / {high:.0f} / {lengths.max()}", f"{speed['ours']:,.0f}"]
    for side in ("generate", "vLLM"):
        if side in turns:
            slower, faster = ([turn.seconds_per_token for turn in turns[which]] for which in (side, "ours"))
            cells += [f"{speed[side]:,.0f}", ratio_text(slower, faster)]
        else:
            cells += ["not measured", ""]
    return cells
