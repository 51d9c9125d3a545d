"""Optimizer state on the host of a GPU between steps.

    optimizer = offloading(torch.optim.AdamW)(parameters, lr=1e-6)

A step copies the state of a limited amount of weights to the GPU, updates these, and copies it back into pinned memory.
It computes the same bits. After a resume, the state is on the GPU until the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rloop_lightning.algorithms.bfloat16 import buckets, weights_of


def offloading(cls: Any) -> Any:
    """The optimizer class with its moments on the host between steps."""

    class Offloading(cls):
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            gradients = {weight: weight.grad for weight in weights_of(self) if weight.grad is not None}
            for weight in gradients:
                weight.grad = None
            for bucket in buckets(list(gradients)):
                kept = {weight: self._lend(weight) for weight in bucket}
                for weight in bucket:
                    weight.grad = gradients.pop(weight)
                super().step()
                for weight in bucket:
                    weight.grad = None
                    self._take_back(weight, kept[weight])
            if torch.cuda.is_available():
                torch.cuda.current_stream().synchronize()  # a checkpoint may read the host's memory now
            return loss

        def _lend(self, weight: nn.Parameter) -> dict[str, Tensor]:
            """Copy a weight's state to its device. Returns what is on the host."""
            state = self.state.get(weight, {})
            held = {name: value for name, value in state.items() if _is_offloaded(value)}
            for name, value in held.items():
                state[name] = value.to(weight.device, non_blocking=True, copy=True)
            return held

        def _take_back(self, weight: nn.Parameter, held: dict[str, Tensor]) -> None:
            """Copy a weight's state to the host."""
            state = self.state[weight]
            for name, value in state.items():
                if _is_offloaded(value):
                    place = held.get(name)
                    if place is None or place.device.type != "cpu":  # the first step, also after a resume
                        place = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                    state[name] = place.copy_(value, non_blocking=True)

    Offloading.__name__ = cls.__name__
    return Offloading


def _is_offloaded(value: Any) -> bool:
    """Whether a part of the state is as large as its weight; optimizers keep step counts where they need them."""
    return isinstance(value, Tensor) and value.dim() > 0
