"""What a rollout is compared with: the policy's own forward pass, and a slow account of top-k and top-p."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Rollout


def completions(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [rollout.completion_ids.tolist() for rollout in rollouts]


@torch.no_grad()
def forward_logits(policy: Policy, rollout: Rollout) -> Tensor:
    """Logits [T, V] of a rollout's completion tokens: one forward pass, no cache, no padding."""
    ids = torch.tensor(np.concatenate([rollout.prompt_ids, rollout.completion_ids]))[None]
    return policy.model(ids, use_cache=False).logits[0, len(rollout.prompt_ids) - 1 : -1].float()


def slow_distribution(logits: Tensor, temperature: float, top_k: int, top_p: float) -> list[float]:
    """What top-k and then top-p leave of a softmax, token by token and in double precision."""
    weights = [math.exp(logit / temperature) for logit in logits.tolist()]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    if top_k:
        order = order[:top_k]
    total, kept, mass = sum(weights[token] for token in order), [], 0.0
    for token in order:
        if mass >= top_p * total:
            break
        kept.append(token)
        mass += weights[token]
    return [weights[token] / mass if token in kept else 0.0 for token in range(len(weights))]
