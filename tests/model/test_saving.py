"""A policy's folder has the bytes that transformers and safetensors write, without the whole model in memory."""

from __future__ import annotations

import json

import pytest
import torch
from builders import make_policy, weights
from moe import ARCHITECTURES, make_moe_policy
from safetensors.torch import save_file

from rloop_lightning.model import saving
from rloop_lightning.model.safetensors_file import TensorWriter

MODELS = {
    "Qwen2": {},
    "Qwen2 tied": {"tie_word_embeddings": True},
    "Qwen2 bfloat16": {"dtype": torch.bfloat16},
    "GPTNeoX": {},
    **{name: {} for name in ARCHITECTURES},
}


def make(name):
    architecture, settings = name.split()[0], {"dtype": torch.float32, **MODELS[name]}
    if architecture in ARCHITECTURES:
        return make_moe_policy(architecture, "none", **settings)
    return make_policy(architecture, **settings)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if "SUMS" not in path.name}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_what_save_pretrained_writes(tmp_path, name):
    policy = make(name)
    policy.save(tmp_path / "ours")
    policy.model.save_pretrained(tmp_path / "theirs")
    policy.tokenizer.save_pretrained(tmp_path / "theirs")
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")


def test_so_is_one_of_several_files(tmp_path, monkeypatch):
    policy = make("Qwen2 tied")
    monkeypatch.setattr(saving, "_LARGEST_FILE", "20KB")
    policy.save(tmp_path / "ours")
    policy.model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    policy.tokenizer.save_pretrained(tmp_path / "theirs")
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2


def test_the_experts_of_a_layer_may_be_in_several_files(tmp_path, monkeypatch):
    policy = make("Qwen3Moe")
    monkeypatch.setattr(saving, "_LARGEST_FILE", "20KB")
    policy.save(tmp_path / "policy")
    index = json.loads(files(tmp_path / "policy")["model.safetensors.index.json"])
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in policy.parameters())
    assert len({file for name, file in index["weight_map"].items() if "layers.0.mlp.experts" in name}) > 1
    other = make("Qwen3Moe")
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    other.load_weights(tmp_path / "policy")
    assert torch.equal(weights(other), weights(policy))


TENSORS = {
    "b": torch.arange(3, dtype=torch.bfloat16),
    "a": torch.arange(4.0).reshape(2, 2).T,
    "ü": torch.tensor(3.0),
    "empty": torch.zeros(0, 3),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "long": torch.arange(2),
    "double": torch.ones(1, dtype=torch.float64),
    "half": torch.ones(1, dtype=torch.float16),
}


def test_tensors_in_any_order_make_the_file_of_safetensors(tmp_path):
    with TensorWriter(tmp_path / "ours", {name: tensor.to("meta") for name, tensor in TENSORS.items()}) as writer:
        for name in reversed(TENSORS):
            writer.write(name, TENSORS[name])
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_tensor_that_does_not_fit_or_is_left_out_is_an_error(tmp_path):
    layout = {"a": torch.empty(2, device="meta")}
    with TensorWriter(tmp_path / "file", layout) as writer:
        with pytest.raises(ValueError, match=r"a is torch.float32 \[3\], not torch.float32 \[2\]"):
            writer.write("a", torch.zeros(3))
        with pytest.raises(KeyError):
            writer.write("b", torch.zeros(2))
    with pytest.raises(RuntimeError, match="not written: a"), TensorWriter(tmp_path / "file", layout):
        pass
