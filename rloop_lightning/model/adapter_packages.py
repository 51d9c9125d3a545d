"""The optional packages of adapters: peft, and bitsandbytes for 4-bit weights under one."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec


def missing_peft() -> str:
    """Why no adapter can be used; empty if peft is installed."""
    return "" if find_spec("peft") else "the package peft is not installed; pip install 'rloop-lightning[lora]'"


def missing_bitsandbytes() -> str:
    """Why weights can't be quantised; empty if bitsandbytes is installed."""
    if find_spec("bitsandbytes"):
        return ""
    return "the package bitsandbytes is not installed; pip install 'rloop-lightning[qlora]'"


def import_bitsandbytes() -> None:
    """Import bitsandbytes, if it is there, as it is installed. peft imports it, too.

    On some CPUs, and where the package kernels is installed, it would fetch code from the hub and run it.
    """
    if "bitsandbytes" in sys.modules or missing_bitsandbytes():
        return
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # importing it fails
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that it has no such code
    try:
        import bitsandbytes  # noqa: F401 -- later imports find it
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
