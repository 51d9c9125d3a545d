"""The settings of an adapter, as PEFT writes them to adapter_config.json: which are taken, ignored and refused.

PEFT imports modules that some of its settings name, and reads others as regular expressions. So only settings that
plain LoRA needs are passed on to it, and any other must have a value that changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rloop_lightning.system.terminal import one_line

ADAPTER = "adapter_config.json"
BASE = "base_model_name_or_path"
TAKEN = ("r", "lora_alpha", "use_rslora", "target_modules", "target_parameters", "exclude_modules", "fan_in_fan_out")
"""Settings that are passed on to PEFT."""

_LARGEST_RANK = 4096
_SHOWN = 5  # settings that a message lists by name

_IGNORED = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "revision", "inference_mode", BASE),
    *("init_lora_weights", "eva_config", "lora_dropout", "runtime_config", "qalora_group_size", "megatron_core"),
    "ensure_weight_tying",
}
"""Settings that don't change what a trained adapter computes: where it comes from, and how its training began."""

_STARTS = ("gaussian", "eva", "orthogonal")
"""Beside true, false and null, the values of init_lora_weights that leave the weights under the adapter as they are.

Others, such as pissa, olora and loftq, subtract the adapter's start from them, also when PEFT loads a saved adapter.
"""


def setting_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings that plain LoRA can't have, or that would make another model than PEFT does."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        yield f"peft_type must be LORA, the one kind of adapter that is supported, got {_shown(kind)}"
        return
    if not isinstance(settings.get(BASE), str) or not settings[BASE]:
        yield f"{BASE} must name the model under the adapter, got {_shown(settings.get(BASE))}"
    rank = settings.get("r")
    if type(rank) is not int or not 1 <= rank <= _LARGEST_RANK:
        yield f"r must be an integer from 1 to {_LARGEST_RANK:,}, got {_shown(rank)}"
    alpha = settings.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < float("inf"):
        yield f"lora_alpha must be a number > 0, got {_shown(alpha)}"
    for name in ("target_modules", "target_parameters", "exclude_modules"):
        value = settings.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(one, str) and one for one in value)):
            yield f"{name} must be a list of names, got {_shown(value)}"
    for name in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(settings.get(name, False), bool):
            yield f"{name} must be true or false, got {_shown(settings[name])}"
    start = settings.get("init_lora_weights")
    if not (start is None or isinstance(start, bool) or start in _STARTS):
        yield (
            f"init_lora_weights {_shown(start)} is not supported, since PEFT changes the model under such an adapter; "
            "merge this adapter into its model with PEFT"
        )
    others = settings.keys() - set(TAKEN) - _IGNORED
    changed = sorted(name for name in others if settings[name] not in (None, False, "none", [], {}))
    for name in changed[:_SHOWN]:
        yield f"{one_line(name)} {_shown(settings[name])} is not supported; merge this adapter into its model"


def _shown(value: Any) -> str:
    return one_line(repr(value), limit=80)
