"""Losses over completion tokens. Pure functions, each like its formula.

A policy loss gives the loss of every token, [B, T]; what all of them have in common (mask, importance correction, KL
term, sum and what it is divided by) is the trainer's. Logprobs are in nats.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum", "constant"]
"""How the loss of tokens becomes one number:

    token-mean      over all tokens of the mini-batch (DAPO)
    sequence-mean   over the tokens of a rollout, then over rollouts (GRPO, GSPO)
    sequence-sum    summed over the tokens of a rollout, then the mean over rollouts (MiniRL)
    constant        summed, over rollouts times the length limit (Dr. GRPO)

Rollouts without a token in the loss are not counted.
"""

# exp(20) is past any ratio that clipping lets through, and far from overflow.
_MAX_LOG_RATIO = 20.0


def ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho_t = exp(logp_t - logp_old_t), the log-ratio clamped to +-20.

    Args: logprobs, old_logprobs [B, T]. Returns [B, T].
    """
    return (logprobs - old_logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """s = exp(mean_t(logp_t - logp_old_t)), the geometric mean of a rollout's ratios (GSPO, arXiv 2507.18071, eq. 7).

    Args: logprobs, old_logprobs [B, T]; mask [B, T] bool, the tokens of the mean. Returns [B, 1].
    """
    log_ratio = ((logprobs - old_logprobs) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def clipped_surrogate(
    rho: Tensor,
    advantages: Tensor,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped loss of each token, with DAPO's clip-higher (arXiv 2503.14476, eq. 8).

        L_t = -min(rho_t A, clip(rho_t, 1 - eps_low, 1 + eps_high) A)

    With `dual_clip` = c, a token of negative advantage loses at most -c A (arXiv 1912.09729, eq. 5).

    Args: rho [B, T], as `ratio` gives it; advantages [B]. Returns [B, T].
    """
    advantages = advantages[:, None]
    clipped = rho.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    loss = -torch.minimum(rho * advantages, clipped * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


def clipped(rho: Tensor, advantages: Tensor, *, clip_eps_low: float, clip_eps_high: float) -> Tensor:
    """Which tokens the clip leaves without gradient, [B, T] bool: the ratio passed its bound on the advantage's side.

    Args: rho [B, T]; advantages [B].
    """
    advantages = advantages[:, None]
    return ((advantages > 0) & (rho > 1 + clip_eps_high)) | ((advantages < 0) & (rho < 1 - clip_eps_low))


def policy_gradient(logprobs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """L_t = -w_t A logp_t, w without gradient: REINFORCE with weights (MiniRL, arXiv 2512.01374).

    Args: logprobs [B, T]; advantages [B]; weights [B, T]. Returns [B, T].
    """
    return -weights.detach() * advantages[:, None] * logprobs


def importance_weights(
    old_logprobs: Tensor,
    sampling_logprobs: Tensor,
    mask: Tensor,
    *,
    cap: float,
    level: Literal["token", "sequence"],
    mode: Literal["truncate", "mask"],
) -> Tensor:
    """What corrects for an engine whose probabilities are not the trainer's (truncated importance sampling).

        w_t = exp(logp_old_t - logp_mu_t), or w = exp(sum_t(logp_old_t - logp_mu_t)) for a whole rollout

    Above `cap`, a weight becomes the cap (`truncate`) or 0 (`mask`).

    Args: old_logprobs, sampling_logprobs [B, T]; mask [B, T] bool, a rollout's tokens. Returns [B, T], or [B, 1] for
        whole rollouts.
    """
    log_ratio = (old_logprobs - sampling_logprobs) * mask
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True)
    weights = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    return weights.clamp(max=cap) if mode == "truncate" else weights.masked_fill(weights > cap, 0.0)


def kl(logprobs: Tensor, other_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Schulman's estimates of KL(pi || other) at each token sampled from pi, with d = logp_other - logp.

        k1 = -d        k2 = d^2 / 2        k3 = exp(d) - d - 1

    Args: logprobs, other_logprobs [B, T]. Returns [B, T]; k2 and k3 are never negative.
    """
    d = (other_logprobs - logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    if estimator == "k1":
        return -d
    return d.square() / 2 if estimator == "k2" else d.exp() - d - 1


def negative_log_likelihood(logprobs: Tensor, weights: Tensor) -> Tensor:
    """L_t = -w logp_t of each token (RFT, arXiv 2511.04285: w is the binary reward in place of p*/pi).

    Args: logprobs [B, T]; weights [B]. Returns [B, T].
    """
    return -weights[:, None] * logprobs


def row_weights(mask: Tensor, aggregation: Aggregation) -> Tensor:
    """What the loss of each row's tokens is multiplied by before all are summed, float32 [B].

    Args: mask [B, T] bool, the tokens in the loss.
    """
    if aggregation == "sequence-mean":
        return 1.0 / mask.sum(1).clamp(min=1).float()
    return torch.ones(len(mask), device=mask.device)


def loss_count(mask: Tensor, aggregation: Aggregation, max_new_tokens: int) -> Tensor:
    """What the sum over a mini-batch is divided by, a scalar.

    Args: mask [B, T] bool, the tokens in the loss; max_new_tokens, the completion length limit.

    Raises:
        ValueError: the aggregation is `constant`, and rollouts come without a limit.
    """
    if aggregation == "constant" and max_new_tokens < 1:
        raise ValueError("the aggregation 'constant' needs the rollouts' length limit, which an expert set hasn't")
    if aggregation == "token-mean":
        return mask.sum()
    rows = mask.any(1).sum()
    return rows * max_new_tokens if aggregation == "constant" else rows
