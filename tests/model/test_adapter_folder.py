"""Adapter folders: written, read by PEFT and by a policy, and refused where they are damaged or hostile."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_models import make_good_model
from builders import random_batch
from moe import make_moe
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rloop_lightning.model.adapter_folder import WEIGHTS
from rloop_lightning.model.adapter_settings import ADAPTER
from rloop_lightning.model.config import PolicyConfig, policy_faults
from rloop_lightning.model.lora import LoraSettings
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.checksums import damaged_files


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "good"
    make_good_model(path)
    return path


def moved(policy: Policy) -> Policy:
    """The policy with an adapter that changes its logprobs."""
    generator = torch.Generator().manual_seed(1)
    assert policy.adapter is not None
    with torch.no_grad():
        for weight in policy.adapter.parameters.values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return policy


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    moved(Policy.load(PolicyConfig(model=str(base), lora=LoraSettings(rank=3)))).save(folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_what_is_saved_is_what_peft_and_a_policy_load(kind: str, base: Path, tmp_path: Path) -> None:
    if kind == "experts":
        shutil.copytree(base, tmp_path / "moe")
        base = tmp_path / "moe"
        make_moe(dtype=torch.float32, vocab_size=300).save_pretrained(base)
    policy = moved(Policy.load(PolicyConfig(model=str(base), lora=LoraSettings(rank=3, rslora=True))))
    policy.save(tmp_path / "adapter")
    assert not damaged_files(tmp_path / "adapter")
    again = Policy.load(PolicyConfig(model=str(tmp_path / "adapter")))
    batch = random_batch()
    assert torch.equal(again.scores_no_grad(batch).logprobs, policy.scores_no_grad(batch).logprobs)
    assert {name for name, weight in again.named_parameters() if weight.requires_grad} == {
        f"model.{name}" for name in policy.adapter.parameters
    }
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(peft), logits(policy.model), rtol=1e-4, atol=1e-5)
    policy.save(tmp_path / "merged", merge=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(plain), logits(policy.model), rtol=1e-4, atol=1e-4)
    assert Policy.load(PolicyConfig(model=str(tmp_path / "merged"))).adapter is None


def test_an_adapter_that_peft_wrote_loads(base: Path, tmp_path: Path) -> None:
    """With dropout, which only its training had."""
    config = LoraConfig(r=2, lora_alpha=3, lora_dropout=0.1, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "theirs")
    policy = Policy.load(PolicyConfig(model=str(tmp_path / "theirs")))
    torch.testing.assert_close(logits(policy.model), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["gaussian", "eva", "orthogonal"])
@pytest.mark.filterwarnings("ignore:.*eva_config")
def test_how_an_adapter_began_does_not_change_what_it_computes(start: str, base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "theirs")
    policy = Policy.load(PolicyConfig(model=str(tmp_path / "theirs")))
    torch.testing.assert_close(logits(policy.model), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_for_which_peft_changes_the_model_is_refused(start: str, base: Path, tmp_path: Path) -> None:
    """It subtracts the adapter's start from the model's weights, also when it loads the adapter."""
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "theirs")
    under = AutoModelForCausalLM.from_pretrained(base)
    before = under.model.layers[0].self_attn.q_proj.weight.clone()
    loaded = PeftModel.from_pretrained(under, tmp_path / "theirs").get_base_model()
    assert not torch.equal(loaded.model.layers[0].self_attn.q_proj.base_layer.weight, before)
    assert policy_faults(PolicyConfig(model=str(tmp_path / "theirs"))) == [
        f"{ADAPTER}: init_lora_weights {start!r} is not supported, since PEFT changes the model under such an adapter; "
        "merge this adapter into its model with PEFT"
    ]
    with pytest.raises(ValueError, match="init_lora_weights"):
        Policy.load(PolicyConfig(model=str(tmp_path / "theirs")))


def test_loading_other_weights_into_a_policy(base: Path, saved: Path, tmp_path: Path) -> None:
    """Those of another adapter; the base's folder stands for the adapter that a run begins with."""
    policy = Policy.load(PolicyConfig(model=str(base), lora=LoraSettings(rank=3)))
    fresh = {name: weight.clone() for name, weight in policy.adapter.parameters.items()}
    policy.load_weights(saved)
    theirs = Policy.load(PolicyConfig(model=str(saved))).adapter.parameters
    assert all(torch.equal(weight, theirs[name]) for name, weight in policy.adapter.parameters.items())
    policy.load_weights(base)
    assert all(torch.equal(weight, fresh[name]) for name, weight in policy.adapter.parameters.items())


