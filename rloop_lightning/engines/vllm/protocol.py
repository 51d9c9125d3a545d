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
from rloop_lightning.system.terminal import one_line
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
        versions: [T] int32, of the weights that sampled each token.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    reason: str
    experts: np.ndarray | None
    versions: np.ndarray


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


class Streamed:
    """Puts the events of a streamed answer together."""

    def __init__(self) -> None:
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, event: Mapping[str, Any], version: int) -> tuple[int, int]:
        """Take an event in. Returns the tokens that it brings and the completions that it ends.

        Args:
            version: of the weights that sampled its tokens.

        Raises:
            EngineError: it tells of an error, or is not one that this version of vLLM sends.
        """
        if "error" in event:
            raise EngineError(f"vLLM broke off an answer: {one_line(str(event['error']), limit=300)}")
        tokens, ended = 0, 0
        try:
            for part in event["choices"]:
                new = {"index": part["index"], "token_ids": [], "logprobs": {"content": []}, "versions": []}
                choice = self._choices.setdefault(part["index"], new)
                ids = part["token_ids"] or []
                choice["token_ids"] += ids
                choice["logprobs"]["content"] += part["logprobs"]["content"]
                choice["versions"] += [version] * len(ids)
                choice.update({name: part[name] for name in ("finish_reason", "routed_experts") if part[name]})
                tokens += len(ids)
                ended += part["finish_reason"] is not None
        except (KeyError, TypeError) as error:
            raise _unreadable(error) from error
        return tokens, ended

    def answer(self) -> dict[str, Any]:
        """The answer as it would be without streaming, with the version of each token."""
        return {"choices": list(self._choices.values())}


def completions(answer: Mapping[str, Any], version: int = 0) -> list[Completion]:
    """The completions of an answer, in the order of their seeds.

    Args:
        version: of the weights that sampled them, unless the answer says it for each token.

    Raises:
        EngineError: the answer is not one that this version of vLLM gives.
        NonFiniteError: a logprob is NaN or infinite.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        found = [_completion(choice, version) for choice in choices]
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(error) from error
    for one in found:
        if not np.isfinite(one.logprobs).all() or (one.logprobs <= _ABSENT).any():
            raise NonFiniteError("the policy's logits are NaN or infinite, as vLLM computes them")
    return found


def raise_if_not_finite(refusal: EngineError) -> None:
    """Raise NonFiniteError if a server refuses to answer because a logprob is NaN or infinite."""
    if "JSON compliant" in str(refusal):  # what Python's JSON says of NaN
        raise NonFiniteError("the policy's logits are NaN or infinite, as vLLM computes them") from refusal


def _unreadable(error: Exception) -> EngineError:
    return EngineError(f"vLLM's answer can't be read ({type(error).__name__}: {error})")


def _completion(choice: Mapping[str, Any], version: int) -> Completion:
    tokens = np.array(choice["token_ids"], dtype=np.int64)
    logprobs = np.array([token["logprob"] for token in choice["logprobs"]["content"]], dtype=np.float32)
    if len(tokens) != len(logprobs) or not len(tokens):
        raise ValueError(f"{len(tokens)} tokens with {len(logprobs)} logprobs")
    versions = np.array(choice.get("versions", [version] * len(tokens)), dtype=np.int32)
    return Completion(tokens, logprobs, choice["finish_reason"], _experts(choice.get("routed_experts")), versions)


def _experts(encoded: str | None) -> np.ndarray | None:
    """Routed experts as `Rollout` holds them: uint8, or int16 for more than 256 experts."""
    if encoded is None:
        return None
    experts = np.load(io.BytesIO(base64.b64decode(encoded)), allow_pickle=False)
    return experts if experts.dtype == np.uint8 else experts.astype(np.int16)
