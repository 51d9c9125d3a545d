"""The settings of the memory plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rloop_lightning.system.fields import PositiveInt, check_fields

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)")


@dataclass(frozen=True)
class PlanConfig:
    """The plan of the memory that a run needs.

    Args:
        only: print the memory plan and end, before anything is loaded. `--plan` alone sets it.
        memory: memory to plan for, such as 24GiB; null is what is free on the device of the run. A run that needs more
            is refused before its model is loaded.
        device: with --plan, the kind of device to plan for; null is that of the run, or cuda if `memory` is given and
            --trainer.accelerator is not cpu.
        prompt_tokens: length of the longest prompt that the plan counts with before it knows the prompts; null is
            --data.max_prompt_tokens, or 512.
    """

    only: bool = False
    memory: str | None = None
    device: Literal["cuda", "cpu"] | None = None
    prompt_tokens: PositiveInt | None = None

    def __post_init__(self) -> None:
        check_fields(self, "--plan")
        if self.memory is not None:
            memory_bytes(self.memory)

    @property
    def limit(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else memory_bytes(self.memory)


def memory_bytes(text: str) -> int:
    """Bytes of a text such as 24GiB, 80 GB or 512MiB.

    Raises:
        ValueError: it is no size above 0.
    """
    found = _SIZE.fullmatch(text.strip())
    factor = None if found is None else _UNITS.get(found[2].upper())
    size = 0 if found is None or factor is None else int(float(found[1]) * factor)
    if size < 1:
        raise ValueError(f"--plan.memory: expected a size such as 24GiB, 80GB or 512MiB, got {text!r}")
    return size
