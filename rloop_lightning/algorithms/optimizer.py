"""The optimizer of a phase and its learning-rate schedule. Default: AdamW, linear warm-up, then a constant rate.

bfloat16 weights are updated with stochastic rounding, whatever the optimizer (bfloat16.py).
"""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from rloop_lightning.algorithms.bfloat16 import rounding
from rloop_lightning.algorithms.offload import offloading
from rloop_lightning.model.adapter_packages import import_bitsandbytes, missing_bitsandbytes
from rloop_lightning.system.terminal import one_line

OPTIMIZERS: Mapping[str, str] = {
    "adamw": "torch.optim.AdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "paged_adamw8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "paged_adamw32bit": "bitsandbytes.optim.PagedAdamW32bit",
}
"""Class paths by short name."""

_STATE_BYTES = 8  # of a number: two moments in float32
_STATE_BYTES_IN_8_BITS = 2 + 2 * 4 / 256  # and a float32 scale for 256 numbers of each
_SMALLEST_IN_8_BITS = 4096  # numbers of a tensor; bitsandbytes keeps smaller ones in float32

LRSchedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    step: int, total_steps: float, *, schedule: LRSchedule, warmup_steps: int, floor: float
) -> float:
    """The learning rate of a training step as a fraction of the peak.

    During warm-up it rises linearly and reaches 1 in the last warm-up step. Afterwards `constant` stays at 1, while
    `linear` and `cosine` decay to `floor`. They would reach it one step after the phase's last, so that no step has
    a learning rate of 0.

    Args:
        step: training step of the phase, from 0.
        total_steps: training steps of the phase; not used during warm-up.
        floor: the lowest learning rate as a fraction of the peak.
    """
    peak = max(0, warmup_steps - 1)
    if step <= peak:
        return (step + 1) / (peak + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - peak) / max(1.0, total_steps - peak))
    left = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return floor + (1 - floor) * left


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; norms and biases (fewer than two dimensions) without."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    options: Mapping[str, Any],
    offload: bool = False,
) -> Optimizer:
    """An instance of the optimizer class over `parameter_groups`.

    Args:
        name: a short name of `OPTIMIZERS`, or a class path.
        betas: passed on if the class has the argument `betas`.
        options: further arguments of the class; they override `betas` and `fused`.
        offload: keep its state on the host between steps.
    """
    cls = find_optimizer(name)
    own = {"betas": betas, "fused": True}  # fused: one kernel for all weights
    kept = {name: value for name, value in own.items() if name in _arguments(cls)}
    groups = parameter_groups(parameters, weight_decay)
    if offload:
        cls = offloading(cls)
    if any(parameter.dtype == torch.bfloat16 for group in groups for parameter in group["params"]):
        cls = rounding(cls)
    return cls(groups, lr=lr, **{**kept, **options})


def state_bytes(name: str, options: Mapping[str, Any], numbers: int) -> float:
    """Bytes of an optimizer's state for each number of a trained tensor.

    Of the optimizers with a short name they are known; those of others are seen in one step on a tensor of zeros.

    Args:
        name: as in `make_optimizer`.
        options: further arguments of the class.
        numbers: size of the tensor, a multiple of 64; 8-bit optimizers keep small ones in float32.
    """
    if name in OPTIMIZERS and not options:
        in_8_bits = "8bit" in name and numbers >= _SMALLEST_IN_8_BITS
        return _STATE_BYTES_IN_8_BITS if in_8_bits else _STATE_BYTES
    weight = nn.Parameter(torch.zeros(numbers // 64, 64))
    weight.grad = torch.ones_like(weight)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
            optimizer = make_optimizer(name, [weight], lr=1e-3, weight_decay=0.0, betas=DEFAULT_BETAS, options=options)
            optimizer.step()
    except Exception:  # a class of the user may need more than a gradient, such as a closure
        return _STATE_BYTES
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.nbytes for tensor in tensors) / numbers


def is_of_bitsandbytes(name: str) -> bool:
    """Whether a short name or class path is an optimizer of bitsandbytes."""
    return OPTIMIZERS.get(name, name).startswith("bitsandbytes.")


def find_optimizer(name: str) -> Any:
    """The optimizer class of a short name, or of a path such as `torch.optim.AdamW`.

    Raises:
        ValueError: it can't be imported, or is not a subclass of `torch.optim.Optimizer`.
    """
    path = OPTIMIZERS.get(name, name)
    if is_of_bitsandbytes(name):
        if missing := missing_bitsandbytes():
            raise ValueError(f"can't be imported: {missing}")
        import_bitsandbytes()
    module, _, cls = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        why = f"can't be imported ({error})" if module else "is not known"
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"{why}; take {known}, or give a class path such as torch.optim.AdamW") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError("is not a subclass of torch.optim.Optimizer")
    return found


def optimizer_faults(
    name: str, options: Mapping[str, Any], *, betas: tuple[float, float], weight_decay: float
) -> Iterator[tuple[str, str, Any]]:
    """Settings that the optimizer does not accept: the field, the error, its value."""
    try:
        arguments = _arguments(find_optimizer(name))
    except ValueError as error:
        yield "optimizer", str(error), name
        return
    fields = {"lr": "lr", "weight_decay": "weight_decay", "params": "optimizer"}
    for option in options:
        if option in fields:
            yield "optimizer_options", f"must not hold {option}, which the field {fields[option]} sets", options
        elif option not in arguments:
            yield "optimizer_options", f"must hold arguments of {name}, which has no {option}", options
    if "betas" not in arguments and betas != DEFAULT_BETAS:
        yield "beta1", f"and beta2 must keep their defaults with {name}, which takes no betas", betas
    if "weight_decay" not in arguments and weight_decay:
        yield "weight_decay", f"must be 0 with {name}, which takes none", weight_decay
    elif options.keys() <= arguments - fields.keys() and (fault := _trial(name, options, betas)):
        field, value = ("optimizer_options", options) if options else ("optimizer", name)
        yield field, f"can't be used: {name} raises {fault}", value


def _trial(name: str, options: Mapping[str, Any], betas: tuple[float, float]) -> str:
    """What an optimizer raises when it is made and takes a step; empty if nothing, or if it is known to work.

    It is tried on weights of both dtypes, since those of the policy are not known yet. The optimizers of bitsandbytes
    take no step, which may need a GPU.
    """
    if name in OPTIMIZERS and not options:
        return ""
    for dtype, of in ((torch.float32, ""), (torch.bfloat16, " of bfloat16")):
        weights = [nn.Parameter(torch.zeros(2, 2, dtype=dtype)), nn.Parameter(torch.zeros(2, dtype=dtype))]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        try:
            optimizer = make_optimizer(name, weights, lr=1e-3, weight_decay=0.0, betas=betas, options=options)
            if not is_of_bitsandbytes(name):
                optimizer.step()
        except Exception as error:  # of a class that is not ours
            what = one_line(f"{type(error).__name__}: {error}", limit=200)
            return f"{what} in a step on two small tensors{of}"
    return ""


DEFAULT_BETAS = (0.9, 0.999)


def _arguments(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters)
