"""Updates of bfloat16 weights that are not lost in rounding.

    optimizer = rounding(torch.optim.AdamW)(parameters, lr=1e-6)
    with float32_sums(parameters):
        for micro_batch in ...: backward()

A bfloat16 number has 8 significant bits: to the nearest, an update below 1/512 of a weight is rounded away, and so are
the gradients of later micro-batches where many are summed. Here an optimizer computes in float32, and the new weight is
rounded up or down at random with the probabilities that make it right on average (stochastic rounding, arXiv
1502.02551). Gradients are summed in float32. Other dtypes are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rloop_lightning.model.sharding import local, shard_number

# Numbers that are in float32 at once: 256 MiB of weights, and as much of gradients.
_AT_ONCE = 2**26
_STEPS = "rounded_steps"
"""The number of steps made, in the optimizer's groups, so that a checkpoint has it."""


def stochastically_rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 numbers as bfloat16, rounded up with a probability equal to the part that rounding down would drop."""
    noise = torch.randint(0, 2**16, values.shape, generator=generator, dtype=torch.int32, device=values.device)
    up = values.view(torch.int32) + noise  # a carry out of the low half rounds the magnitude up
    kept = (up & -(2**16)).view(torch.float32)
    return torch.where(values.isfinite(), kept, values).bfloat16()


def rounding(cls: Any) -> Any:
    """The optimizer class with stochastic rounding of bfloat16 weights. Its state is as for float32 weights."""

    class StochasticallyRounding(cls):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for weight, state in self.state.items():  # Adagrad makes it here, in the dtype of the weights
                if weight.dtype == torch.bfloat16:
                    wide = {name: value.float() for name, value in state.items() if _is_floating(value)}
                    state.update(wide)

        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            steps = self.param_groups[0].get(_STEPS, 0)
            # Numbers of its own, by the step: the global random state stays as it is, and a resume draws the same ones.
            generators: dict[torch.device, torch.Generator] = {}
            trained = [weight for weight in weights_of(self) if weight.grad is not None]
            gradients = {weight: weight.grad for weight in trained}
            for weight in trained:
                weight.grad = None
            for bucket in buckets(trained):
                wide = {weight: _in_float32(weight, gradients.pop(weight)) for weight in bucket}
                with _standing_in(self, wide):
                    super().step()
                for weight, values in wide.items():
                    values.grad = None
                    if values is not weight:
                        if weight.device not in generators:
                            generators[weight.device] = _generator(weight, steps)
                        _round_into(local(weight), local(values), generators[weight.device])
            self.param_groups[0][_STEPS] = steps + 1
            return loss

        def load_state_dict(self, state_dict: Any) -> None:
            """Load the state as it is. An optimizer would cast it to the dtype of the weights."""
            own = [weight for weight in weights_of(self) if weight.dtype == torch.bfloat16]
            with _standing_in(self, {weight: nn.Parameter(torch.empty(0, device=weight.device)) for weight in own}):
                super().load_state_dict(state_dict)

    StochasticallyRounding.__name__ = cls.__name__
    return StochasticallyRounding


@contextmanager
def float32_sums(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Sum the gradients of bfloat16 weights in float32 in the block, over its backward passes."""
    sums: dict[nn.Parameter, Tensor] = {}

    def add(weight: nn.Parameter) -> None:
        assert weight.grad is not None
        if weight in sums:
            sums[weight] = sums[weight].float().add_(weight.grad)  # float32 from the second one on
        else:
            sums[weight] = weight.grad
        weight.grad = None

    trained = (weight for weight in parameters if weight.requires_grad and weight.dtype == torch.bfloat16)
    hooks = [weight.register_post_accumulate_grad_hook(add) for weight in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    while sums:
        weight, total = sums.popitem()
        weight.grad = total.to(weight.dtype)


@torch.no_grad()
def _round_into(own: Tensor, values: Tensor, generator: torch.Generator) -> None:
    """Round values into a weight, a limited amount at once."""
    for place, part in zip(own.view(-1).split(_AT_ONCE), values.reshape(-1).split(_AT_ONCE), strict=True):
        place.copy_(stochastically_rounded(part, generator))


def _generator(weight: Tensor, steps: int) -> torch.Generator:
    """The random numbers of a step on the weight's device; each shard of sharded weights has its own."""
    return torch.Generator(weight.device).manual_seed(steps + (shard_number(weight) << 32))


def weights_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters of an optimizer."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def buckets(weights: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The weights, a limited amount at once."""
    bucket: list[nn.Parameter] = []
    size = 0
    for weight in weights:
        numbers = local(weight).numel()
        if bucket and size + numbers > _AT_ONCE:
            yield bucket
            bucket, size = [], 0
        bucket.append(weight)
        size += numbers
    if bucket:
        yield bucket


def _in_float32(weight: nn.Parameter, gradient: Any) -> nn.Parameter:
    """A weight with its gradient; of a bfloat16 weight, a float32 copy."""
    wide = nn.Parameter(weight.detach().float()) if weight.dtype == torch.bfloat16 else weight
    wide.grad = gradient.to(wide.dtype)
    return wide


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@contextmanager
def _standing_in(optimizer: Optimizer, others: Mapping[nn.Parameter, nn.Parameter]) -> Iterator[None]:
    """Let an optimizer see other parameters in place of its own in the block, with the state of its own."""
    _exchange(optimizer, others)
    try:
        yield
    finally:
        _exchange(optimizer, {other: own for own, other in others.items()})


def _exchange(optimizer: Optimizer, others: Mapping[nn.Parameter, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [others.get(weight, weight) for weight in group["params"]]
    for weight, other in others.items():
        if weight in optimizer.state:
            optimizer.state[other] = optimizer.state.pop(weight)
