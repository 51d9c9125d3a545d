"""The data that flows through the trainer, as frozen dataclasses with their shapes.

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
        answer: the gold answer, in the form that the reward parses.
        metadata: anything else that the reward needs.
    """

    id: str
    prompt: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingParams:
    """How completions are sampled.

    Args:
        max_new_tokens: completion length limit, tokens; a completion truncated there has finish reason `length`.
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
        seed: the same seed, weights and engine give the same rollouts.
        stop: texts and special tokens that end a completion, besides the policy's own stop tokens.
        report_routed_experts: whether rollouts carry the experts that computed them, if routing replay R3 needs them.
            An evaluation sets this to false, which saves memory.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    report_routed_experts: bool = True


@dataclass(frozen=True)
class Rollout:
    """One sampled completion of a problem. `reward` and `success` are set once the reward has scored it."""

    problem_id: str
    prompt_ids: np.ndarray  # [S] int64
    completion_ids: np.ndarray  # [T] int64, including the token that ends it
    sampling_logprobs: np.ndarray  # [T] float32, nats, under the sampling distribution
    text: str  # the decoded completion, without special tokens
    finish_reason: FinishReason
    reward: float = float("nan")
    success: bool = False
    reward_parts: Mapping[str, float] = field(default_factory=dict)  # the parts of a combined reward, by name
    replayed: bool = False  # drawn from a pool: its ratio uses the recorded sampling logprobs
    routed_experts: np.ndarray | None = None  # [S + T - 1, layers, top_k] uint8 or int16, the engine's experts

    @property
    def length(self) -> int:
        """Completion length, tokens."""
        return len(self.completion_ids)


@dataclass(frozen=True)
class Scored:
    """A reward's result for one completion.

    Args:
        reward: any real number; advantages are computed from it.
        success: whether the answer is right. Dynamic sampling, the filter and pass@k use only this.
        parts: the parts of a combined reward by name, before weighting; each is logged separately.
    """

    reward: float
    success: bool
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The G rollouts of one problem in one rollout step, plus any rollouts replayed from earlier steps."""

    problem: Problem
    rollouts: tuple[Rollout, ...]

    @property
    def success_count(self) -> int:
        return sum(rollout.success for rollout in self.rollouts)


@dataclass(frozen=True)
class RolloutBatch:
    """Rollouts as padded tensors, B first in every field.

    Rows are right-padded. No attention mask is needed, because in a causal model no token attends to later padding.
    """

    input_ids: Tensor  # [B, L] int64, prompt and completion
    prompts: Tensor  # [B] int64; rows with equal numbers have the same prompt
    prompt_lengths: Tensor  # [B] int64, tokens
    completion_lengths: Tensor  # [B] int64, tokens
    sampling_logprobs: Tensor  # [B, T] float32, nats, 0 after the completion
    loss_mask: Tensor  # [B, T] bool, the loss tokens
    advantages: Tensor  # [B] float32
    replayed: Tensor  # [B] bool, rows replayed from a pool
    rows: Tensor  # [B] int64, index of each row among the training step's rollouts
    groups: Tensor | None = None  # [B] int64; rows with equal numbers are of one group
    old_logprobs: Tensor | None = None  # [B, T] float32, nats
    temperature: float = 1.0
    max_new_tokens: int = 0  # completion length limit of the sampling
    routed_experts: Tensor | None = None  # [B, L, layers, top_k] uint8 or int16, to replay; none for a row's last token
    old_routed_experts: Tensor | None = (
        None  # [B, L, layers, top_k], the old policy's own choice, if it is not `routed_experts`
    )

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Length of prompt and completion, tokens [B]."""
        return self.prompt_lengths + self.completion_lengths

    @property
    def completion_mask(self) -> Tensor:
        """True at completion tokens [B, T]. `loss_mask` is this mask without the tokens that carry no loss."""
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
        """Old logprobs [B, T]: `logprobs` of the generating policy, but the recorded ones for replayed rows."""
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
        """Row numbers and rows, longest first, in micro-batches of at most `max_tokens` padded tokens.

        Rows of similar length are grouped, so that little padding is computed. A row longer than `max_tokens` is a
        micro-batch of its own.
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
    """The groups that one rollout step generated, and the batch that it trains on."""

    index: int  # rollout step inside the phase, from 0
    groups: tuple[Group, ...]  # every generated group, including those that dynamic sampling dropped
    batch: RolloutBatch
    metrics: Mapping[str, float]
    rollouts: tuple[Rollout, ...] = ()  # the batch's rollouts, in its order

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same step with its batch on `device`."""
        return replace(self, batch=self.batch.to(device, non_blocking))


@dataclass(frozen=True)
class TokenScores:
    """The policy's logprobs and entropy at a batch's completion tokens; 0 after the completion."""

    logprobs: Tensor  # [B, T] float32, nats, with gradients
    entropy: Tensor  # [B, T] float32, nats, with gradients only if they were asked for
    routed_experts: Tensor | None = None  # [B, L, layers, top_k], the routers' own choice; None without routing replay


@dataclass(frozen=True)
class LossOutput:
    """A loss for a micro-batch: one number per token, [B, T], or per row, [B, 1].

    The trainer masks and sums the loss, and divides it by a count over the whole mini-batch that is known before the
    first micro-batch.

    Args:
        loss: with gradients.
        metrics: detached. They are averaged over the mini-batch's loss tokens; of a name that ends in `_max`, the
            maximum is taken.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class PendingUpdate:
    """The next optimizer step: its mini-batch and its scalar loss."""

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
    """Pad rollouts into one batch on the CPU, in their order.

    Args:
        rollouts: B rollouts, each with at least one completion token. All of them carry routed experts, or none.
        advantages: [B]; in maximum likelihood, the weights.
        in_loss: [B]; false masks the whole row. The default is all true.
        temperature: the sampling temperature; logprobs are computed at the same temperature.
        max_new_tokens: completion length limit of the sampling.
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
    """The routed experts of the rollouts [B, L, layers, top_k], or None."""
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
