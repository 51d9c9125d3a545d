"""The data that flows through the trainer, as frozen dataclasses; every shape is stated here.

    Problem -> engine -> Rollout -> reward -> Group -> RolloutBatch -> loss

Shapes: P problems, G rollouts per problem, B = P * G rows, L tokens of prompt and completion, T tokens of completion,
V vocabulary. Lengths are in tokens, logprobs in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Problem:
    """A prompt with a gold answer.

    Args:
        id: unique inside a problem set, the same in every run.
        prompt: the text that the policy sees, template applied.
        answer: the gold answer, as the reward reads it.
        metadata: whatever else the reward needs.
    """

    id: str
    prompt: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn.

    Args:
        max_new_tokens: completion length limit, tokens; a completion cut there has finish reason `length`.
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
        seed: the same seed, weights and engine give the same rollouts.
        report_routed_experts: whether rollouts come with the experts they were computed with, where routing replay R3
            wants those; an evaluation, which does not train on them, saves the memory.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    report_routed_experts: bool = True


@dataclass(frozen=True)
class Rollout:
    """One sampled completion of a problem. `reward` and `success` are set once it was checked."""

    problem_id: str
    prompt_ids: np.ndarray  # [S] int64
    completion_ids: np.ndarray  # [T] int64, the stop token included
    sampling_logprobs: np.ndarray  # [T] float32, nats, under the distribution that was sampled from
    text: str  # the completion, decoded, without special tokens
    finish_reason: FinishReason
    reward: float = float("nan")
    success: bool = False
    reward_parts: Mapping[str, float] = field(default_factory=dict)  # by name, what a combined reward is made of
    replayed: bool = False  # drawn from a pool: its ratio is taken against the sampling logprobs it was recorded with
    routed_experts: np.ndarray | None = (
        None  # [S + T - 1, layers, top_k] uint8 or int16, those that the engine computed with
    )

    @property
    def length(self) -> int:
        """Completion length, tokens."""
        return len(self.completion_ids)


@dataclass(frozen=True)
class Scored:
    """What a reward gives for one completion.

    Args:
        reward: what advantages are made of; any real number.
        success: whether the answer is right: what dynamic sampling, the filter and pass@k look at, and nothing else.
        parts: by name, the rewards that a combined one is made of, before their weights; each is logged apart.
    """

    reward: float
    success: bool
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The G rollouts of one problem in one rollout step, and those of an earlier one that are replayed with them."""

    problem: Problem
    rollouts: tuple[Rollout, ...]

    @property
    def success_count(self) -> int:
        return sum(rollout.success for rollout in self.rollouts)


@dataclass(frozen=True)
class RolloutBatch:
    """Rollouts as padded tensors, B first in every field.

    Rows are right-padded: in a causal model no completion token sees the padding behind it, so no attention mask is
    needed.
    """

    input_ids: Tensor  # [B, L] int64, prompt and completion
    prompts: Tensor  # [B] int64, rows of equal number have the same prompt
    prompt_lengths: Tensor  # [B] int64, tokens
    completion_lengths: Tensor  # [B] int64, tokens
    sampling_logprobs: Tensor  # [B, T] float32, nats, 0 behind the completion
    loss_mask: Tensor  # [B, T] bool, the completion tokens that carry loss
    advantages: Tensor  # [B] float32
    replayed: Tensor  # [B] bool, rows from a pool
    rows: Tensor  # [B] int64, which of the training step's rollouts each row is
    groups: Tensor | None = None  # [B] int64, rows of equal number are of one group
    rewards: Tensor | None = None  # [B] float64, shaped, what the advantages came from
    old_logprobs: Tensor | None = None  # [B, T] float32, nats
    temperature: float = 1.0
    max_new_tokens: int = 0  # completion length limit that they were sampled with
    routed_experts: Tensor | None = None  # [B, L, layers, top_k] uint8 or int16, to replay; not of a row's last token
    old_routed_experts: Tensor | None = (
        None  # [B, L, layers, top_k], the old policy's own choice, where it isn't `experts`
    )

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Prompt and completion, tokens [B]."""
        return self.prompt_lengths + self.completion_lengths

    @property
    def completion_mask(self) -> Tensor:
        """Where a completion token stands [B, T]; `loss_mask` is this one less what carries no loss."""
        positions = torch.arange(self.loss_mask.shape[1], device=self.loss_mask.device)
        return positions < self.completion_lengths[:, None]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def recorded_or(self, logprobs: Tensor) -> Tensor:
        """Old logprobs [B, T] from those of the generating policy: replayed rows keep what they were recorded with."""
        return torch.where(self.replayed[:, None], self.sampling_logprobs, logprobs)

    def select(self, rows: Tensor) -> Self:
        """The given rows, trimmed to their longest sequence and longest completion."""
        length = int(self.lengths[rows].max())
        completion_length = int(self.completion_lengths[rows].max())
        widths = {"input_ids": length, "routed_experts": length, "old_routed_experts": length}
        chosen: dict[str, Any] = {
            f.name: value[rows] if value.dim() == 1 else value[rows, : widths.get(f.name, completion_length)]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **chosen)

    def micro_batches(self, max_tokens: int) -> Iterator[tuple[Tensor, Self]]:
        """Row numbers and rows, longest first, in pieces of at most `max_tokens` padded tokens.

        Rows of like length stand together, so that little padding is computed. A row longer than `max_tokens` comes
        alone.
        """
        order = torch.argsort(self.lengths, descending=True, stable=True)
        lengths = self.lengths[order].tolist()
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, max_tokens // lengths[start])]
            yield rows, self.select(rows)
            start += len(rows)


@dataclass(frozen=True)
class RolloutStep:
    """What one rollout step generated, and the batch that it trains on."""

    index: int  # rollout step inside the phase, from 0
    groups: tuple[Group, ...]  # every group that was generated, those that dynamic sampling dropped included
    batch: RolloutBatch
    metrics: Mapping[str, float]
    rollouts: tuple[Rollout, ...] = ()  # those of the batch, in its order

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same step with its batch on `device`."""
        return replace(self, batch=self.batch.to(device, non_blocking))


