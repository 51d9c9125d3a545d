"""Few different sizes of tensors, however data vary.

    rounded_up(1000)                # 1024
    rounded_up(3, multiple=16)      # 16

On a CPU, a product in bfloat16 makes a kernel for each new shape, which takes milliseconds, and a megabyte for good.
Padding costs less.
"""

from __future__ import annotations


def rounded_up(count: int, multiple: int = 1) -> int:
    """The count or a little more, at most a seventh; or what it takes to be a multiple of `multiple`, a power of 2."""
    step = max(multiple, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step
