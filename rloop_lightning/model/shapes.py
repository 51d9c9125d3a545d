"""Few different sizes of tensors, however data vary.

    rounded_up(1000, device)                # 1024 on a CPU
    rounded_up(3, device, multiple=16)      # 16

On a CPU, a product in bfloat16 makes a kernel for each new shape, which takes milliseconds, and a megabyte for good.
Padding costs less. On a GPU it costs only.
"""

from __future__ import annotations

import torch


def rounded_up(count: int, device: torch.device, multiple: int = 1) -> int:
    """The count, or what it takes to be a multiple of `multiple`, a power of 2; on a CPU up to a seventh more."""
    few = 1 << max(0, count.bit_length() - 4) if device.type == "cpu" else 1
    step = max(multiple, few)
    return -(-count // step) * step
