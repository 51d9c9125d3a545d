"""What the processor can do, and how much of it this process may use."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "avx10_2", "bf16", "svebf16"})
"""Flags of processors that multiply bfloat16 numbers: the first three on x86, the others on Arm."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """The flags of the first processor as Linux names them; None on another system."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    named = (line.partition(":") for line in lines)
    return next((frozenset(flags.split()) for name, _, flags in named if name.strip() in {"flags", "Features"}), None)


def emulates_bfloat16(flags: Set[str] | None) -> bool:
    """Whether a processor with these flags has no units for bfloat16. False if the flags are not known."""
    return flags is not None and not flags & BFLOAT16_UNITS


def usable_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
