"""Does a server compute with the trainer's weights? A few completions, and the trainer's own logprobs of them.

    found = gap(policy, prompts, completions)
    nats = checked(found, push, limit, in_float32=True)    # raises if they part

A push can go wrong without a sound: a layer keeps a packed copy of its old weights, a server holds another model, or a
cache outlives the weights it was computed with. All of it shows in the logprobs of sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rloop_lightning.batching import collate
from rloop_lightning.engines.vllm.protocol import Completion
from rloop_lightning.errors import EngineError, NonFiniteError
from rloop_lightning.model.on_ranks import on_ranks
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.ranks import ALONE, Ranks
from rloop_lightning.types import Rollout, RolloutBatch, SamplingParams

PROBE = SamplingParams(max_new_tokens=12, temperature=1.0)
COMPLETIONS_PER_PROMPT = 2
_PROMPT_LENGTHS = (17, 6)  # tokens
LARGEST_IN_FLOAT32, MEAN_IN_HALF_PRECISION = 1e-3, 0.1  # nats


@dataclass(frozen=True)
class Gap:
    """How far a server's logprobs are from the trainer's, nats.

    Args:
        largest: over all tokens of the probe.
        mean: over them.
    """

    largest: float
    mean: float

    def measure(self, *, in_float32: bool) -> float:
        """What is compared with the tolerance. In half precision, rounding parts single tokens by tenths of a nat."""
        return self.largest if in_float32 else self.mean


def probe_prompts(policy: Policy) -> list[list[int]]:
    """Random prompts, the same in every run, short enough for the policy's context."""
    rng = np.random.default_rng(0)
    vocabulary = len(policy.tokenizer)
    room = max(1, policy.context_tokens - PROBE.max_new_tokens)
    return [rng.integers(0, vocabulary, min(length, room)).tolist() for length in _PROMPT_LENGTHS]


@torch.no_grad()
def gap(
    policy: Policy, prompts: Sequence[Sequence[int]], completions: Sequence[Completion], ranks: Ranks = ALONE
) -> Gap:
    """Compare a server's logprobs of what it sampled with the trainer's.

    Args:
        completions: the same number of each prompt, in order.
        ranks: those that compute with this one if the policy is sharded.

    Raises:
        NonFiniteError: the trainer's own logprobs are NaN or infinite.
    """
    each = len(completions) // len(prompts)
    rollouts = [
        Rollout(
            problem_id="",
            prompt_ids=np.array(prompts[number // each]),
            completion_ids=one.tokens,
            sampling_logprobs=one.logprobs,
            text="",
            finish_reason="length",
        )
        for number, one in enumerate(completions)
    ]
    batch = collate(rollouts, np.zeros(len(rollouts)), temperature=PROBE.temperature)
    own = on_ranks(ranks, policy, _logprobs, batch)
    if not own.isfinite().all():
        raise NonFiniteError("the policy's logits are NaN or infinite")
    parts = (own - batch.sampling_logprobs)[batch.completion_mask].abs()
    return Gap(float(parts.max()), float(parts.mean()))


def _logprobs(policy: Policy, batch: RolloutBatch) -> Tensor:
    return policy.scores_no_grad(batch.to(policy.device)).logprobs.cpu()


def checked(found: Gap, push: int, limit: float | None, *, in_float32: bool) -> float:
    """What was compared with the tolerance, nats.

    Args:
        push: which push of weights was probed, for the message.
        limit: the tolerance; None is the default.

    Raises:
        EngineError: the gap is larger.
    """
    measured = found.measure(in_float32=in_float32)
    tolerance = limit or (LARGEST_IN_FLOAT32 if in_float32 else MEAN_IN_HALF_PRECISION)
    if measured > tolerance:
        raise EngineError(
            f"vLLM does not compute with the trainer's weights: after push {push}, the logprobs of a probe part by "
            f"{measured:.2g} nats, and at most {tolerance:g} is rounding; take --engine torch, or raise "
            "--engine.max_gap_nats if this model rounds more"
        )
    return measured
