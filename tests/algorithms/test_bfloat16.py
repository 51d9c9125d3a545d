"""Updates of bfloat16 weights: rounding that is right on average, sums of gradients, state, and 8-bit optimizers."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from builders import GradientRecorder, fit, make_policy, random_batch, relative_difference, weights
from slow_updates import step_of

from rloop_lightning.algorithms.bfloat16 import float32_sums, rounding, stochastically_rounded
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.optimizer import OPTIMIZERS, make_optimizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("value", [1.0 + 0.25 / 128, -3.0 - 0.75 / 64, 1e-3, -2.7e-38, 1e-40])
def test_rounding_is_right_on_average(value: float) -> None:
    values = torch.full((40_000,), value)
    rounded = stochastically_rounded(values, generator()).float()
    assert len(rounded.unique()) == 2  # its two neighbours
    spacing = float(rounded.unique().diff())
    assert abs(float(rounded.double().mean()) - float(values[0])) < 0.02 * spacing


def test_what_bfloat16_holds_stays_as_it_is() -> None:
    exact = torch.cat([torch.randn(1000, generator=generator()), torch.tensor([0.0, -0.0, 1e30])]).bfloat16()
    assert torch.equal(stochastically_rounded(exact.float(), generator()), exact)
    broken = torch.tensor([float("inf"), -float("inf"), float("nan")])
    assert torch.equal(stochastically_rounded(broken, generator()).isfinite(), broken.isfinite())


def test_small_updates_add_up() -> None:
    """Each is a thousandth of a weight, which plain bfloat16 never sees."""
    plain, rounded = (torch.nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16)) for _ in range(2))
    optimizers = [torch.optim.SGD([plain], lr=1e-3), rounding(torch.optim.SGD)([rounded], lr=1e-3)]
    for _ in range(100):
        for weight, optimizer in zip((plain, rounded), optimizers, strict=True):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    assert torch.equal(plain.data, torch.ones_like(plain))
    assert float(rounded.float().mean()) == pytest.approx(0.9, abs=1e-3)


def test_gradients_of_many_micro_batches_are_summed_in_float32() -> None:
    """In bfloat16, the sum of ones stays at 256."""
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    wide = torch.nn.Parameter(torch.zeros(3))
    with float32_sums([weight, wide]):
        for _ in range(1000):
            (weight.sum() + wide.sum()).backward()
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.tolist() == [1000] * 3
    assert wide.grad.tolist() == [1000] * 3
    weight.sum().backward()  # the block is left: gradients accumulate as ever
    assert weight.grad.tolist() == [torch.tensor(1001.0).bfloat16()] * 3


def test_a_policy_s_update_is_that_of_float32_weights_but_for_rounding() -> None:
    moved = []
    for dtype in torch.bfloat16, torch.float32:
        policy = make_policy(dtype=torch.bfloat16).to(dtype)
        start, recorder = weights(policy).float(), GradientRecorder()
        module = DAPO(updates_per_step=1, lr=0.05, warmup_steps=0, weight_decay=0.0)
        state = torch.random.get_rng_state()
        trainer = fit(module, policy, [step_of(random_batch())], [recorder])
        assert torch.equal(torch.random.get_rng_state(), state)
        moved.append(weights(policy).float() - start)
        (first, *_) = trainer.optimizers[0].state.values()
        assert first["exp_avg"].dtype == torch.float32
    assert relative_difference(*moved) < 0.2


def training(name: str, dtype: torch.dtype) -> tuple[list[torch.nn.Parameter], Any]:
    parameters = [torch.nn.Parameter(torch.randn(64, 8, generator=generator(3)).to(dtype)) for _ in range(2)]
    options = {"min_8bit_size": 16} if "8bit" in name else {}
    optimizer = make_optimizer(name, parameters, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), options=options)
    return parameters, optimizer


def step(parameters: list[torch.nn.Parameter], optimizer: Any, number: int) -> None:
    for weight in parameters:
        weight.grad = torch.randn(weight.shape, generator=generator(number)).to(weight.dtype)
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*OPTIMIZERS, "torch.optim.Adagrad"])
def test_an_optimizer_continues_from_its_state_to_the_same_bits(name: str, dtype: torch.dtype) -> None:
    expected, optimizer = training(name, dtype)
    for number in range(6):
        step(expected, optimizer, number)
    first, optimizer = training(name, dtype)
    for number in range(3):
        step(first, optimizer, number)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again, optimizer = training(name, dtype)
    with torch.no_grad():
        for weight, stored in zip(again, first, strict=True):
            weight.copy_(stored)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    for number in range(3, 6):
        step(again, optimizer, number)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, expected, strict=True))
    assert all(weight.dtype == dtype for weight in again)


def test_state_from_before_the_first_step_is_float32_too() -> None:
    """Adagrad makes its sums when it is made itself."""
    weights, optimizer = training("torch.optim.Adagrad", torch.bfloat16)
    for number in range(2):
        step(weights, optimizer, number)
    assert {state["sum"].dtype for state in optimizer.state.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["torch.optim.AdamW", "torch.optim.RMSprop", "torch.optim.Adafactor"])
def test_state_that_is_offloaded_between_steps_gives_the_same_bits(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In buckets of one weight each, with a resume in between, and a weight that has no gradient at first."""
    monkeypatch.setattr("rloop_lightning.algorithms.bfloat16._AT_ONCE", 600)
    made = []
    for offload in (False, True):
        weights = [torch.nn.Parameter(torch.randn(64, 8, generator=generator(3)).to(dtype)) for _ in range(3)]
        resumed = None
        for _ in range(2):
            optimizer = make_optimizer(
                name, weights, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.999), options={}, offload=offload
            )
            if resumed is not None:
                optimizer.load_state_dict(resumed)
            for number in range(3):
                step(weights if number or resumed else weights[1:], optimizer, number)
            resumed = copy.deepcopy(optimizer.state_dict())
        made.append((weights, resumed))
    (plain, state), (offloaded, other_state) = made
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(offloaded, plain, strict=True))
    assert state["state"].keys() == other_state["state"].keys()
    for number, parts in state["state"].items():
        for part, value in parts.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other_state["state"][number][part]))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_the_optimizers_of_bitsandbytes_make_adam_s_step(name: str) -> None:
    theirs, ours = (training(one, torch.float32) for one in ("adamw", name))
    start = theirs[0][0].detach().clone()
    for number in range(20):
        for one in theirs, ours:
            step(*one, number)
    moved = [one[0][0].detach() - start for one in (ours, theirs)]
    assert relative_difference(*moved) < (0.05 if "8bit" in name else 1e-4)
    (state, *_) = ours[1].state.values()
    assert state["state1"].dtype == (torch.uint8 if "8bit" in name else torch.float32)
