"""The memory plan of a run: what training holds and what generation holds, by arithmetic, before anything is loaded.

    plan = MemoryPlan(shape, weights, setup)
    plan.training(), plan.generation()          # a bar each: bytes by what holds them; they don't happen at one time
    plan.tokens_within(limit)                   # the token budget of micro-batches that fits, None if none does
    plan.rows_within(limit)

memory_setup.py takes the setup from the settings of a run, and plan_text.py shows the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from rloop_lightning.engines.rows import most_columns
from rloop_lightning.engines.torch_engine import BATCHES_PER_PART
from rloop_lightning.model.attention_memory import PackedRows
from rloop_lightning.model.model_shape import ModelShape
from rloop_lightning.model.policy_weights import PolicyWeights
from rloop_lightning.model.token_scores import LOGITS_PER_PIECE
from rloop_lightning.model.update_memory import Products, UpdateMemory, update_memory
from rloop_lightning.run.plan_ranks import ONE_RANK, PlannedRanks

_FULL = 4  # bytes of a number in float32
_SMALL_TENSOR = 4096  # numbers from which on bitsandbytes keeps a tensor's moments in 8 bits
_PREFILL_TOKENS = 16384  # of engines/rows.py
_MOST_ROWS = 2**16
_ROW_BYTES = 24  # of a token in the engine's tables: token, logprob, random number, end
_SAMPLING_COPIES = 3  # of a piece of the logits, in float32
_AT_ONCE = 2**26  # numbers that an optimizer has in float32 at once (algorithms/bfloat16.py)


@dataclass(frozen=True)
class Moments:
    """Bytes of an optimizer's state for each trained number.

    Args:
        large: in tensors of at least 4,096 numbers.
        small: in smaller ones.
        paged: whether the state moves to the host when a GPU is full.
        offloaded: whether it is on the host of a GPU between steps.
    """

    large: float
    small: float
    paged: bool = False
    offloaded: bool = False

    def bytes(self, sizes: tuple[int, ...]) -> float:
        return sum(size * (self.small if size < _SMALL_TENSOR else self.large) for size in sizes)


@dataclass(frozen=True)
class Phase:
    """A phase that trains.

    Args:
        name: exploration or consolidation.
        moments: of its optimizer.
        reference: whether it keeps a copy of the trained weights as the reference policy.
        per_update: rollouts of an optimizer step.
        per_prompt: rollouts that share a prompt.
    """

    name: str
    moments: Moments
    reference: bool
    per_update: int
    per_prompt: int


@dataclass(frozen=True)
class Setup:
    """What decides the memory of a run besides its model.

    Args:
        products: how updates compute.
        phases: the phases that train.
        tokens: packed tokens of a micro-batch (--policy.max_tokens_per_micro_batch).
        rows: rollouts decoded at once (--engine.max_rows).
        prompt: tokens of the longest prompt.
        completion: tokens of the longest completion.
        generation: dtype of the engine's products and of its KV cache; None if the engine holds a model of its own.
    """

    products: Products
    phases: tuple[Phase, ...]
    tokens: int
    rows: int
    prompt: int
    completion: int
    generation: torch.dtype | None


@dataclass(frozen=True)
class Bar:
    """Bytes held at one time, by what holds them."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a run's training and of its generation.

    Args:
        shape: widths of the model.
        weights: the weights of the policy, of several ranks those that one of them holds.
        setup: what else decides the memory; of several ranks, the work of one.
        ranks: the processes that train.
        gathered: bytes of whole layers that a rank holds while it updates, besides its shards (plan_ranks.py).
        whole: bytes of the whole copy of the weights that an engine without a model of its own generates with.
    """

    shape: ModelShape
    weights: PolicyWeights
    setup: Setup
    ranks: PlannedRanks = ONE_RANK
    gathered: float = 0
    whole: float = 0

    def training(self) -> Bar:
        """What the phase that needs most holds during an update."""
        return max(map(self.phase, self.setup.phases), key=lambda bar: bar.total)

    def phase(self, phase: Phase) -> Bar:
        """What a phase holds during an update, at its peak."""
        update = self.update(phase)
        activations = min(update.activations, update.peak)
        parts = {
            **self._held(phase),
            "gathered layers": self.gathered,
            "gradients": sum(self.weights.trained) * self.gradient_itemsize,
            "activations": activations,
            "logits and head": update.peak - activations,
        }
        step = self._optimizer_step(phase.moments)
        if step > update.peak:
            parts["activations"], parts["logits and head"] = step, 0
        return Bar(phase.name, parts)

    def generation(self) -> Bar | None:
        """What generation holds beside the weights and moments; None if the engine has a model of its own."""
        dtype = self.setup.generation
        if dtype is None:
            return None
        held = max((self._held(phase) for phase in self.setup.phases), key=lambda parts: sum(parts.values()))
        return Bar(
            "generation",
            {
                **held,
                "weights cast": self._cast_bytes(dtype),
                "KV cache": self.setup.rows * self.row_bytes(dtype),
                "activations": self._prefill(dtype),
                "logits": self._logits(dtype),
            },
        )

    def update(self, phase: Phase) -> UpdateMemory:
        """The memory of the largest micro-batch of a phase."""
        return update_memory(self.shape, self.micro_batch(phase), self.setup.products)

    def micro_batch(self, phase: Phase) -> PackedRows:
        """The largest micro-batch of a phase."""
        return PackedRows.within(
            self.setup.tokens,
            prompt=self.setup.prompt,
            completion=self.setup.completion,
            per_prompt=phase.per_prompt,
            most=phase.per_update,
        )

    def row_bytes(self, dtype: torch.dtype) -> float:
        """The KV cache of one rollout at its longest, with the columns in reserve (engines/rows.py)."""
        tokens = self.setup.prompt + self.setup.completion
        columns = most_columns(tokens) if BATCHES_PER_PART[self.setup.products.device] > 1 else tokens
        return columns * 2 * self.shape.layers * self.shape.keys * dtype.itemsize

    def tokens_within(self, limit: float) -> int | None:
        """The largest token budget of micro-batches whose training fits, up to all rollouts of an optimizer step."""

        def fits(rollouts: int) -> bool:
            return self.with_(tokens=self._budget(rollouts)).training().total <= limit

        found = _largest(fits, self._most_rollouts)
        return self._budget(found) if found else None

    @property
    def most_tokens(self) -> int:
        """The token budget of all rollouts of an optimizer step."""
        return self._budget(self._most_rollouts)

    def rows_within(self, limit: float, most: int = _MOST_ROWS) -> int | None:
        """The largest number of rollouts decoded at once that fits; None if not one does.

        Args:
            most: no more than this.
        """

        def fits(rows: int) -> bool:
            bar = self.with_(rows=rows).generation()
            return bar is None or bar.total <= limit

        return _largest(fits, most) or None

    @property
    def gradient_itemsize(self) -> int:
        """Bytes of a trained weight's gradient: over several micro-batches, it is summed in float32."""
        return max(_FULL, self.weights.itemsize)

    def fits(self, limit: float) -> bool:
        """Whether both bars fit."""
        generation = self.generation()
        return self.training().total <= limit and (generation is None or generation.total <= limit)

    def with_(self, **changes: object) -> MemoryPlan:
        """The plan with other fields of its setup."""
        return replace(self, setup=replace(self.setup, **changes))  # type: ignore[arg-type]  # fields by name

    @property
    def _most_rollouts(self) -> int:
        return max(phase.per_update for phase in self.setup.phases)

    def _budget(self, rollouts: int) -> int:
        """The tokens of so many rollouts, with each of their prompts once."""
        prompts = max(math.ceil(rollouts / phase.per_prompt) for phase in self.setup.phases)
        return prompts * self.setup.prompt + rollouts * self.setup.completion

    def _held(self, phase: Phase) -> dict[str, float]:
        """What a phase holds all the time."""
        moments = phase.moments.bytes(self.weights.trained)
        on_host = (phase.moments.paged or phase.moments.offloaded) and self.setup.products.device == "cuda"
        reference = self.weights.trained_bytes if phase.reference else 0
        return {
            "weights": self.weights.bytes,
            "optimizer": 0 if on_host else moments,
            "reference policy": reference,
            "whole copy": 0 if self.setup.generation is None else self.whole,
        }

    def _optimizer_step(self, moments: Moments) -> float:
        """What an optimizer step holds at once: float32 weights and gradients of bfloat16 ones, offloaded moments."""
        at_once = min(sum(self.weights.trained), max(_AT_ONCE, *self.weights.trained))
        wide = 2 * _FULL if self.weights.itemsize < _FULL else 0
        return at_once * (wide + (moments.large if moments.offloaded else 0))

    def _cast_bytes(self, dtype: torch.dtype) -> float:
        """Copies of weights that generation computes with."""
        copies = 0.0
        weights = self.setup.products.weights
        if dtype != weights:
            copies += self.weights.cast * dtype.itemsize + self.shape.head_weights * dtype.itemsize
        elif self.weights.itemsize > dtype.itemsize:  # an adapter's float32 weights in a model of half precision
            copies += sum(self.weights.trained) * dtype.itemsize
        return copies

    def _prefill(self, dtype: torch.dtype) -> float:
        """The widest layer on a piece of the prompts."""
        shape, residual = self.shape, self.setup.products.weights.itemsize
        tokens = max(self.setup.prompt, min(_PREFILL_TOKENS, self.setup.rows * self.setup.prompt))
        width = max(3 * shape.mlp, 2 * shape.queries + 2 * shape.keys) * dtype.itemsize
        if shape.experts is not None:
            width = shape.experts.chosen * (2 * shape.hidden + 4 * shape.experts.width) * residual
        return tokens * (3 * shape.hidden * residual + width)

    def _logits(self, dtype: torch.dtype) -> float:
        logits = self.setup.rows * self.shape.vocabulary
        piece = min(logits, LOGITS_PER_PIECE[self.setup.products.device])
        rows = self.setup.rows * BATCHES_PER_PART[self.setup.products.device]
        tables = rows * self.setup.completion * _ROW_BYTES
        return logits * (dtype.itemsize + _FULL) + _SAMPLING_COPIES * piece * _FULL + tables


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, 0 if none does, where all smaller ones fit too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
