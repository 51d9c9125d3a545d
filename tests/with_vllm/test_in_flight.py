"""Weights that reach vLLM in the middle of completions. One process for all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import make_tokenizer

from rloop_lightning.batching import collate
from rloop_lightning.engines.vllm.engine import VLLMEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout, SamplingParams

PROBLEMS = [Problem(id=f"p{i}", prompt=prompt, answer="") for i, prompt in enumerate(["7*3=", "1", "12+4=16", "(2"])]
SAMPLING = SamplingParams(max_new_tokens=48)
PUSHES = 3


@pytest.fixture
def streams(engine: VLLMEngine) -> Iterator[VLLMEngine]:
    engine.updates_in_flight = True
    yield engine
    engine.updates_in_flight = False


def change(policy: Policy, seed: int) -> None:
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))


def test_streamed_rollouts_are_the_same(engine: VLLMEngine, policy: Policy) -> None:
    engine.bind(policy)
    for sampling in (SAMPLING, replace(SAMPLING, temperature=0.0), replace(SAMPLING, seed=3, stop=("1",))):
        found = []
        for engine.updates_in_flight in (True, False):
            rollouts = engine.generate(PROBLEMS, 4, sampling)
            found.append([(one.completion_ids.tolist(), one.text, one.finish_reason) for one in rollouts])
        assert found[0] == found[1]


def test_tokens_have_the_logprobs_of_the_weights_that_their_version_names(streams: VLLMEngine, model) -> None:
    """More rollouts than vLLM decodes at once, so that some wait, some are in the middle and some come later."""
    policy = Policy(model(seed=5), make_tokenizer())
    streams.bind(policy)
    streams.sync()
    weights = {streams.version: {name: weight.clone() for name, weight in policy.model.state_dict().items()}}
    arrived: list[int] = []
    streams.on_progress = lambda tokens, rollouts: arrived.append(tokens)
    rollouts: list[Rollout] = []
    thread = threading.Thread(target=lambda: rollouts.extend(streams.generate(PROBLEMS, 24, SAMPLING)))
    thread.start()
    for push in range(PUSHES):
        while sum(arrived) < 300 * (push + 1) and thread.is_alive():
            time.sleep(0.01)
        change(policy, push)
        streams.sync()
        weights[streams.version] = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    thread.join()
    streams.on_progress = None
    assert len(rollouts) == 96
    mixed = [rollout for rollout in rollouts if len(set(rollout.versions.tolist())) > 1]
    assert len(mixed) >= 16
    batch = collate(rollouts, np.zeros(len(rollouts)))
    versions = torch.zeros(batch.completion_mask.shape, dtype=torch.long)
    for row, rollout in enumerate(rollouts):
        assert rollout.versions.tolist() == sorted(rollout.versions.tolist())
        versions[row, : rollout.length] = torch.from_numpy(rollout.versions)
    assert set(versions[batch.completion_mask].tolist()) == set(weights)
    for version, state in weights.items():
        policy.model.load_state_dict(state)
        gap = (policy.scores_no_grad(batch).logprobs - batch.sampling_logprobs).abs()
        assert float(gap[batch.completion_mask & (versions == version)].max()) < 1e-4
        assert float(gap[batch.completion_mask & (versions != version)].median()) > 1e-2


def test_a_cancelled_generation_leaves_the_server_free(streams: VLLMEngine, policy: Policy) -> None:
    streams.bind(policy)
    expected = [rollout.completion_ids.tolist() for rollout in streams.generate(PROBLEMS, 2, SAMPLING)]
    streams.begin(PROBLEMS, 200, SAMPLING)
    streams.cancel()
    again = [rollout.completion_ids.tolist() for rollout in streams.generate(PROBLEMS, 2, SAMPLING)]
    assert again == expected
