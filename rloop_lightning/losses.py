"""Losses over completion tokens. Pure functions, each like its formula.

A policy loss gives the loss of every token, [B, T]; the algorithm weighs, masks and sums them. Logprobs are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

# exp(20) is past any ratio that clipping lets through, and far from overflow.
_MAX_LOG_RATIO = 20.0


def ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho_t = exp(logp_t - logp_old_t), the log-ratio clamped to +-20.

    Args: logprobs, old_logprobs [B, T]. Returns [B, T].
    """
    return (logprobs - old_logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped loss of each token, with DAPO's clip-higher (arXiv 2503.14476, eq. 8).

        L_t = -min(rho_t A, clip(rho_t, 1 - eps_low, 1 + eps_high) A),   rho_t = exp(logp_t - logp_old_t)

    With `dual_clip` = c, a token of negative advantage loses at most -c A (arXiv 1912.09729, eq. 5).

    Args: logprobs, old_logprobs [B, T]; advantages [B]. Returns [B, T].
    """
    rho = ratio(logprobs, old_logprobs)
    advantages = advantages[:, None]
    clipped = rho.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    loss = -torch.minimum(rho * advantages, clipped * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


def clipped(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_eps_low: float, clip_eps_high: float
) -> Tensor:
    """Which tokens the clip leaves without gradient, [B, T] bool: the ratio passed its bound on the advantage's side.

    Args: logprobs, old_logprobs [B, T]; advantages [B].
    """
    rho = ratio(logprobs, old_logprobs)
    advantages = advantages[:, None]
    return ((advantages > 0) & (rho > 1 + clip_eps_high)) | ((advantages < 0) & (rho < 1 - clip_eps_low))


def k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(pi || other) at each token sampled from pi: exp(d) - d - 1, d = logp_other - logp.

    Args: logprobs, other_logprobs [B, T]. Returns [B, T], never negative.
    """
    d = (other_logprobs - logprobs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return d.exp() - d - 1


def negative_log_likelihood(logprobs: Tensor, weights: Tensor) -> Tensor:
    """L_t = -w logp_t of each token (RFT, arXiv 2511.04285: w is the binary reward in place of p*/pi).

    Args: logprobs [B, T]; weights [B]. Returns [B, T].
    """
    return -weights[:, None] * logprobs
