"""How many weights training changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rloop_lightning.model import weight_sample as module
from rloop_lightning.model.weight_sample import share_changed, weight_sample


def test_one_changed_bit_is_found_and_frozen_weights_do_not_count() -> None:
    model = nn.Sequential(nn.Linear(10, 9, bias=False), nn.Linear(10, 1, bias=False)).to(torch.bfloat16)
    model[1].weight.requires_grad = False
    before = weight_sample(model)
    assert share_changed(before, weight_sample(model)) == 0
    with torch.no_grad():
        model[1].weight.zero_()
        model[0].weight.view(torch.int16)[3, 4] += 1
    assert share_changed(before, weight_sample(model)) == pytest.approx(1 / 90)


def test_a_large_policy_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WEIGHTS", 100)
    model = nn.Linear(50, 40)
    before = weight_sample(model)
    assert sum(map(len, before)) <= 100
    with torch.no_grad():
        model.weight[:20] += 1
        model.bias += 1
    assert share_changed(before, weight_sample(model)) == pytest.approx(0.5, abs=0.02)
