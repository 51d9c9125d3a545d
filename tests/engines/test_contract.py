"""What every rollout engine does (`RolloutEngine`), for each of conftest.py's ENGINES.

The sampling is given to each call, so that an engine is made once. `make test-vllm` runs them over VLLMEngine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from moe import TOP_K, make_moe_policy, rows_of
from sampled import completions, forward_logits, slow_distribution

from rloop_lightning.batching import collate
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.errors import NonFiniteError
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout, SamplingParams

MakePolicy = Callable[..., Policy]

PROMPTS = ["a", "xy", "b7c", "q", "rstuvw9", "3mnop", "zz", "hello"]
PROBLEMS = [Problem(id=f"p{i}", prompt=prompt, answer="") for i, prompt in enumerate(PROMPTS)]
N = 4
SAMPLING = SamplingParams(max_new_tokens=24)
# Heads of 32, which vLLM's CPU build takes.
SHAPE = {"hidden_size": 128, "initializer_range": 0.15}


@pytest.fixture(scope="module")
def policy(make_policy: MakePolicy) -> Policy:
    return make_policy("qwen2", **SHAPE)


@pytest.fixture
def bound(engine: RolloutEngine, policy: Policy) -> RolloutEngine:
    engine.bind(policy)
    return synced(engine)


def synced(engine: RolloutEngine) -> RolloutEngine:
    engine.sync()
    return engine


def bits(rollouts: Sequence[Rollout]) -> list[tuple[str, bytes, str]]:
    return [(one.problem_id, one.completion_ids.tobytes(), one.finish_reason) for one in rollouts]


def own_logprobs(policy: Policy, rollout: Rollout, temperature: float = 1.0) -> np.ndarray:
    logprobs = (forward_logits(policy, rollout) / (temperature or 1.0)).log_softmax(-1)
    return logprobs[torch.arange(rollout.length), torch.tensor(rollout.completion_ids)].numpy()


def test_rollouts_are_problem_major_and_complete(bound: RolloutEngine, policy: Policy) -> None:
    rollouts = bound.generate(PROBLEMS, 3, SAMPLING)
    assert [rollout.problem_id for rollout in rollouts] == [problem.id for problem in PROBLEMS for _ in range(3)]
    for number, rollout in enumerate(rollouts):
        assert rollout.prompt_ids.tolist() == policy.encode(PROMPTS[number // 3])
        assert rollout.text == policy.decode([rollout.completion_ids.tolist()])[0]
        assert rollout.completion_ids.dtype == rollout.prompt_ids.dtype == np.int64
        assert rollout.sampling_logprobs.dtype == np.float32
        assert len(rollout.sampling_logprobs) == rollout.length


def test_a_completion_ends_with_its_first_stop_token_or_at_the_limit(bound: RolloutEngine, policy: Policy) -> None:
    rollouts = bound.generate(PROBLEMS, 16, replace(SAMPLING, temperature=1.5))
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        stops = np.isin(rollout.completion_ids, list(policy.stop_token_ids))
        if rollout.finish_reason == "stop":
            assert stops.nonzero()[0].tolist() == [rollout.length - 1]
            assert rollout.sampling_logprobs[-1] < 0
            assert "<eos>" not in rollout.text
        else:
            assert not stops.any()
            assert rollout.length == SAMPLING.max_new_tokens


def test_greedy_equals_generate(bound: RolloutEngine, policy: Policy) -> None:
    for rollout in bound.generate(PROBLEMS, 1, replace(SAMPLING, temperature=0.0)):
        ids = torch.tensor(rollout.prompt_ids)[None]
        expected = policy.model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
        assert rollout.completion_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.5])
def test_logprobs_equal_a_full_forward(bound: RolloutEngine, policy: Policy, temperature: float) -> None:
    for rollout in bound.generate(PROBLEMS, 3, replace(SAMPLING, temperature=temperature)):
        assert rollout.sampling_logprobs == pytest.approx(own_logprobs(policy, rollout, temperature), abs=1e-4)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.8), (7, 0.6), (1, 1.0)])
def test_logprobs_are_those_of_the_restricted_distribution(
    bound: RolloutEngine, policy: Policy, top_k: int, top_p: float
) -> None:
    sampling = SamplingParams(8, temperature=0.7, top_k=top_k, top_p=top_p, report_kept_tokens=False)
    for rollout in bound.generate(PROBLEMS, 2, sampling):
        assert rollout.kept_tokens is None
        for logits, token, logprob in zip(
            forward_logits(policy, rollout), rollout.completion_ids, rollout.sampling_logprobs, strict=True
        ):
            assert logprob == pytest.approx(math.log(slow_distribution(logits, 0.7, top_k, top_p)[token]), abs=1e-4)


def test_the_same_seed_gives_the_same_rollouts_and_another_seed_others(bound: RolloutEngine) -> None:
    first, again, other = (bound.generate(PROBLEMS, N, replace(SAMPLING, seed=seed)) for seed in (3, 3, 4))
    assert bits(first) == bits(again)
    for one, twin in zip(first, again, strict=True):
        np.testing.assert_allclose(one.sampling_logprobs, twin.sampling_logprobs, rtol=0, atol=1e-4)
    assert bits(first) != bits(other)


def test_a_rollout_depends_on_its_place_and_not_on_what_follows(bound: RolloutEngine) -> None:
    few, all_of_them = bound.generate(PROBLEMS[:3], N, SAMPLING), bound.generate(PROBLEMS, N, SAMPLING)
    assert bits(few) == bits(all_of_them[: 3 * N])


def test_rollouts_of_one_prompt_differ(bound: RolloutEngine) -> None:
    twins = [Problem(id=name, prompt="same", answer="") for name in "ab"]
    rollouts = bound.generate(twins, 20, replace(SAMPLING, temperature=1.5))  # more than an engine decodes at once
    assert len({tuple(ids[:6]) for ids in completions(rollouts)}) > 30


def test_parts_are_the_rollouts_of_one_request_from_any_problem_on(bound: RolloutEngine) -> None:
    whole = bits(bound.generate(PROBLEMS, N, SAMPLING))
    for done in (0, 3, len(PROBLEMS)):
        parts = list(bound.generate_parts(PROBLEMS, N, SAMPLING, done))
        assert [row for part in parts for row in bits(part)] == whole[done * N :]
        assert all(len(part) % N == 0 for part in parts)


def test_progress_counts_every_token_and_every_rollout_once(bound: RolloutEngine) -> None:
    told: list[tuple[int, int]] = []
    bound.on_progress = lambda tokens, rollouts: told.append((tokens, rollouts))
    try:
        rollouts = bound.generate(PROBLEMS, N, SAMPLING)
    finally:
        bound.on_progress = None
    assert sum(tokens for tokens, _ in told) == sum(rollout.length for rollout in rollouts)
    assert sum(count for _, count in told) == len(rollouts)
    assert len(told) > 3  # in between, not at the end alone


def test_the_global_random_state_is_neither_read_nor_changed(bound: RolloutEngine) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = bound.generate(PROBLEMS, N, SAMPLING)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert bits(bound.generate(PROBLEMS, N, SAMPLING)) == bits(first)


def test_a_completion_ends_with_the_token_that_completes_a_stop(bound: RolloutEngine, policy: Policy) -> None:
    free = bound.generate(PROBLEMS, N, SAMPLING)
    stop = next(one.text[3:5] for one in free if len(one.text) > 8)  # across a border of tokens
    stopped = bound.generate(PROBLEMS, N, replace(SAMPLING, stop=(stop, "<pad>")))
    pad = policy.tokenizer.pad_token_id
    assert sum(stop in one.text for one in stopped) > 0
    for one, twin in zip(stopped, free, strict=True):
        ids = twin.completion_ids.tolist()
        ends = [
            length
            for length in range(1, twin.length + 1)
            if ids[length - 1] in (pad, 1) or stop in policy.decode([ids[:length]])[0]
        ]
        assert one.completion_ids.tolist() == ids[: ends[0] if ends else twin.length]
        assert one.finish_reason == ("stop" if ends else "length")


def test_prompts_that_do_not_fit_are_named(bound: RolloutEngine) -> None:
    problems = [
        Problem(id="fits", prompt="a" * 104, answer=""),
        Problem(id="too-long", prompt="a" * 105, answer=""),
        Problem(id="empty", prompt="", answer=""),
    ]
    with pytest.raises(ValueError, match="'too-long'") as error:
        bound.generate(problems, 1, SAMPLING)
    assert "'empty'" in str(error.value)
    assert "'fits'" not in str(error.value)
    assert len(bound.generate(problems[:1], 1, SAMPLING)) == 1


def test_after_sync_rollouts_are_of_the_changed_weights(engine: RolloutEngine, make_policy: MakePolicy) -> None:
    policy = make_policy("qwen2", **SHAPE)
    engine.bind(policy)
    engine.sync()
    before = engine.generate(PROBLEMS, N, SAMPLING)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.02)
    for _ in range(3):
        batch = collate(before, [1.0] * len(before))
        (-policy.logprobs(batch).logprobs.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        engine.sync()
        after = engine.generate(PROBLEMS, N, SAMPLING)
        for rollout in after:
            assert rollout.sampling_logprobs == pytest.approx(own_logprobs(policy, rollout), abs=1e-4)
        assert bits(after) != bits(before)
        before = after


def test_weights_that_are_nan_are_an_error_of_their_own(engine: RolloutEngine, make_policy: MakePolicy) -> None:
    policy = make_policy("qwen2", **SHAPE)
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("nan")
    engine.bind(policy)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        synced(engine).generate(PROBLEMS, 2, SAMPLING)


def test_reported_experts_are_those_of_the_training_forward(engine: RolloutEngine) -> None:
    """Routing replay R3. Rollouts of a prompt report its experts as well, though the engine may compute it once."""
    if not engine.reports_routed_experts:
        pytest.skip("the engine does not report experts")
    policy = make_moe_policy("Qwen3Moe", "r3", dtype=torch.float32, hidden_size=128, head_dim=32)
    engine.bind(policy)
    engine.sync()
    problems = [Problem(id=f"p{i}", prompt=prompt, answer="") for i, prompt in enumerate(["7*3=", "1", "12+4=16"])]
    rollouts = engine.generate(problems, 6, SAMPLING)
    assert policy.routing is not None
    batch = policy.routing.admitted(collate(rollouts, [0.0] * len(rollouts)))
    with torch.no_grad(), policy.routing.forward_pass(batch.input_ids.numel()) as passed:
        policy.model(batch.input_ids, use_cache=False)
    chosen = passed.chosen.unflatten(0, batch.input_ids.shape)
    for rollout, expected in zip(rollouts, rows_of(batch, chosen), strict=True):
        assert rollout.routed_experts is not None
        assert rollout.routed_experts.shape[1:] == (policy.routing.layers, TOP_K)
        assert rollout.routed_experts.tolist() == expected.tolist()
        assert rollout.sampling_logprobs == pytest.approx(own_logprobs(policy, rollout), abs=1e-4)
    unreported = engine.generate(problems, 2, replace(SAMPLING, report_routed_experts=False))
    assert all(rollout.routed_experts is None for rollout in unreported)


def test_generate_without_a_policy_is_an_error(engine: RolloutEngine) -> None:
    with pytest.raises(RuntimeError, match="bind"):
        type(engine)().generate(PROBLEMS, 1, SAMPLING)
