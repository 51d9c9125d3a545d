"""A warning about bfloat16 on a CPU that computes it by emulation."""

from __future__ import annotations

from collections.abc import Mapping

from rloop_lightning.system.cpu import cpu_flags, emulates_bfloat16


def slow_bfloat16(dtypes: Mapping[str, str | None], device: str) -> str | None:
    """The warning, naming the options that set bfloat16, or None.

    PyTorch then converts each number to float32 and back: one core took 4.7 times as long for a bfloat16 product of
    256 x 1024 x 1024 as for a float32 product, and a sixth of the time with the units.

    Args:
        dtypes: the values of options that choose a dtype or a precision, by name.
        device: the type of the device that computes, such as `cpu`.
    """
    slow = [name for name, value in dtypes.items() if value is not None and value.startswith(("bf16", "bfloat16"))]
    if device != "cpu" or not slow or not emulates_bfloat16(cpu_flags()):
        return None
    given = " and ".join(f"{name} {dtypes[name]}" for name in slow)
    instead = " ".join(f"{name} {'32-true' if name.endswith('precision') else 'float32'}" for name in slow)
    return (
        f"{given}: this CPU has no units for bfloat16 (no avx512_bf16 or amx_bf16 among its flags), and emulates it "
        f"several times slower than float32; set {instead}"
    )
