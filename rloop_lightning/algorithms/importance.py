"""Truncated importance sampling: corrects for the gap between the engine's and the trainer's probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from rloop_lightning.algorithms.kl_term import kl
from rloop_lightning.algorithms.losses import MAX_LOG_RATIO
from rloop_lightning.types import LossOutput, RolloutBatch

ImportanceMode = Literal["auto", "none", "truncate", "mask"]
ImportanceLevel = Literal["token", "sequence", "geometric"]

# A weight below this counts as vanished.
_VANISHED = 0.1


@dataclass(frozen=True)
class ImportanceCorrection:
    """Weights each token's loss by pi_old(trainer) / pi(engine).

    Args:
        mode: `truncate` clamps weights to the cap, `mask` sets weights above the cap to 0, `none` is off, and so is
            `auto`, which `expecting_lag` makes `truncate`.
        level: one weight per token, or one per rollout: the product or the geometric mean of its tokens' weights.
        cap: the largest weight.
    """

    mode: ImportanceMode
    level: ImportanceLevel
    cap: float

    @property
    def is_off(self) -> bool:
        return self.mode in ("auto", "none")

    def expecting_lag(self) -> ImportanceCorrection:
        """The same correction where rollouts come from older policies."""
        return replace(self, mode="truncate") if self.mode == "auto" else self

    def apply(self, output: LossOutput, batch: RolloutBatch) -> LossOutput:
        """The loss multiplied by the weights, with the metrics of `weight_metrics`."""
        if self.mode == "auto" or self.mode == "none":
            return output
        assert batch.old_logprobs is not None
        ratios = importance_ratios(batch.old_logprobs, batch.sampling_logprobs, batch.completion_mask, level=self.level)
        weights = capped(ratios, cap=self.cap, mode=self.mode)
        return LossOutput(output.loss * weights, {**output.metrics, **weight_metrics(ratios, weights, cap=self.cap)})


def importance_ratios(
    old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, *, level: ImportanceLevel
) -> Tensor:
    """The importance ratios of tokens or of whole rollouts, not yet capped.

        token:      w_t = exp(logp_old_t - logp_mu_t)
        sequence:   w = exp(sum_t(logp_old_t - logp_mu_t))
        geometric:  w = exp(mean_t(logp_old_t - logp_mu_t))

    The product of a sequence vanishes with its length. If the log-ratios of T tokens are normal with standard deviation
    s and E[w_t] = 1, the median of the product is exp(-T s^2 / 2): for T = 4,000, 0.17 at s = 0.03 and 2e-9 at s = 0.1.
    The geometric mean is biased, but its size does not depend on the length.

    Args: old_logprobs, sampling_logprobs [B, T]; mask [B, T] bool, the completion tokens. Returns [B, T], or [B, 1]
        for whole rollouts.
    """
    log_ratio = (old_logprobs - sampling_logprobs) * mask
    if level != "token":
        log_ratio = log_ratio.sum(1, keepdim=True)
    if level == "geometric":
        log_ratio = log_ratio / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def capped(ratios: Tensor, *, cap: float, mode: Literal["truncate", "mask"]) -> Tensor:
    """The weights: above `cap`, a ratio becomes the cap (`truncate`) or 0 (`mask`). Same shape."""
    return ratios.clamp(max=cap) if mode == "truncate" else ratios.masked_fill(ratios > cap, 0.0)


def gap_metrics(sampling_logprobs: Tensor, old_logprobs: Tensor, *, lag: float) -> dict[str, Tensor]:
    """How far the policy is from the one that sampled, as KL(sampling || old) and the largest difference, in nats.

    Without a lag, this is the gap between engine and trainer. With one, it is also what the updates since then did.

    Args: sampling_logprobs, old_logprobs [B, T]; lag: rollout steps that were trained on since. Returns [B, T] each.
    """
    cause = "lag" if lag else "engine"
    return {
        f"policy/{cause}_kl_nats": kl(sampling_logprobs, old_logprobs, "k3"),
        f"policy/{cause}_gap_nats_max": (old_logprobs - sampling_logprobs).abs(),
    }


def weight_metrics(ratios: Tensor, weights: Tensor, *, cap: float) -> dict[str, Tensor]:
    """The weights, and whether a ratio is above the cap, or below 0.1.

    Args: ratios [B, T] or [B, 1], before the cap; weights, after it.
    """
    return {
        "policy/importance_weight": weights,
        "policy/importance_capped_share": ratios > cap,
        "policy/importance_vanished_share": ratios < _VANISHED,
    }


class LostWeight:
    """Warns once in a phase if most of the importance weight is gone, and most of the gradient with it."""

    def __init__(self) -> None:
        self._told = False

    def warn(self, metrics: Mapping[str, float], level: ImportanceLevel, rollout_step: int) -> None:
        """Look at the metrics of a rollout step."""
        lost = _lost_weight(metrics, level)
        if lost is not None and not self._told:
            warnings.warn(f"rollout step {rollout_step + 1}: {lost}", stacklevel=1)
            self._told = True


def _lost_weight(metrics: Mapping[str, float], level: ImportanceLevel) -> str | None:
    """A warning if most of the weight is gone, by a rollout step's metrics: on average, weights are about 1."""
    mean = metrics.get("policy/importance_weight", 1.0)
    if mean >= 0.5:
        return None
    cause = (
        "--algo.importance_level sequence multiplies the weights of all tokens of a rollout, so it suits short "
        "completions only; start a new run with geometric or token"
        if level == "sequence"
        else "the policy is far from the engine's (policy/engine_gap_nats_max); start a new run with --engine.dtype "
        "float32, fewer --algo.updates_per_step or a lower --algo.lr"
    )
    return (
        f"importance weights are {mean:.2g} on average, so most of the gradient is lost; "
        f"{metrics['policy/importance_vanished_share']:.0%} of the tokens have a weight below {_VANISHED}. {cause}"
    )
