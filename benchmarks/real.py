"""The mechanics of training at the shapes of real models: random weights, one device, this process.

Update: one micro-batch of long rollouts, forward, backward and optimizer step, as `rloop-fit` computes them under
`--trainer.precision bf16-mixed`. Decoding: `TorchEngine` in bfloat16, with completions of equal lengths.

Arithmetic is counted for the model (model FLOP utilisation, MFU): a forward pass counts once, a backward pass twice;
recomputation is not counted. With LoRA, the gradients of frozen weights are not computed and not counted. The peak is
the data sheet's dense bfloat16 rate of the card; on a CPU, the rate of a large square product measured before.
"""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.models import EOS, SIZES, make_model, make_tokenizer
from benchmarks.options import Options
from benchmarks.report import Result, Table
from rloop_lightning.batching import collate
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.lora import LoraSettings, add_adapter
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout, RolloutBatch

_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16, FLOP/s
_PROMPT = 512  # tokens
_UNLIMITED = 2**30  # tokens of a micro-batch
OURS, THEIRS = "TorchEngine", "transformers generate"
BARS = "Bars: at least 25 % MFU at 16k tokens and 40 % at 65k for the 0.6 B model on one H100."


@dataclass(frozen=True)
class Shape:
    """The rollouts of a micro-batch.

    Args:
        tokens: packed tokens.
        rollouts: how many rollouts share them; they continue one prompt.
    """

    tokens: int
    rollouts: int

    @property
    def prompt(self) -> int:
        return min(_PROMPT, self.tokens // 4)

    @property
    def completion(self) -> int:
        """Tokens of each completion."""
        return (self.tokens - self.prompt) // self.rollouts

    @property
    def attended(self) -> int:
        """Pairs of a token and a token that it attends to, including itself."""
        own = self.completion * (self.completion + 1) // 2 + self.completion * self.prompt
        return self.prompt * (self.prompt + 1) // 2 + self.rollouts * own

    def batch(self, vocabulary: int) -> RolloutBatch:
        rng = np.random.default_rng(0)
        prompt = rng.integers(1, vocabulary - 1, self.prompt)
        rollouts = [
            Rollout(
                problem_id="",
                prompt_ids=prompt,
                completion_ids=rng.integers(1, vocabulary - 1, self.completion),
                sampling_logprobs=np.full(self.completion, -1.0, dtype=np.float32),
                text="",
                finish_reason="length",
            )
            for _ in range(self.rollouts)
        ]
        return collate(rollouts, np.resize([1.0, -1.0], self.rollouts))


@dataclass(frozen=True)
class Update:
    """An update to measure."""

    model: str
    shape: Shape
    checkpointing: bool = False
    lora: int = 0  # rank; 0 trains all weights
    quantized: bool = False  # NF4, under LoRA

    @property
    def name(self) -> str:
        adapter = f"QLoRA {self.lora}" if self.quantized else f"LoRA {self.lora}"
        ways = [adapter] * bool(self.lora) + ["checkpointing"] * self.checkpointing
        rows = f"{self.shape.rollouts} x {self.shape.completion:,}"
        return ", ".join([self.model, f"{self.shape.tokens:,} tokens", rows, *ways])

    def flop(self) -> float:
        size, shape = SIZES[self.model], self.shape
        forward = size.forward_flop(shape.tokens, shape.rollouts * shape.completion, shape.attended)
        if not self.lora:
            return 3 * forward
        attention = size.forward_flop(0, 0, shape.attended)
        return 2 * (forward - attention) + 3 * attention  # no gradients of the frozen weights


@dataclass(frozen=True)
class Cost:
    """What an update costs: seconds of its parts, and memory in bytes."""

    seconds: float
    forward_s: float
    backward_s: float
    optimizer_s: float
    peak_bytes: int
    resident_bytes: int


def run(options: Options) -> Result:
    device = torch.device(options.device)
    peak, peak_from = _peak(device, toy=options.toy)
    measured: dict[str, tuple[Update, Cost]] = {}
    too_large = []
    for update in _updates(options):
        try:
            measured[update.name] = update, measure_update(update, device, options.rounds)
            print(f"{update.name}: {measured[update.name][1]}", file=sys.stderr, flush=True)
        except torch.cuda.OutOfMemoryError:
            too_large.append([update.name, *["out of memory"] * 5])
    decoded = [measure_decoding(name, rows, device, toy=options.toy, by=by) for name, rows, by in _decodings(options)]
    rows = [
        [
            name,
            f"{cost.seconds:.3f}",
            f"{update.shape.tokens / cost.seconds:,.0f}",
            f"{update.flop() / cost.seconds / peak:.1%}",
            f"{cost.forward_s:.3f} / {cost.backward_s:.3f} / {cost.optimizer_s:.3f}",
            f"{cost.peak_bytes / 2**30:.1f}" if device.type == "cuda" else "-",
        ]
        for name, (update, cost) in measured.items()
    ] + too_large
    columns = ["update", "seconds", "tokens/s", "MFU", "forward / backward / optimizer, s", "peak GiB"]
    speeds = [
        [one["name"], f"{one['tokens_s']:,.0f}", f"{1e3 * one['step_s']:.1f}", f"{one['peak_bytes'] / 2**30:.1f}"]
        for one in decoded
    ]
    return Result(
        [
            Table("Update", columns, rows, [f"Median of {options.rounds} updates. MFU of {peak_from}. {BARS}"]),
            Table("Decoding, bfloat16", ["rows", "tokens/s", "ms a step", "peak GiB"], speeds),
        ],
        {
            "peak_flop_s": peak,
            "updates": {name: {**asdict(update), **asdict(cost)} for name, (update, cost) in measured.items()},
            "decoding": decoded,
        },
    )


def _updates(options: Options) -> Iterator[Update]:
    if options.toy or options.device == "cpu":
        for name in options.sizes_or(cpu=("11.5M",), cuda=()):
            shape = Shape(64, 4) if options.toy else Shape(2048, 8)
            yield from (Update(name, shape, checkpointing) for checkpointing in (False, True))
            yield Update(name, shape, lora=4)
        return
    for name in options.sizes_or(cpu=(), cuda=("qwen3-0.6B", "qwen3-1.7B")):
        long = Shape(16_384, 1)
        yield Update(name, long)
        yield Update(name, long, checkpointing=True)
        yield Update(name, replace(long, rollouts=16))
        yield Update(name, long, lora=32)
        yield Update(name, long, checkpointing=True, lora=32)
        yield Update(name, long, checkpointing=True, lora=32, quantized=True)
        yield Update(name, Shape(65_536, 1), checkpointing=True)
        yield Update(name, Shape(65_536, 64), checkpointing=True)


def _decodings(options: Options) -> Iterator[tuple[str, int, str]]:
    """Models, rows, and which of `OURS` and `THEIRS` decodes."""
    for name in ("toy-qwen3",) if options.toy else options.sizes_or(cpu=("11.5M",), cuda=("qwen3-0.6B", "qwen3-1.7B")):
        rows = 4 if options.toy else 64
        yield from ((name, rows, by) for by in (OURS, THEIRS))
        if options.device == "cuda":
            yield name, 512, OURS


def make_policy(name: str, device: torch.device, *, context: int, update: Update | None = None) -> Policy:
    """A policy with random weights, for generation or for an update."""
    size = SIZES[name]
    model = make_model(size, [size.vocabulary - 1], context_tokens=context, device=str(device))
    tokenizer = make_tokenizer(size.vocabulary, EOS)
    checkpointing = update is not None and update.checkpointing
    settings = LoraSettings(rank=0 if update is None else update.lora)
    if update is None or not update.lora:
        return Policy(model, tokenizer, _UNLIMITED, gradient_checkpointing=checkpointing)
    model = model.to(torch.bfloat16)  # frozen; the adapter's weights are float32
    if not update.quantized:
        adapter = add_adapter(model, settings)
        return Policy(model, tokenizer, _UNLIMITED, gradient_checkpointing=checkpointing, adapter=adapter)
    with TemporaryDirectory() as folder:  # weights are quantised while they are loaded
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = PolicyConfig(
            folder,
            dtype="bfloat16",
            max_tokens_per_micro_batch=_UNLIMITED,
            gradient_checkpointing=checkpointing,
            lora=settings,
            quantization="nf4",
        )
        return Policy.load(config).to(device)


def measure_update(update: Update, device: torch.device, rounds: int) -> Cost:
    """The median cost of an update, after one to warm up."""
    _free(device)
    context = max(4096, update.shape.tokens)
    policy = make_policy(update.model, device, context=context, update=update)
    policy.mixed_precision = torch.bfloat16
    batch = update.shape.batch(SIZES[update.model].vocabulary).to(device)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)
    _step(policy, batch, weights, optimizer, device)
    resident = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    turns = [_step(policy, batch, weights, optimizer, device) for _ in range(rounds)]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    forward, backward, step = (statistics.median(part) for part in zip(*turns, strict=True))
    seconds = statistics.median(map(sum, turns))
    return Cost(seconds, forward, backward, step, peak, resident)


