"""Requests, answers, seeds and fingerprints of VLLMEngine, by hand. No vLLM is needed."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rloop_lightning.engines.vllm.protocol import Completion, completions, request_body, rollout_seed
from rloop_lightning.engines.vllm.truth import gap
from rloop_lightning.engines.vllm.weights import fingerprint
from rloop_lightning.errors import EngineError, NonFiniteError
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import SamplingParams

MakePolicy = Callable[..., Policy]


def choice(index: int, tokens: list[int], logprobs: list[float], **more: object) -> dict[str, object]:
    content = [{"token": f"token_id:{token}", "logprob": value} for token, value in zip(tokens, logprobs, strict=True)]
    return {
        "index": index,
        "token_ids": tokens,
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "routed_experts": None,
        **more,
    }


def test_answers_are_read_in_the_order_of_their_seeds() -> None:
    experts = io.BytesIO()
    np.save(experts, np.arange(8, dtype=np.int32).reshape(2, 2, 2))
    encoded = base64.b64encode(experts.getvalue()).decode()
    value = float(np.float32(-0.1))
    answer = {"choices": [choice(1, [7, 1], [-1.5, -2.0]), choice(0, [3], [value], routed_experts=encoded)]}
    first, second = completions(json.loads(json.dumps(answer)))
    assert first.tokens.tolist() == [3]
    assert first.logprobs[0] == np.float32(-0.1)  # bit for bit
    assert first.experts is not None
    assert first.experts.dtype == np.int16
    assert first.experts.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert second.tokens.tolist() == [7, 1]
    assert second.tokens.dtype == np.int64
    assert second.experts is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"choices": [choice(0, [3], [float("nan")])]}, NonFiniteError),
        ({"choices": [choice(0, [3], [-9999.0])]}, NonFiniteError),  # what vLLM says of a token without a logprob
        ({"choices": [choice(0, [], [])]}, EngineError),
        ({"choices": [{**choice(0, [3], [-1.0]), "token_ids": [3, 4]}]}, EngineError),
        ({"choices": [{"index": 0}]}, EngineError),
        ({"error": "?"}, EngineError),
        ([], EngineError),
    ],
)
def test_an_answer_without_what_training_needs(answer: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        completions(answer)  # type: ignore[arg-type]  # what a server may answer


def test_each_problem_has_seeds_of_its_own() -> None:
    """Of 64 bits, the last of which vLLM counts up from rollout to rollout."""
    starts = np.array([rollout_seed(seed, problem) for seed in (0, 1, 2**62) for problem in range(200)])
    assert len(set(starts.tolist())) == 600
    assert starts.max() + 2**32 < 2**63
    assert np.diff(np.sort(starts)).min() > 2**20


def test_requests_ask_for_the_sampling_and_nothing_else() -> None:
    sampling = SamplingParams(9, temperature=0.7, top_k=5, top_p=0.9)
    body = request_body([4, 5], 3, 17, sampling, {1, 0}, ("</a>",))
    assert body == {
        "token_ids": [4, 5],
        "sampling_params": {
            "n": 3,
            "seed": 17,
            "max_tokens": 9,
            "temperature": 0.7,
            "top_k": 5,
            "top_p": 0.9,
            "logprobs": 0,
            "ignore_eos": True,
            "stop_token_ids": [0, 1],
            "stop": ["</a>"],
            "detokenize": True,
        },
    }
    assert request_body([4], 1, 0, sampling, (), ())["sampling_params"]["detokenize"] is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fingerprints_differ_with_any_bit(make_policy: MakePolicy, dtype: torch.dtype) -> None:
    policy = make_policy()
    policy.model.to(dtype)
    before = fingerprint(policy)
    assert fingerprint(policy) == before
    integers = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    weight = policy.model.lm_head.weight.detach().view(integers)
    original = weight.clone()
    seen = {before}
    for changes in ([(0, 1)], [(0, 1), (1, -1)], [(0, -1), (1, 1)], [(3, 1), (40, -1)]):  # units in the last place
        for place, step in changes:
            weight.view(-1)[place] += step
        seen.add(fingerprint(policy))
        weight.copy_(original)
    first, last = weight[0].clone(), weight[-1].clone()
    weight[0], weight[-1] = last, first
    seen.add(fingerprint(policy))
    assert len(seen) == 6
    weight.copy_(original)
    assert fingerprint(policy) == before


def test_the_gap_is_between_the_servers_logprobs_and_the_trainers(make_policy: MakePolicy) -> None:
    policy = make_policy()
    prompts = [[5, 6, 7], [8]]
    tokens = torch.tensor([[9, 10], [11, 12], [13, 14], [15, 16]])
    found = []
    versions = np.zeros(2, np.int32)
    for number, row in enumerate(tokens):
        ids = torch.tensor([*prompts[number // 2], *row.tolist()])[None]
        with torch.no_grad():
            logprobs = policy.model(ids).logits[0].log_softmax(-1)
        own = logprobs[-3:-1].gather(-1, row[:, None]).squeeze(-1).numpy().astype(np.float32)
        found.append(Completion(row.numpy(), own, "length", None, versions))
    equal = gap(policy, prompts, found)
    assert equal.largest < 1e-5
    apart = found[2].logprobs + np.array([0.5, 0], dtype=np.float32)
    found[2] = Completion(found[2].tokens, apart, "length", None, versions)
    parted = gap(policy, prompts, found)
    assert parted.largest == pytest.approx(0.5, abs=1e-5)
    assert parted.mean == pytest.approx(0.5 / 8, abs=1e-5)
