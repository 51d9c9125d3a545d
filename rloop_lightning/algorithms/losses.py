"""Losses over completion tokens. Pure functions that read like their formulas.

A policy loss gives the loss of each token, [B, T]. base.py and policy_module.py apply the options of all algorithms:
mask, importance correction, KL term, entropy bonus and aggregation. Logprobs are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rloop_lightning.types import LossOutput

# exp(20) exceeds every ratio within the clip range, and is far from overflow.
MAX_LOG_RATIO = 20.0


def ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho_t = exp(logp_t - logp_old_t), with the log-ratio clamped to +-20.

    Args: logprobs, old_logprobs [B, T]. Returns [B, T].
    """
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """s = exp(mean_t(logp_t - logp_old_t)), the geometric mean of a rollout's ratios (GSPO, arXiv 2507.18071, eq. 7).

    Args: logprobs, old_logprobs [B, T]; mask [B, T] bool, the tokens to average over. Returns [B, 1].
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
    """PPO's clipped loss per token, with DAPO's clip-higher (arXiv 2503.14476, eq. 8).

        L_t = -min(rho_t A, clip(rho_t, 1 - eps_low, 1 + eps_high) A)

    With `dual_clip` = c, the loss of a token with negative advantage is at most -c A (arXiv 1912.09729, eq. 5).

    Args: rho [B, T] or [B, 1], from `ratio` or `sequence_ratio`; advantages [B]. Returns the shape of rho.
    """
    advantages = advantages[:, None]
    clipped = rho.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    loss = -torch.minimum(rho * advantages, clipped * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


def clipped(rho: Tensor, advantages: Tensor, *, clip_eps_low: float, clip_eps_high: float) -> Tensor:
    """Whether a ratio is clipped, so that its token gets no gradient; bool, the shape of rho.

    Args: rho [B, T] or [B, 1]; advantages [B].
    """
    advantages = advantages[:, None]
    return ((advantages > 0) & (rho > 1 + clip_eps_high)) | ((advantages < 0) & (rho < 1 - clip_eps_low))


def clipped_loss(
    rho: Tensor, advantages: Tensor, *, clip_eps_low: float, clip_eps_high: float, dual_clip: float | None
) -> LossOutput:
    """`clipped_surrogate` with the metrics of `clip_metrics`, and `policy/clip_fraction_dual` with `dual_clip`.

    Args: rho [B, T] or [B, 1]; advantages [B].
    """
    eps = {"clip_eps_low": clip_eps_low, "clip_eps_high": clip_eps_high}
    metrics = clip_metrics(rho.detach(), advantages, **eps)
    if dual_clip is not None:
        above = (advantages[:, None] < 0) & (rho.detach() > dual_clip)
        metrics["policy/clip_fraction"] = metrics["policy/clip_fraction"] | above
        metrics["policy/clip_fraction_dual"] = above
    return LossOutput(clipped_surrogate(rho, advantages, dual_clip=dual_clip, **eps), metrics)


def clip_metrics(rho: Tensor, advantages: Tensor, *, clip_eps_low: float, clip_eps_high: float) -> dict[str, Tensor]:
    """Which tokens are clipped, and which of them by the lower and by the upper bound; bool, the shape of rho.

    Args: rho [B, T] or [B, 1], without gradient; advantages [B].
    """
    either = clipped(rho, advantages, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high)
    high = rho > 1  # a clipped ratio lies above or below the range, which contains 1
    return {
        "policy/clip_fraction": either,
        "policy/clip_fraction_low": either & ~high,
        "policy/clip_fraction_high": either & high,
    }


def policy_gradient(logprobs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """L_t = -w_t A logp_t, no gradient through w: weighted REINFORCE (MiniRL, arXiv 2512.01374).

    Args: logprobs [B, T]; advantages [B]; weights [B, T]. Returns [B, T].
    """
    return -weights.detach() * advantages[:, None] * logprobs


def negative_log_likelihood(logprobs: Tensor, weights: Tensor) -> Tensor:
    """L_t = -w logp_t per token (RFT, arXiv 2511.04285: the binary reward w stands in for p*/pi).

    Args: logprobs [B, T]; weights [B]. Returns [B, T].
    """
    return -weights[:, None] * logprobs
