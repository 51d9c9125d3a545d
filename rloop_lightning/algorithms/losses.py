"""Losses over completion tokens. Pure functions, each like its formula.

A policy loss gives the loss of every token, [B, T]. Mask, importance correction, KL term, entropy bonus and aggregation
are the same for all of them; base.py applies these. Logprobs are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

# exp(20) is past any ratio that clipping lets through, and far from overflow.
MAX_LOG_RATIO = 20.0


def ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho_t = exp(logp_t - logp_old_t), the log-ratio clamped to +-20.

    Args: logprobs, old_logprobs [B, T]. Returns [B, T].
    """
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """s = exp(mean_t(logp_t - logp_old_t)), the geometric mean of a rollout's ratios (GSPO, arXiv 2507.18071, eq. 7).

    Args: logprobs, old_logprobs [B, T]; mask [B, T] bool, the tokens of the mean. Returns [B, 1].
    """
    log_ratio = ((logprobs - old_logprobs) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


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

    With `dual_clip` = c, a token with negative advantage loses at most -c A (arXiv 1912.09729, eq. 5).

    Args: rho [B, T], as `ratio` gives it; advantages [B]. Returns [B, T].
    """
    advantages = advantages[:, None]
    clipped = rho.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    loss = -torch.minimum(rho * advantages, clipped * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


def clipped(rho: Tensor, advantages: Tensor, *, clip_eps_low: float, clip_eps_high: float) -> Tensor:
    """The tokens without gradient, [B, T] bool: their ratio passed the clip bound on the advantage's side.

    Args: rho [B, T]; advantages [B].
    """
    advantages = advantages[:, None]
    return ((advantages > 0) & (rho > 1 + clip_eps_high)) | ((advantages < 0) & (rho < 1 - clip_eps_low))


def policy_gradient(logprobs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """L_t = -w_t A logp_t, w without gradient: REINFORCE with weights (MiniRL, arXiv 2512.01374).

    Args: logprobs [B, T]; advantages [B]; weights [B, T]. Returns [B, T].
    """
    return -weights.detach() * advantages[:, None] * logprobs


def negative_log_likelihood(logprobs: Tensor, weights: Tensor) -> Tensor:
    """L_t = -w logp_t of each token (RFT, arXiv 2511.04285: w is the binary reward in place of p*/pi).

    Args: logprobs [B, T]; weights [B]. Returns [B, T].
    """
    return -weights[:, None] * logprobs
