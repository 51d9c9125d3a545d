"""What needs vLLM: `make test-vllm`. The tests share few engines, since each takes seconds to start.

The folder is not named vllm: with `tests` on the path, libraries would take it for the package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_model, make_tokenizer

from rloop_lightning.engines.vllm.engine import VLLMEngine
from rloop_lightning.model.policy import Policy

VLLM_PYTHON = os.environ.get("RLOOP_VLLM_PYTHON", "")
# `make test` has no vLLM. It runs what VLLMEngine says of that (tests/engines/test_vllm_faults.py).
collect_ignore_glob = [] if VLLM_PYTHON else ["test_*.py"]


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter that has vLLM."""
    return VLLM_PYTHON


@pytest.fixture(scope="module")
def engine(python: str) -> Iterator[VLLMEngine]:
    """One process for all tests of a module."""
    engine = VLLMEngine(python=python, max_rows=16, cpu_cache_gib=0.25)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def model() -> Callable[..., Any]:
    """Makes models of one shape that vLLM's CPU build takes, with tied embeddings."""

    def make(architecture: str = "Qwen2", **changes: Any) -> Any:
        shape = {"hidden_size": 128, "head_dim": 32, "tie_word_embeddings": True}
        return make_model(architecture, **{"dtype": torch.float32, **shape, **changes}).eval()

    return make


@pytest.fixture(scope="session")
def policy(model: Callable[..., Any]) -> Policy:
    return Policy(model(), make_tokenizer())


@pytest.fixture(scope="session")
def policy_folder(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy of another shape than the embedded one."""
    folder = tmp_path_factory.mktemp("policy") / "policy"
    policy.save(folder)
    return folder
