"""Weights that reach vLLM, versions, and what is said of weights that do not. One process for all of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_tokenizer

from rloop_lightning.batching import collate
from rloop_lightning.engines.vllm import connection as connections
from rloop_lightning.engines.vllm.engine import VLLMEngine
from rloop_lightning.engines.vllm.weights import NamedWeights
from rloop_lightning.errors import EngineError
from rloop_lightning.model.lora import LoraSettings, add_adapter
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout, SamplingParams

PROBLEMS = [Problem(id=f"p{i}", prompt=prompt, answer="") for i, prompt in enumerate(["7*3=", "1", "12+4=16", "(2"])]
SAMPLING = SamplingParams(max_new_tokens=16)
N = 4


def largest_gap(policy: Policy, rollouts: Sequence[Rollout]) -> float:
    """Between vLLM's logprobs and the trainer's, nats."""
    batch = collate(rollouts, np.zeros(len(rollouts)))
    return float((policy.scores_no_grad(batch).logprobs - batch.sampling_logprobs).abs().max())


def train(policy: Policy, rollouts: Sequence[Rollout], lr: float = 0.01) -> None:
    """One optimizer step on these rollouts."""
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr)
    policy.logprobs(collate(rollouts, np.ones(len(rollouts)))).logprobs.sum().neg().backward()
    optimizer.step()


def test_tied_weights_after_each_of_three_updates(engine: VLLMEngine, policy: Policy) -> None:
    """vLLM's CPU build would keep the packed weight of a tied head."""
    engine.bind(policy)
    rollouts = engine.generate(PROBLEMS, N, SAMPLING)
    first = engine.version
    for step in range(3):
        assert largest_gap(policy, rollouts) < 1e-4
        assert all(set(rollout.versions.tolist()) == {first + step} for rollout in rollouts)
        train(policy, rollouts)
        stale = largest_gap(policy, rollouts)
        assert stale > 1e-2  # what a lost push would show
        engine.sync()
        rollouts = engine.generate(PROBLEMS, N, SAMPLING)
    assert engine.version == first + 3


def test_weights_are_pushed_only_when_they_have_changed(engine: VLLMEngine, policy: Policy) -> None:
    engine.bind(policy)
    engine.sync()
    engine.generate(PROBLEMS, 1, SAMPLING)
    version = engine.version
    engine.sync()
    engine.generate(PROBLEMS, 1, SAMPLING)
    assert engine.version == version
    with torch.no_grad():
        weight = policy.model.model.norm.weight
        weight[0] = torch.nextafter(weight[0], weight.new_tensor(9.0))  # by one bit
    engine.sync()
    assert engine.version == version + 1


def test_an_adapter_arrives_merged(engine: VLLMEngine, model: Callable[..., Any]) -> None:
    base = model(seed=3)
    policy = Policy(base, make_tokenizer(), adapter=add_adapter(base, LoraSettings(rank=4, alpha=8)))
    engine.bind(policy)
    rollouts = engine.generate(PROBLEMS, N, SAMPLING)
    for _ in range(2):
        assert largest_gap(policy, rollouts) < 1e-4
        train(policy, rollouts, lr=0.05)
        assert largest_gap(policy, rollouts) > 1e-2
        engine.sync()
        rollouts = engine.generate(PROBLEMS, N, SAMPLING)
    with policy.adapter.off():
        assert largest_gap(policy, rollouts) > 1e-2


def test_rollouts_in_progress_are_finished_with_the_weights_that_began_them(engine: VLLMEngine, policy: Policy) -> None:
    """The trainer works while vLLM generates; a push waits."""
    engine.bind(policy)
    engine.sync()
    generation = engine.begin(PROBLEMS, 16, SAMPLING)
    version = engine.version
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    engine.sync()
    assert not generation.running
    rollouts = [rollout for part in engine.results(generation) for rollout in part]
    assert engine.version == version + 1
    assert {int(number) for rollout in rollouts for number in rollout.versions} == {version}
    assert largest_gap(policy, rollouts) > 1e-2
    policy.model.load_state_dict(before)
    assert largest_gap(policy, rollouts) < 1e-4


def test_weights_that_arrive_wrong_stop_the_run(
    engine: VLLMEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutALayer(NamedWeights):
        """One matrix stays what it was before the update."""

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in super().__iter__():
                yield name, weight - 0.05 if name == "model.layers.1.mlp.down_proj.weight" else weight

    engine.bind(policy)
    engine.sync()
    train(policy, engine.generate(PROBLEMS, N, SAMPLING))
    monkeypatch.setattr(connections, "NamedWeights", WithoutALayer)
    with pytest.raises(EngineError, match=r"does not compute with the trainer's weights: after push \d+") as error:
        engine.sync()
    assert "at most 0.001 is rounding; take --engine torch, or raise --engine.max_gap_nats" in str(error.value)


def descendants(process: int) -> list[int]:
    """The processes that a process started, and theirs."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (path / "stat").exists():
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def test_an_engine_that_is_killed_while_it_generates(engine: VLLMEngine, policy: Policy) -> None:
    """The last test of this process. The next request starts another one."""
    engine.bind(policy)
    expected = [rollout.completion_ids.tolist() for rollout in engine.generate(PROBLEMS, N, SAMPLING)]
    generation = engine.begin(PROBLEMS, 400, SamplingParams(max_new_tokens=50))
    time.sleep(0.5)
    assert generation.running
    assert engine.process_id is not None
    for child in descendants(engine.process_id):
        os.kill(child, signal.SIGKILL)
    with pytest.raises(EngineError, match="vLLM") as error:
        list(engine.results(generation))
    assert "the last lines of its log:" in str(error.value)
    again = engine.generate(PROBLEMS, N, SAMPLING)
    assert [rollout.completion_ids.tolist() for rollout in again] == expected
