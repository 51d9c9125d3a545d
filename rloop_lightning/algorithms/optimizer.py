"""The optimizer of a phase and its learning rate: AdamW with linear warm-up, then constant, unless told otherwise."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

LRSchedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    step: int, total_steps: float, *, schedule: LRSchedule, warmup_steps: int, floor: float
) -> float:
    """The learning rate of a training step as a share of the peak.

    It rises linearly to 1 in the last of `warmup_steps` steps. From there `constant` stays at 1; `linear` and `cosine`
    fall to `floor`, which the step after the phase's last one would have: no step trains at 0.

    Args:
        step: training step of the phase, from 0.
        total_steps: training steps of the phase; not read during warm-up.
        floor: the lowest learning rate as a share of the peak.
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
    """Matrices with weight decay; norms and biases, which have fewer than two dimensions, without."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    class_path: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    options: Mapping[str, Any],
) -> Optimizer:
    """The optimizer that a class path names, over `parameter_groups`.

    Args:
        betas: passed on if the class takes `betas`.
        options: further arguments of the class; they win over `betas` and `fused`.
    """
    cls = find_optimizer(class_path)
    own = {"betas": betas, "fused": True}  # fused: one kernel for all weights
    kept = {name: value for name, value in own.items() if name in _arguments(cls)}
    return cls(parameter_groups(parameters, weight_decay), lr=lr, **{**kept, **options})


def find_optimizer(class_path: str) -> Any:
    """The class of a path such as `torch.optim.AdamW`.

    Raises:
        ValueError: there is none, or it is no `torch.optim.Optimizer`.
    """
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"can't be imported ({error}); give a class path such as torch.optim.AdamW") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError("is no subclass of torch.optim.Optimizer")
    return found


def optimizer_faults(
    class_path: str, options: Mapping[str, Any], *, betas: tuple[float, float], weight_decay: float
) -> Iterator[tuple[str, str, Any]]:
    """What the optimizer can't take: the field, what is wrong with it, and its value."""
    try:
        arguments = _arguments(find_optimizer(class_path))
    except ValueError as error:
        yield "optimizer", str(error), class_path
        return
    fields = {"lr": "lr", "weight_decay": "weight_decay", "params": "optimizer"}
    for option in options:
        if option in fields:
            yield "optimizer_options", f"must not hold {option}, which the field {fields[option]} sets", options
        elif option not in arguments:
            yield "optimizer_options", f"must hold arguments of {class_path}, which has no {option}", options
    if "betas" not in arguments and betas != DEFAULT_BETAS:
        yield "beta1", f"and beta2 must keep their defaults with {class_path}, which takes no betas", betas
    if "weight_decay" not in arguments and weight_decay:
        yield "weight_decay", f"must be 0 with {class_path}, which takes none", weight_decay


DEFAULT_BETAS = (0.9, 0.999)


def _arguments(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters)
