"""Whether a run can keep the state of its optimizers on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rloop_lightning.algorithms.optimizer import is_of_bitsandbytes
from rloop_lightning.algorithms.policy_module import PolicyModule


def offload_faults(
    trainer: Mapping[str, Any], modules: Sequence[PolicyModule], *, shards: bool, plans: bool
) -> list[str]:
    """Why modules that offload their optimizer can't, one message each.

    Args:
        trainer: the arguments of a Trainer.
        shards: whether the strategy shards weights.
        plans: whether the run only prints its memory plan, which needs no GPU.
    """
    on_cpu = trainer.get("accelerator") == "cpu" or not (plans or torch.cuda.is_available())
    wrong = []
    for module in modules:
        if not module.offload_optimizer:
            continue
        flag = f"{module.flag}.offload_optimizer"
        if is_of_bitsandbytes(module.optimizer):
            wrong.append(f"{flag}: can't move the state of {module.optimizer}; take {module.flag}.optimizer adamw")
        if on_cpu:
            wrong.append(f"{flag}: the run has no GPU, so that all memory is the host's; leave it out")
        elif shards:
            wrong.append(f"{flag}: sharded weights keep their state on each GPU; leave it out, or take one GPU or ddp")
    return wrong
