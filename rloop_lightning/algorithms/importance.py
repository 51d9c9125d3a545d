"""Truncated importance sampling: corrects for the gap between the engine's and the trainer's probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rloop_lightning.algorithms.losses import MAX_LOG_RATIO
from rloop_lightning.types import LossOutput, RolloutBatch

ImportanceMode = Literal["none", "truncate", "mask"]
ImportanceLevel = Literal["token", "sequence"]


@dataclass(frozen=True)
class ImportanceCorrection:
    """Weights each token's loss by pi_old(trainer) / pi(engine).

    Args:
        mode: `truncate` clamps weights to the cap, `mask` sets weights above the cap to 0, `none` is off.
        level: one weight per token, or one per rollout.
        cap: the largest weight.
    """

    mode: ImportanceMode
    level: ImportanceLevel
    cap: float

    def apply(self, output: LossOutput, batch: RolloutBatch) -> LossOutput:
        """The loss multiplied by the weights, with the metric `policy/importance_weight`."""
        if self.mode == "none":
            return output
        assert batch.old_logprobs is not None
        weights = importance_weights(
            batch.old_logprobs,
            batch.sampling_logprobs,
            batch.completion_mask,
            cap=self.cap,
            level=self.level,
            mode=self.mode,
        )
        return LossOutput(output.loss * weights, {**output.metrics, "policy/importance_weight": weights})


def importance_weights(
    old_logprobs: Tensor,
    sampling_logprobs: Tensor,
    mask: Tensor,
    *,
    cap: float,
    level: ImportanceLevel,
    mode: Literal["truncate", "mask"],
) -> Tensor:
    """The importance weights of tokens or of whole rollouts.

        token:      w_t = exp(logp_old_t - logp_mu_t)
        sequence:   w = exp(sum_t(logp_old_t - logp_mu_t))

    Above `cap`, a weight becomes the cap (`truncate`) or 0 (`mask`).

    Args: old_logprobs, sampling_logprobs [B, T]; mask [B, T] bool, the completion tokens. Returns [B, T], or [B, 1]
        for whole rollouts.
    """
    log_ratio = (old_logprobs - sampling_logprobs) * mask
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True)
    weights = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return weights.clamp(max=cap) if mode == "truncate" else weights.masked_fill(weights > cap, 0.0)