def _step(
    policy: Policy, batch: RolloutBatch, weights: Sequence[nn.Parameter], optimizer: Any, device: torch.device
) -> tuple[float, float, float]:
    """Seconds of the forward pass, of the backward pass, and of clipping and optimizer step."""
    clock = _clock(device)
    times = [clock()]
    with torch.autocast(device.type, torch.bfloat16):
        scores = policy.logprobs(batch)
        loss = -(scores.logprobs * batch.advantages[:, None] * batch.loss_mask).sum() / batch.loss_mask.sum()
    times.append(clock())
    loss.backward()
    times.append(clock())
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    times.append(clock())
    forward, backward, step = (after - before for before, after in pairwise(times))
    return forward, backward, step


def measure_decoding(name: str, rows: int, device: torch.device, *, toy: bool, by: str) -> dict[str, Any]:
    """Tokens a second with `rows` rows of equal length, 8 to a prompt, in bfloat16."""
    prompt, new = (8, 8) if toy else (256, 256 if device.type == "cuda" else 64)
    _free(device)
    policy = make_policy(name, device, context=4096)
    if by == OURS:
        generate = _by_engine(policy, prompt, new, rows)
    else:
        generate = _by_transformers(name, device, prompt, new, rows)
    clock = _clock(device)
    generate(0)  # warms up
    start = clock()
    generated = generate(1)
    seconds = clock() - start
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {
        "name": f"{by}: {name}, {rows} rows of {prompt} + {new} tokens",
        "seconds": seconds,
        "tokens_s": generated / seconds,
        "step_s": seconds / new,
        "peak_bytes": peak,
    }


