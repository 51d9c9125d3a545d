"""What an engine tells while it generates: its progress, and logits that are not finite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.errors import NonFiniteError
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem

MakePolicy = Callable[..., Policy]
PROBLEMS = [Problem(text, text, "") for text in ("abc", "x", "hello1", "zz9")]


@pytest.mark.parametrize("max_rows", [3, 8, 100])
def test_progress_counts_every_token_and_every_rollout_once(make_policy: MakePolicy, max_rows: int) -> None:
    engine = TorchEngine(max_new_tokens=24, max_rows=max_rows)
    engine.bind(make_policy())
    told: list[tuple[int, int]] = []
    engine.on_progress = lambda tokens, rollouts: told.append((tokens, rollouts))
    rollouts = engine.generate(PROBLEMS, 6, engine.sampling(0))
    assert sum(tokens for tokens, _ in told) == sum(rollout.length for rollout in rollouts)
    assert sum(count for _, count in told) == len(rollouts) == 24
    assert len({rollout.length for rollout in rollouts}) > 5
    assert len(told) > 20  # in between, not at the end alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error_of_their_own(make_policy: MakePolicy, temperature: float) -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("nan")
    engine = TorchEngine(max_new_tokens=4, temperature=temperature)
    engine.bind(policy)
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite, in 8 of 8 rollouts"):
        engine.generate(PROBLEMS, 2, engine.sampling(0))


def test_logits_that_become_nan_in_the_middle_of_a_completion(make_policy: MakePolicy) -> None:
    """The embedding of one token is NaN: rollouts that draw it have NaN logits from there on."""
    policy = make_policy(tie_word_embeddings=False)
    engine = TorchEngine(max_new_tokens=24)
    engine.bind(policy)
    first = engine.generate(PROBLEMS, 6, engine.sampling(0))
    token = next(int(rollout.completion_ids[2]) for rollout in first if rollout.length > 6)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[token] = float("nan")
    prompts = [problem for problem in PROBLEMS if token not in policy.encode(problem.prompt)]
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite"):
        engine.generate(prompts, 6, engine.sampling(0))
