"""Greedy completions of many architectures, against the model's own `generate`, one prompt at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import PACKED, make_architecture, make_architecture_model

from rloop_lightning.batching import collate
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.types import Problem

PROBLEMS = [Problem(f"p{i}", prompt, "") for i, prompt in enumerate(["3+4", "(7-2)*3=", "9", "12/6+1=", "8*"])]
NEW_TOKENS = 16


@pytest.mark.parametrize("name", [*PACKED, "Qwen3-Next"])
def test_greedy_completions_and_logprobs_are_the_models_own(name: str) -> None:
    policy, untouched = make_architecture(name), make_architecture_model(name).eval()
    engine = TorchEngine(max_new_tokens=NEW_TOKENS, temperature=0.0)
    engine.bind(policy)
    rollouts = engine.generate(PROBLEMS, 1, engine.sampling(seed=0))
    for rollout in rollouts:
        ids = torch.tensor(rollout.prompt_ids)[None]
        expected = untouched.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)[0, ids.shape[1] :]
        assert rollout.completion_ids.tolist() == expected.tolist()
    assert len({tuple(rollout.completion_ids) for rollout in rollouts}) > 1
    with torch.no_grad():
        logprobs = policy.logprobs(collate(rollouts, [0.0] * len(rollouts))).logprobs
    for row, rollout in zip(logprobs, rollouts, strict=True):
        np.testing.assert_allclose(row[: rollout.length], rollout.sampling_logprobs, rtol=0, atol=1e-4)
