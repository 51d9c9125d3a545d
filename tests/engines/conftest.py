"""Tiny random policies, made in memory: `make_policy("qwen2")`."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from rloop_lightning.engines import torch_engine
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.policy import Policy

ALPHABET = string.ascii_lowercase + string.digits

# A large initializer range makes different prompts give different completions, some of which stop early.
COMMON = {
    "vocab_size": len(ALPHABET) + 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}),
    "qwen2_sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "llama": ("Llama", {}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per character; 0 pads, 1 ends."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *ALPHABET])}
    characters = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer = Split(Regex("."), "isolated")
    characters.decoder = Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., Policy]:
    def make(architecture: str = "qwen2", seed: int = 6, **overrides: Any) -> Policy:
        name, extra = ARCHITECTURES[architecture]
        config = getattr(transformers, f"{name}Config")(**{**COMMON, **extra, **overrides})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = getattr(transformers, f"{name}ForCausalLM")(config)
        return Policy(model, tokenizer())

    return make


# An engine joins the contract's tests (test_contract.py) with a line here.
VLLM_PYTHON = os.environ.get("RLOOP_VLLM_PYTHON", "")  # `make test-vllm` sets it
ENGINES = ["vllm"] if VLLM_PYTHON else ["torch"]


def made(name: str) -> RolloutEngine:
    if name == "torch":
        return TorchEngine(max_rows=16)
    from rloop_lightning.engines.vllm.engine import VLLMEngine

    return VLLMEngine(python=VLLM_PYTHON, max_rows=16, cpu_cache_gib=0.25)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[RolloutEngine]:
    """Each engine once for all tests of a module: one that starts a process needs seconds for it."""
    engine = made(request.param)
    yield engine
    engine.close()


@pytest.fixture
def rows_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU too, as on a GPU."""
    monkeypatch.setitem(torch_engine._BATCHES_PER_PART, "cpu", 4)
