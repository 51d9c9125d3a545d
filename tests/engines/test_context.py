"""Sequences up to the longest that a model computes independently of the rest of the batch, and beyond."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import ORIGINAL_CONTEXT, make_architecture
from builders import make_policy

from rloop_lightning.batching import collate
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout

PROBLEMS = [Problem("short", "3+4", ""), Problem("long", "(7-2)*3=15;", "")]  # 3 and 11 tokens


def sample(policy: Policy, max_new_tokens: int, problems: list[Problem] = PROBLEMS) -> list[Rollout]:
    policy.stop_token_ids = frozenset()
    engine = TorchEngine(max_new_tokens=max_new_tokens)
    engine.bind(policy)
    return engine.generate(problems, 4, engine.sampling(0))


def logprobs(policy: Policy, rollouts: list[Rollout]) -> list[np.ndarray]:
    with torch.no_grad():
        scores = policy.logprobs(collate(rollouts, [0.0] * len(rollouts))).logprobs
    return [row[: rollout.length].numpy() for row, rollout in zip(scores, rollouts, strict=True)]


LIMITED = {
    "Phi3, longrope": (ORIGINAL_CONTEXT, "31 positions of its original context (longrope"),
    "DeepSeek-V3.2": (32, "32 tokens of sparse attention (index_topk)"),
    "MiniMax-M3, sparse": (32, "32 tokens of a block of sparse attention (index_block_size)"),
    "Llama, dynamic": (64, "64 positions"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_up_to_the_limit_the_trainer_and_the_engine_agree_whatever_the_batch(name: str) -> None:
    policy, (limit, _) = make_architecture(name), LIMITED[name]
    assert policy.context_tokens == limit
    rollouts = sample(policy, limit - 11)
    assert max(len(rollout.prompt_ids) + rollout.length for rollout in rollouts) == limit
    for together, rollout in zip(logprobs(policy, rollouts), rollouts, strict=True):
        (alone,) = logprobs(policy, [rollout])
        np.testing.assert_allclose(alone, together, rtol=0, atol=2e-5)
        np.testing.assert_allclose(rollout.sampling_logprobs, together, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LIMITED)
def test_beyond_the_limit_is_refused_with_the_lengths(name: str) -> None:
    policy, (limit, reason) = make_architecture(name), LIMITED[name]
    with pytest.raises(ValueError, match="max_new_tokens") as refusal:
        sample(policy, limit - 10)
    message = str(refusal.value)
    assert message.startswith(
        f"problem 'long': prompt of 11 tokens + max_new_tokens {limit - 10} exceeds the model's {reason}"
    )
    assert message.endswith("; lower --engine.max_new_tokens or drop the problem")
    assert "short" not in message


def test_yarn_has_no_limit_but_its_positions() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    policy = make_policy("Llama", rope_parameters=yarn)
    rollouts = sample(policy, 64 - 11)
    assert policy.packs
    for score, rollout in zip(logprobs(policy, rollouts), rollouts, strict=True):
        np.testing.assert_allclose(rollout.sampling_logprobs, score, rtol=0, atol=1e-4)