def setting(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        settings = json.loads((folder / ADAPTER).read_text())
        (folder / ADAPTER).write_text(json.dumps({**settings, **changes}))

    return spoil


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS)

    return spoil


def pickled(folder: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "harmed",))

    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Harm()))


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-7])


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (setting(peft_type="LOHA"), "peft_type must be LORA, the one kind of adapter that is supported"),
    "no base": (setting(base_model_name_or_path=None), "base_model_name_or_path must name the model under the adapter"),
    "missing base": (
        setting(base_model_name_or_path="/nowhere/model"),
        "adapter_config.json names the base model /nowhere/model: no such folder; correct base_model_name_or_path",
    ),
    "rank of text": (setting(r="8"), "r must be an integer from 1 to 4,096, got '8'"),
    "huge rank": (setting(r=10**9), "r must be an integer from 1 to 4,096, got 1000000000"),
    "no alpha": (setting(lora_alpha=None), "lora_alpha must be a number > 0, got None"),
    "pattern": (setting(target_modules="(a+)+b"), "target_modules must be a list of names, got '(a+)+b'"),
    "code": (setting(megatron_config={"a": 1}, megatron_core="os"), "megatron_config {'a': 1} is not supported"),
    "ranks by pattern": (setting(rank_pattern={"(a+)+b": 4}), "rank_pattern {'(a+)+b': 4} is not supported"),
    "DoRA": (setting(use_dora=True), "use_dora True is not supported; merge this adapter into its model"),
    "LoftQ": (setting(loftq_config={"loftq_bits": 4}), "loftq_config {'loftq_bits': 4} is not supported; merge this"),
    "a start unknown": (setting(init_lora_weights=["eva"]), "init_lora_weights ['eva'] is not supported, since PEFT"),
    "whole layers": (setting(modules_to_save=["lm_head"]), "modules_to_save ['lm_head'] is not supported"),
    "terminal": (setting(modules_to_save="\x1b[2J"), r"modules_to_save '\x1b[2J' is not supported"),
    "other layers": (setting(target_modules=["q_proj"]), f"{WEIGHTS} holds {FIRST}, "),
    "no layers": (setting(target_modules=["nothing"]), "describes no adapter of its model: Target modules {'nothing'}"),
    "another rank": (setting(r=4), f"of another shape in {WEIGHTS} than {ADAPTER} and its model say: {FIRST}, "),
    "no JSON": (lambda folder: (folder / ADAPTER).write_text("{") and None, "adapter_config.json is not valid JSON"),
    "pickles": (pickled, "contains no adapter_model.safetensors; adapters as pickles are refused"),
    "cut short": (cut, "adapter_model.safetensors holds 14,569 bytes and should hold 14,576"),
    "weight missing": (weights(lambda held: held.pop(FIRST)), f"{WEIGHTS} lacks {FIRST}, which {ADAPTER} describes"),
    "weight too many": (
        weights(lambda held: held.update({"x\x1b": torch.zeros(2)})),
        rf"{WEIGHTS} holds x\x1b, which {ADAPTER} has no place for",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_adapter_is_refused_before_weights_are_read(name: str, adapter: Path) -> None:
    spoil, message = SPOILED[name]
    spoil(adapter)
    faults = policy_faults(PolicyConfig(model=str(adapter)))
    assert any(message in fault for fault in faults), faults
    with pytest.raises(ValueError, match=r"."):
        Policy.load(PolicyConfig(model=str(adapter)))
    assert not (adapter / "harmed").exists()


def test_a_weight_that_is_not_finite_is_refused(adapter: Path) -> None:
    weights(lambda held: held[FIRST].fill_(float("nan")))(adapter)
    with pytest.raises(ValueError, match=rf"NaN or infinite numbers in {FIRST}; take another adapter"):
        Policy.load(PolicyConfig(model=str(adapter)))


def test_an_adapter_on_an_adapter_is_refused(adapter: Path, saved: Path) -> None:
    setting(base_model_name_or_path=str(saved))(adapter)
    (fault,) = policy_faults(PolicyConfig(model=str(adapter)))
    assert fault == (
        f"{ADAPTER} names the base model {saved}, which is an adapter itself; merge that one into its model, and name "
        "the merged folder"
    )


def test_what_is_written_does_not_depend_on_the_process(base: Path, saved: Path, tmp_path: Path) -> None:
    """PEFT keeps the names of layers in a set, whose order changes."""
    assert json.loads((saved / ADAPTER).read_text())["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    ]
