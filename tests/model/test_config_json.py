"""What a model's own files have no say in: code, kernels, other files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bad_models import CONFIG, Spoil, make_good_model, with_values
from guarded import guarded

from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.config_json import IGNORED, without_ignored
from rloop_lightning.model.loading import load_config
from rloop_lightning.model.policy import Policy

KERNEL = "kernels-community/flash-attn"
TOKENIZER_CONFIG = "tokenizer_config.json"

CLAIMS: dict[str, Spoil] = {
    "kernel as attention": with_values(CONFIG, _attn_implementation=KERNEL),
    "kernel as public attention": with_values(CONFIG, attn_implementation=KERNEL),
    "kernel at a commit": with_values(CONFIG, _attn_implementation="acme/kernel@main:attend"),
    "kernels by part": with_values(CONFIG, _attn_implementation={"": KERNEL, "text_config": KERNEL}),
    "kernel inside": with_values(CONFIG, _attn_implementation_internal=KERNEL),
    "flash attention": with_values(CONFIG, _attn_implementation="flash_attention_2"),
    "no text as attention": with_values(CONFIG, _attn_implementation=5),
    "experts": with_values(CONFIG, _experts_implementation="sonicmoe"),
    "public experts": with_values(CONFIG, experts_implementation="acme/experts"),
    "kernels": with_values(CONFIG, use_kernels=True, kernel_config={"kernel_mapping": {"RMSNorm": KERNEL}}),
    "fusion": with_values(CONFIG, fusion_config={"patch_embeddings": True}),
    "ranks": with_values(CONFIG, distributed_config={"tp_size": 2}),
    "code": with_values(CONFIG, auto_map={"AutoConfig": "theirs.C", "AutoModelForCausalLM": "acme/code--theirs.M"}),
    "code of no form": with_values(CONFIG, auto_map="acme/code--theirs.M"),
    "weights elsewhere": with_values(CONFIG, transformers_weights="../weights.safetensors"),
    "config elsewhere": with_values(CONFIG, configuration_files=["config.4.0.0.json"]),
    "another name": with_values(CONFIG, _name_or_path="acme/model", name_or_path="acme/model"),
    "no such architecture": with_values(CONFIG, architectures=["TheirModel"]),
    "code of a tokenizer": with_values(TOKENIZER_CONFIG, auto_map={"AutoTokenizer": ["theirs.T", None]}),
    "code of generation": with_values("generation_config.json", custom_generate="acme/generate"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "good"
    make_good_model(path)
    return path


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[str, Any]:
    """How loading ended where fetching and running code ends it: what the model computes with."""
    # As where the package `kernels` is installed.
    monkeypatch.setattr("transformers.integrations.hub_kernels.is_kernels_available", lambda *_, **__: True)
    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda *_, **__: True)

    def load() -> dict[str, Any]:
        policy = Policy.load(PolicyConfig(model=str(folder), **settings))
        config = policy.model.config
        policy.save(folder.parent / "saved")
        saved = json.loads((folder.parent / "saved" / CONFIG).read_text())
        return {
            "class": f"{type(policy.model).__module__}.{type(policy.model).__qualname__}",
            "attention": config._attn_implementation,
            "experts": config._experts_implementation,
            "saved": sorted(saved),
            "kept": [name for name in sorted(IGNORED) if name[0] != "_" and vars(config).get(name)],
        }

    return guarded(load)


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_model_chooses_no_code(claim: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(good, tmp_path / "theirs")
    CLAIMS[claim](tmp_path / "theirs")
    kind, value = loaded(tmp_path / "theirs", monkeypatch)
    assert kind == "returned", value
    assert value["class"] == "transformers.models.qwen2.modeling_qwen2.Qwen2ForCausalLM"
    assert value["attention"] == "rloop_sdpa"
    assert not IGNORED & set(value["saved"])
    assert value["kept"] == []


def test_the_users_attention_is_taken(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(good, tmp_path / "theirs")
    with_values(CONFIG, _attn_implementation="sdpa")(tmp_path / "theirs")
    _, value = loaded(tmp_path / "theirs", monkeypatch, attn_implementation="eager")
    assert value["attention"] == "rloop_eager"


def test_settings_are_left_out_at_any_depth() -> None:
    part = {"_attn_implementation": KERNEL, "hidden_size": 8, "layers": [{"auto_map": 1, "size": 2}, 3]}
    kept = {"hidden_size": 8, "layers": [{"size": 2}, 3]}
    assert without_ignored({"text_config": part, "use_kernels": True}) == {"text_config": kept}


def test_a_mistral_of_two_ranges_is_read_as_transformers_reads_it(good: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    shutil.copytree(good, tmp_path / "mistral")
    layers = ["sliding_attention", "full_attention"]
    with_values(CONFIG, model_type="mistral", layer_types=layers)(tmp_path / "mistral")
    ours = load_config(str(tmp_path / "mistral"))
    assert type(ours) is type(AutoConfig.from_pretrained(tmp_path / "mistral"))
    assert ours.layer_types == layers


def test_the_guard_sees_what_it_forbids(good: Path) -> None:
    """Or the tests above would pass for nothing."""
    import pickle
    import socket

    from transformers.integrations import hub_kernels

    assert guarded(lambda: hub_kernels.get_kernel(KERNEL))[0] == "forbidden"
    assert guarded(lambda: pickle.loads(b""))[0] == "forbidden"
    assert guarded(lambda: socket.create_connection(("127.0.0.1", 9)))[0] == "forbidden"
    assert guarded(lambda: (good / CONFIG).stat().st_size)[0] == "returned"
