"""The settings of the memory plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rloop_lightning.run.plan_ranks import PlannedRanks
from rloop_lightning.system.fields import AtLeastOne, ClosedUnitInterval, PositiveFloat, PositiveInt, check_fields

_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)")


@dataclass(frozen=True)
class PlanConfig:
    """The plan of the memory that a run needs, and of the time of its steps on several machines.

    Args:
        only: print the memory plan and end, before anything is loaded. `--plan` alone sets it.
        memory: memory to plan for, such as 24GiB; null is what is free on the device of the run. A run that needs more
            is refused before its model is loaded.
        device: with --plan, the kind of device to plan for; null is that of the run, or cuda if `memory` is given and
            --trainer.accelerator is not cpu.
        prompt_tokens: length of the longest prompt that the plan counts with before it knows the prompts; null is
            --data.max_prompt_tokens, or 512.
        nodes: with --plan, machines to plan for; null is --trainer.num_nodes.
        devices_per_node: with --plan, devices of each machine, one rank each; null is --trainer.devices.
        strategy: with --plan, how the weights lie on the ranks: `ddp`, whole on each; `fsdp2`, divided over all ranks;
            `hsdp`, divided over the devices of a node, with a copy on each node; `auto` is that of --trainer.strategy.
        engines: with --plan, engines that generate; null is one for each address of --engine.url, or one a rank.
        from_run: with --plan, a run folder, from which the simulated step takes the lengths of completions and the
            rates that are not given.
        generate_tokens_per_s: with --plan, completion tokens per second of one engine that has many rollouts; simulates
            the time of a rollout step, together with `update_tokens_per_s`.
        row_tokens_per_s: with --plan, tokens per second of a rollout that an engine decodes alone; null is no limit.
        update_tokens_per_s: with --plan, tokens per second of one rank's updates.
        push_gb_per_s: with --plan, weights given to the engines, 10^9 bytes per second; null takes no time.
        straggler_share: with --plan, probability that an engine or a rank is slow in a rollout step.
        straggler_slowdown: with --plan, how many times longer a slow one takes.
        steps: with --plan, rollout steps to simulate.
    """

    only: bool = False
    memory: str | None = None
    device: Literal["cuda", "cpu"] | None = None
    prompt_tokens: PositiveInt | None = None
    nodes: PositiveInt | None = None
    devices_per_node: PositiveInt | None = None
    strategy: Literal["auto", "ddp", "fsdp2", "hsdp"] = "auto"
    engines: PositiveInt | None = None
    from_run: str | None = None
    generate_tokens_per_s: PositiveFloat | None = None
    row_tokens_per_s: PositiveFloat | None = None
    update_tokens_per_s: PositiveFloat | None = None
    push_gb_per_s: PositiveFloat | None = None
    straggler_share: ClosedUnitInterval = 0.0
    straggler_slowdown: AtLeastOne = 2.0
    steps: PositiveInt = 50

    def __post_init__(self) -> None:
        check_fields(self, "--plan")
        if self.memory is not None:
            memory_bytes(self.memory)

    def ranks(self, trainer: Mapping[str, Any]) -> PlannedRanks:
        """The ranks of a plan, or of a run.

        Args:
            trainer: the arguments of the Trainer.
        """
        found = PlannedRanks.of(trainer)
        if not self.only:
            return found
        return PlannedRanks(
            self.nodes or found.nodes,
            self.devices_per_node or found.devices,
            found.strategy if self.strategy == "auto" else self.strategy,
        )

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
