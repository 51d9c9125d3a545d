"""Requests to `/inference/v1/generate` of vLLM and its answers: token ids in; token ids and logprobs out.

A rollout's random numbers come from a seed of its own, which depends on the request's seed, the number of its problem
and its own number, and on nothing else.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rloop_lightning.errors import EngineError, NonFiniteError
from rloop_lightning.seeds import derive_seed
from rloop_lightning.types import SamplingParams

PATH = "/inference/v1/generate"

_ABSENT = -9999.0  # vLLM's logprob of a token that has none


@dataclass(frozen=True)
class Completion:
    """What a server sampled.

    Args:
        tokens: [T] int64, including the one that ends it.
        logprobs: [T] float32, nats.
        reason: vLLM's finish reason.
        experts: [S + T - 1, layers, top_k], if the server reports them.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    reason: str
    experts: np.ndarray | None


def rollout_seed(seed: int, problem: int) -> int:
    """The seed of a problem's first rollout; rollout g has this plus g."""
    return derive_seed(seed, "vllm", problem) >> 1  # room for the sum in 63 bits


def request_body(
    prompt: Sequence[int], n: int, seed: int, sampling: SamplingParams, stop_ids: Iterable[int], texts: Sequence[str]
) -> dict[str, Any]:
    """The JSON that asks for n rollouts of a prompt.

    Args:
        seed: of the first of them.
        stop_ids: the tokens that end a completion.
        texts: the texts that do.
    """
    return {
        "token_ids": list(prompt),
        "sampling_params": {
            "n": n,
            "seed": seed,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "logprobs": 0,  # of the sampled token alone
            "ignore_eos": True,  # the stop tokens include it
            "stop_token_ids": sorted(stop_ids),
            "stop": list(texts),
            "detokenize": bool(texts),
        },
    }


def completions(answer: Mapping[str, Any]) -> list[Completion]:
    """The completions of an answer, in the order of their seeds.

    Raises:
        EngineError: the answer is not one that this version of vLLM gives.
        NonFiniteError: a logprob is NaN or infinite.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        found = [_completion(choice) for choice in choices]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"vLLM's answer can't be read ({type(error).__name__}: {error})") from error
    for one in found:
        if not np.isfinite(one.logprobs).all() or (one.logprobs <= _ABSENT).any():
            raise NonFiniteError("the policy's logits are NaN or infinite, as vLLM computes them")
    return found


def _completion(choice: Mapping[str, Any]) -> Completion:
    tokens = np.array(choice["token_ids"], dtype=np.int64)
    logprobs = np.array([token["logprob"] for token in choice["logprobs"]["content"]], dtype=np.float32)
    if len(tokens) != len(logprobs) or not len(tokens):
        raise ValueError(f"{len(tokens)} tokens with {len(logprobs)} logprobs")
    return Completion(tokens, logprobs, choice["finish_reason"], _experts(choice.get("routed_experts")))


def _experts(encoded: str | None) -> np.ndarray | None:
    """Routed experts as `Rollout` holds them: uint8, or int16 for more than 256 experts."""
    if encoded is None:
        return None
    experts = np.load(io.BytesIO(base64.b64decode(encoded)), allow_pickle=False)
    return experts if experts.dtype == np.uint8 else experts.astype(np.int16)
