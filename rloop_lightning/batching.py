"""From rollouts to a padded batch.

batch = collate(rollouts, advantages, temperature=0.7)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rloop_lightning.errors import RunFault
from rloop_lightning.types import Rollout, RolloutBatch, SamplingParams


def check_kept_tokens(rollouts: Sequence[Rollout], sampling: SamplingParams) -> None:
    """Check that rollouts say which tokens top-k and top-p kept.

    Raises:
        RunFault: tokens were sampled by top-k or top-p, and a rollout does not say from which.
    """
    if sampling.truncates and any(rollout.kept_counts is None for rollout in rollouts):
        raise RunFault(
            f"--engine.top_k {sampling.top_k}, --engine.top_p {sampling.top_p:g}: the engine's rollouts come without "
            "the tokens that were kept (Rollout.kept_tokens), so ratios against the engine would be biased; start a "
            "new run with --engine.top_k 0 and --engine.top_p 1"
        )


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
        rollouts: B rollouts, each with at least one completion token. All of them carry routed experts, or none, and
            all of them kept tokens, or none.
        advantages: [B]; in maximum likelihood, the weights.
        in_loss: [B]; false masks the whole row. The default is all true.
        temperature: the sampling temperature; logprobs are computed at the same temperature.
        max_new_tokens: completion length limit of the sampling.

    Raises:
        ValueError: the routed experts or the kept tokens don't fit the rollouts.
    """
    completion_lengths = torch.tensor([r.length for r in rollouts])
    input_ids = _padded([np.concatenate([r.prompt_ids, r.completion_ids]) for r in rollouts], np.int64)
    sampling_logprobs = _padded([r.sampling_logprobs for r in rollouts], np.float32)
    mask = torch.arange(sampling_logprobs.shape[1]) < completion_lengths[:, None]
    if in_loss is not None:
        mask &= torch.as_tensor(in_loss, dtype=torch.bool)[:, None]
    numbers: dict[bytes, int] = {}
    kept_tokens, kept_counts = _kept_tokens(rollouts)
    return RolloutBatch(
        input_ids=input_ids,
        prompts=torch.tensor([numbers.setdefault(r.prompt_ids.tobytes(), len(numbers)) for r in rollouts]),
        prompt_lengths=torch.tensor([len(r.prompt_ids) for r in rollouts]),
        completion_lengths=completion_lengths,
        sampling_logprobs=sampling_logprobs,
        loss_mask=mask,
        advantages=torch.as_tensor(advantages, dtype=torch.float32),
        replayed=torch.tensor([rollout.replayed for rollout in rollouts]),
        rows=torch.arange(len(rollouts)),
        kept_tokens=kept_tokens,
        kept_counts=kept_counts,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        routed_experts=_routed_experts(rollouts, input_ids.shape[1]),
    )


def _padded(rows: Sequence[np.ndarray], dtype: type[np.generic] | np.dtype, length: int = 0) -> Tensor:
    """Arrays [L_row, ...] as a tensor [B, L, ...], 0 after each; L is the longest of them, or `length`."""
    padded = np.zeros((len(rows), max(length, *map(len, rows), 0), *rows[0].shape[1:]), dtype=dtype)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)


def _routed_experts(rollouts: Sequence[Rollout], length: int) -> Tensor | None:
    """The routed experts of the rollouts [B, L, layers, top_k], or None."""
    recorded = [rollout.routed_experts for rollout in rollouts if rollout.routed_experts is not None]
    if not recorded:
        return None
    expected = [len(r.prompt_ids) + r.length - 1 for r in rollouts]
    if list(map(len, recorded)) != expected:
        raise ValueError("either all rollouts of a batch or none come with experts, of every token but the last")
    return _padded(recorded, recorded[0].dtype, length)


def _kept_tokens(rollouts: Sequence[Rollout]) -> tuple[Tensor | None, Tensor | None]:
    """The kept tokens of the rollouts [B, K] and their counts [B, T], or None."""
    if all(rollout.kept_counts is None for rollout in rollouts):
        return None, None
    tokens = [rollout.kept_tokens for rollout in rollouts if rollout.kept_tokens is not None and _kept_fits(rollout)]
    counts = [rollout.kept_counts for rollout in rollouts if rollout.kept_counts is not None]
    if len(tokens) < len(rollouts):
        raise ValueError(
            "either all rollouts of a batch or none come with the tokens that top-k and top-p kept, those of each "
            "completion token, itself among them"
        )
    return _padded(tokens, np.int32), _padded(counts, np.int32)


def _kept_fits(rollout: Rollout) -> bool:
    """Whether a rollout's kept tokens are complete, and contain each token that was sampled."""
    tokens, counts = rollout.kept_tokens, rollout.kept_counts
    if tokens is None or counts is None or len(counts) != rollout.length or counts.sum() != len(tokens):
        return False
    if counts.min() < 1:
        return False
    sampled = tokens == np.repeat(rollout.completion_ids, counts)
    return bool(np.logical_or.reduceat(sampled, np.cumsum(counts) - counts).all())