@dataclass(frozen=True)
class TokenScores:
    """What the policy says of a batch's completion tokens; 0 behind the completion."""

    logprobs: Tensor  # [B, T] float32, nats, with gradients
    entropy: Tensor  # [B, T] float32, nats, with gradients only if they were asked for
    routed_experts: Tensor | None = None  # [B, L, layers, top_k], the routers' own choice; None without routing replay


@dataclass(frozen=True)
class LossOutput:
    """What a loss gives for a micro-batch: numbers of each token, [B, T], or of each row, [B, 1].

    The trainer masks and sums them, and divides by what is known of the whole mini-batch before its first micro-batch.

    Args:
        loss: with gradients.
        metrics: detached; means over the mini-batch's tokens in the loss come of them, or, of `..._max`, the largest.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class PendingUpdate:
    """An optimizer step that is about to be made: its mini-batch, and the loss of that, a scalar."""

    batch: RolloutBatch
    loss: Tensor


def collate(
    rollouts: Sequence[Rollout],
    advantages: Sequence[float] | np.ndarray,
    *,
    in_loss: Sequence[bool] | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 0,
) -> RolloutBatch:
    """Rollouts as one padded batch on the CPU, in their order.

    Args:
        rollouts: B rollouts, each of at least one completion token; all of them with experts, or none.
        advantages: [B]; the weights, in maximum likelihood.
        in_loss: [B], false masks a whole row; default all true.
        temperature: that they were sampled with; logprobs are taken at the same one.
        max_new_tokens: completion length limit that they were sampled with.
    """
    rows = len(rollouts)
    prompt_lengths = torch.tensor([len(r.prompt_ids) for r in rollouts])
    completion_lengths = torch.tensor([r.length for r in rollouts])
    width = int(completion_lengths.max())
    input_ids = np.zeros((rows, int((prompt_lengths + completion_lengths).max())), dtype=np.int64)
    sampling_logprobs = np.zeros((rows, width), dtype=np.float32)
    for row, rollout in enumerate(rollouts):
        prompt, end = len(rollout.prompt_ids), len(rollout.prompt_ids) + rollout.length
        input_ids[row, :prompt] = rollout.prompt_ids
        input_ids[row, prompt:end] = rollout.completion_ids
        sampling_logprobs[row, : rollout.length] = rollout.sampling_logprobs
    mask = torch.arange(width) < completion_lengths[:, None]
    if in_loss is not None:
        mask &= torch.as_tensor(in_loss, dtype=torch.bool)[:, None]
    numbers: dict[bytes, int] = {}
    return RolloutBatch(
        input_ids=torch.from_numpy(input_ids),
        prompts=torch.tensor([numbers.setdefault(r.prompt_ids.tobytes(), len(numbers)) for r in rollouts]),
        prompt_lengths=prompt_lengths,
        completion_lengths=completion_lengths,
        sampling_logprobs=torch.from_numpy(sampling_logprobs),
        loss_mask=mask,
        advantages=torch.as_tensor(advantages, dtype=torch.float32),
        replayed=torch.tensor([rollout.replayed for rollout in rollouts]),
        rows=torch.arange(rows),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        routed_experts=_collate_routed_experts(rollouts, input_ids.shape[1]),
    )


def _collate_routed_experts(rollouts: Sequence[Rollout], length: int) -> Tensor | None:
    """The experts of rollouts as [B, L, layers, top_k], where they have any."""
    recorded = [rollout.routed_experts for rollout in rollouts if rollout.routed_experts is not None]
    if not recorded:
        return None
    expected = [len(r.prompt_ids) + r.length - 1 for r in rollouts]
    if list(map(len, recorded)) != expected:
        raise ValueError("either all rollouts of a batch or none come with experts, of every token but the last")
    experts = np.zeros((len(rollouts), length, *recorded[0].shape[1:]), dtype=recorded[0].dtype)
    for row, own in enumerate(recorded):
        experts[row, : len(own)] = own
    return torch.from_numpy(experts)
