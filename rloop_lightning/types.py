"""The data that flows through the trainer, as frozen dataclasses with their shapes.

    Problem -> engine -> Rollout -> reward -> Group -> RolloutBatch -> loss

Shapes: P problems, G rollouts per problem, B = P * G rows, L tokens of prompt and completion, T tokens of completion,
V vocabulary. Lengths are in tokens, logprobs in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

FinishReason = Literal["stop", "length"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Role
    text: str


CheckFault = Literal["", "timeout", "memory", "crash"]
"""Why the check of an answer ended without a verdict: it exceeded its time limit or its memory limit, or it crashed.
Empty if there is a verdict."""


@dataclass(frozen=True)
class Problem:
    """A prompt with a gold answer.

    Args:
        id: unique inside a problem set, the same in every run.
        prompt: the text that the policy sees, template applied.
        answer: the gold answer, in the form that the reward parses.
        metadata: anything else that the reward needs.
        alternatives: further gold answers; each of them is right too.
        context: the messages before the problem: the system's and earlier turns. Rendering puts them into the prompt.
        prompt_ids: the tokens of `prompt`, if its text alone doesn't give them: it contains the name of a special
            token as plain text. None otherwise.
    """

    id: str
    prompt: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    context: tuple[Message, ...] = ()
    prompt_ids: tuple[int, ...] | None = None

    @property
    def golds(self) -> tuple[str, ...]:
        """All gold answers; any one of them is right."""
        return (self.answer, *self.alternatives)


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
        report_kept_tokens: whether rollouts carry the tokens that top-k and top-p kept, which an update needs. An
            evaluation sets this to false.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    report_routed_experts: bool = True
    report_kept_tokens: bool = True

    @property
    def truncates(self) -> bool:
        """Whether tokens are sampled from a part of the vocabulary, by top-k or top-p."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)


@dataclass(frozen=True)
class Rollout:
    """One sampled completion of a problem. `reward`, `success` and `check_fault` are set by the reward."""

    problem_id: str
    prompt_ids: np.ndarray  # [S] int64
    completion_ids: np.ndarray  # [T] int64, including the token that ends it
    sampling_logprobs: np.ndarray  # [T] float32, nats, under the sampling distribution
    text: str  # the decoded completion, without special tokens
    finish_reason: FinishReason
    reward: float = float("nan")
    success: bool = False
    check_fault: CheckFault = ""
    reward_parts: Mapping[str, float] = field(default_factory=dict)  # the parts of a combined reward, by name
    replayed: bool = False  # drawn from a pool: its ratio uses the recorded sampling logprobs
    routed_experts: np.ndarray | None = None  # [S + T - 1, layers, top_k] uint8 or int16, the engine's experts
    kept_tokens: np.ndarray | None = None  # [K] int32, the ids that top-k and top-p kept, token by token
    kept_counts: np.ndarray | None = None  # [T] int32, how many of them belong to each token; they sum to K
    # [T] int32, of the weights that sampled each token: the engine's number of them; in a RolloutStep, the rollout
    # steps that they had trained on.
    versions: np.ndarray | None = None

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
        check_fault: why the check of the answer ended without a verdict.
    """

    reward: float
    success: bool
    parts: Mapping[str, float] = field(default_factory=dict)
    check_fault: CheckFault = ""


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
    kept_tokens: Tensor | None = None  # [B, K] int32, what the rows were sampled from; None is the whole vocabulary
    kept_counts: Tensor | None = None  # [B, T] int32, 0 after the completion
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
        if self.kept_counts is not None:
            widths["kept_tokens"] = int(self.kept_counts[rows].sum(1).max())
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
    lag: float = 0.0  # rollout steps that the policy has trained on since a token was sampled, mean over the tokens
    phase_steps: int | None = None  # rollout steps that the phase will have, by the tokens so far where they limit it

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same step with its batch on `device`."""
        return replace(self, batch=self.batch.to(device, non_blocking))


@dataclass(frozen=True)
class TokenScores:
    """The policy's logprobs and entropy at a batch's completion tokens; 0 after the completion.

    Both are of the distribution that tokens are sampled from: at the batch's temperature, over its kept tokens.
    """

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