def _by_engine(policy: Policy, prompt: int, new: int, rows: int) -> Callable[[int], int]:
    engine = TorchEngine(max_new_tokens=new, max_rows=rows, dtype="bfloat16")
    engine.bind(policy)
    problems = [Problem(id=f"{i}", prompt="a" * prompt, answer="") for i in range(max(1, rows // 8))]

    def generate(seed: int) -> int:
        rollouts = engine.generate(problems, rows // len(problems), engine.sampling(seed=seed))
        return sum(rollout.length for rollout in rollouts)

    return generate


def _by_transformers(name: str, device: torch.device, prompt: int, new: int, rows: int) -> Callable[[int], int]:
    size = SIZES[name]
    model = make_model(size, [size.vocabulary - 1], device=str(device)).to(torch.bfloat16).eval()
    prompts = torch.ones(rows, prompt, dtype=torch.int64, device=device)

    def generate(seed: int) -> int:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = model.generate(prompts, do_sample=True, max_new_tokens=new, min_new_tokens=new, top_k=0)
        return (found.shape[1] - prompt) * rows

    return generate


def _free(device: torch.device) -> None:
    """Free what the last measurement left: models hold cycles of references."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _clock(device: torch.device) -> Callable[[], float]:
    """A clock that waits for the device."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()

    return clock


def _peak(device: torch.device, *, toy: bool) -> tuple[float, str]:
    """The device's peak rate in bfloat16, FLOP/s, and where that is from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
        for card, rate in _PEAKS.items():
            if card in name:
                return rate, f"the data sheet's dense bfloat16 rate, {rate / 1e12:.0f} TFLOP/s"
    side = 256 if toy else 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock, seconds = _clock(device), []
    for _ in range(5):
        start = clock()
        torch.mm(left, right)
        seconds.append(clock() - start)
    rate = 2 * side**3 / min(seconds)
    return rate, f"a measured square product, {rate / 1e12:.3g} TFLOP/s"
