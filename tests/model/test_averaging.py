"""The weighted average of two policies: every weight, in place, for whole models, tied weights and adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import make_policy
from moe import make_moe_policy

from rloop_lightning.model.averaging import has_product, move_towards
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.lora import LoraSettings
from rloop_lightning.model.policy import Policy


def state_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in policy.state_dict().items()}


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("architecture", ["Qwen2", "Llama"])
def test_every_weight_lies_between_both_policies(tmp_path: Path, architecture: str, share: float) -> None:
    policy, other = make_policy(architecture), make_policy(architecture, seed=1)
    other.save(tmp_path / "explored")
    start, end = state_of(policy), state_of(other)
    move_towards(policy, tmp_path / "explored", share)
    for name, weight in policy.state_dict().items():
        expected = start[name].double() + share * (end[name].double() - start[name].double())
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(weight, end[name]) for name, weight in other.state_dict().items())


def test_tied_weights_are_averaged_once(tmp_path: Path) -> None:
    policy, other = (make_policy(tie_word_embeddings=True, seed=seed) for seed in (0, 1))
    assert policy.model.lm_head.weight is policy.model.get_input_embeddings().weight
    other.save(tmp_path / "explored")
    start, end = policy.model.lm_head.weight.detach().clone(), other.model.lm_head.weight.detach()
    move_towards(policy, tmp_path / "explored", 0.25)
    torch.testing.assert_close(policy.model.lm_head.weight.detach(), start + 0.25 * (end - start))


def test_experts_are_averaged(tmp_path: Path) -> None:
    policy, other = make_moe_policy(), make_moe_policy(seed=1)
    other.save(tmp_path / "explored")
    start, end = state_of(policy), state_of(other)
    assert any("experts" in name for name in start)
    move_towards(policy, tmp_path / "explored", 0.5)
    for name, weight in policy.state_dict().items():
        torch.testing.assert_close(weight, (start[name] + end[name]) / 2, rtol=1e-5, atol=1e-6)


def test_weights_in_bfloat16_are_rounded_once(tmp_path: Path) -> None:
    config = PolicyConfig(model="countdown", dtype="bfloat16")
    policy, other = Policy.load(config), Policy.load(config)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.01)
    other.save(tmp_path / "explored")
    start, end = state_of(policy), state_of(other)
    move_towards(policy, tmp_path / "explored", 0.5)
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, (start[name].float() + 0.5 * (end[name].float() - start[name].float())).bfloat16())


def test_an_adapters_product_is_scaled_exactly_or_refused(tmp_path: Path) -> None:
    config = PolicyConfig(model="countdown", lora=LoraSettings(rank=4))
    policy, other = Policy.load(config), Policy.load(config)
    assert other.adapter is not None
    assert policy.adapter is not None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.adapter.parameters.values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    other.save(tmp_path / "explored")
    assert not has_product(policy.adapter)
    move_towards(policy, tmp_path / "explored", 0.25)
    for name, a in policy.adapter.parameters.items():
        if ".lora_A." in name:
            b, theirs = name.replace("lora_A", "lora_B"), other.adapter.parameters
            product = policy.adapter.parameters[b] @ a
            torch.testing.assert_close(product, 0.25 * (theirs[b] @ theirs[name]))
            assert product.abs().max() > 0
    with pytest.raises(ValueError, match="the average of two trained adapters has up to twice their rank"):
        move_towards(policy, tmp_path / "explored", 0.25)
