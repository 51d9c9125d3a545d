"""The layers of a model that an adapter may adapt: linear layers and the weights of experts, never a router."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

ALL_LINEAR: Literal["all-linear"] = "all-linear"

# The last part of a router's name, or of the gate of an expert that all tokens share.
_ROUTER = re.compile(r"(^|\.)(gate|router|wg|classifier|shared_expert_gate)$")
_SHOWN = 12


def is_router(name: str) -> bool:
    """Whether a linear layer of this name chooses experts, or weighs one that all tokens share."""
    return _ROUTER.search(name) is not None


@dataclass(frozen=True)
class LoraTargets:
    """The names of what is adapted, as PEFT takes them.

    Args:
        modules: linear layers, each by an end of its name.
        parameters: the weights of experts [experts, ., .], each by an end of its name.
    """

    modules: list[str]
    parameters: list[str]

    @classmethod
    def of(cls, model: Any, targets: Literal["all-linear"] | Sequence[str]) -> LoraTargets:
        """The targets in a Hugging Face causal LM.

        Raises:
            ValueError: the model has no layer of a name, or it may not be adapted.
        """
        linear, experts = _linear_layers(model), _expert_weights(model)
        if targets == ALL_LINEAR:
            return cls(_short(linear, model), sorted({_last_two(name) for name in experts}))
        wrong = [fault for target in targets if (fault := _fault(target, model, [*linear, *experts]))]
        if wrong:
            raise ValueError("\n".join(wrong))
        return cls(
            [target for target in targets if _ends(linear, target)],
            [target for target in targets if _ends(experts, target)],
        )


def _linear_layers(model: Any) -> list[str]:
    """Linear layers, without the head and routers."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")  # GPT-2's linear layer
        and module is not head
        and not is_router(name)
    ]


def _expert_weights(model: Any) -> list[str]:
    """The weights of all experts of a layer, each in one parameter."""
    return [name for name, weight in model.named_parameters() if weight.dim() == 3 and "experts." in name]


def _short(names: Sequence[str], model: Any) -> list[str]:
    """The last parts of the names, or the names as they are if other modules share a last part."""
    last = {name.rpartition(".")[2] for name in names}
    others = (name for name, _ in model.named_modules() if name not in set(names))
    shared = any(name.rpartition(".")[2] in last for name in others)
    return sorted(names) if shared else sorted(last)


def _last_two(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _ends(names: Iterable[str], target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _fault(target: str, model: Any, allowed: Sequence[str]) -> str:
    """Why a target can't be adapted; empty if it can."""
    if _ends(allowed, target):
        return ""
    if _ends((name for name, _ in model.named_modules()), target):
        return f"--policy.lora.targets: {target} is no linear layer that may be adapted{_known(allowed)}"
    return f"--policy.lora.targets: the model has no layer {target!r}{_known(allowed)}"


def _known(allowed: Sequence[str]) -> str:
    names = sorted({_last_two(name) if "experts." in name else name.rpartition(".")[2] for name in allowed})
    return f"; it takes {', '.join(names[:_SHOWN])}"
