"""A policy from a store, and an adapter on it, which names the URL of its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch

from rloop_lightning.model.config import PolicyConfig, embedded_model_path, model_source, policy_faults
from rloop_lightning.model.lora import LoraSettings
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.fetched import fetched

URL = "memory://test_models/model"


def test_an_adapter_on_a_model_of_a_store_finds_it_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").put(f"{embedded_model_path()}/", "/test_models/model/", recursive=True)
    monkeypatch.setenv("RLOOP_CACHE", str(tmp_path / "first"))
    fetched.cache_clear()
    config = PolicyConfig(model=URL, lora=LoraSettings(rank=2))
    assert policy_faults(config) == []
    policy = Policy.load(config)
    policy.source = model_source(URL)
    policy.save(tmp_path / "adapter")
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == URL
    shutil.rmtree(tmp_path / "first")
    monkeypatch.setenv("RLOOP_CACHE", str(tmp_path / "second"))
    fetched.cache_clear()
    loaded = Policy.load(PolicyConfig(model=str(tmp_path / "adapter")))
    ours, theirs = (one.model.state_dict() for one in (policy, loaded))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_model_that_is_not_there_is_a_fault_of_its_option() -> None:
    (fault,) = policy_faults(PolicyConfig(model="memory://test_models/none"))
    assert fault.startswith("--policy.model memory://test_models/none: can't read the store: no such object, folder or")
