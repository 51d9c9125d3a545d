"""Round sizes up so that few distinct shapes occur.

    rounded_up(1000, device)                # 1024 on a CPU
    rounded_up(3, device, multiple=16)      # 16

On a CPU, a bfloat16 product compiles a kernel for each new shape. That takes milliseconds, and a megabyte that is never
freed. Padding costs less. On a GPU padding has no benefit.
"""

from __future__ import annotations

import torch


def rounded_up(count: int, device: torch.device, multiple: int = 1) -> int:
    """The count, rounded up to a multiple of `multiple`, a power of 2. On a CPU it rounds by up to an eighth more."""
    few = 1 << max(0, count.bit_length() - 4) if device.type == "cpu" else 1
    step = max(multiple, few)
    return -(-count // step) * step
