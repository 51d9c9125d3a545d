"""What decides the rounding of a run's results besides its settings: a resume with another one gives other bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from rloop_lightning.system.terminal import one_line


def this_machine(device: torch.device) -> dict[str, Any]:
    """What decides the rounding here, by name.

    Args:
        device: the device that trains.
    """
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def other_machine(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A note on what is different now; empty if nothing is known to be."""
    changes = [
        f"{name} {now[name]} (before: {one_line(str(before[name]))})"
        for name in now
        if before.get(name, now[name]) != now[name]
    ]
    if not changes:
        return ""
    return f"resumed with {', '.join(changes)}: the results are not bit-identical to those of an uninterrupted run"
