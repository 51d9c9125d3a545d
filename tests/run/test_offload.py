"""Which runs may keep the state of their optimizers on the host."""

from __future__ import annotations

import pytest
import torch

from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.run.offload import offload_faults
from rloop_lightning.run.trainer import does_shard


def faults(strategy: str = "auto", plans: bool = False, optimizer: str = "adamw", **trainer: str) -> list[str]:
    modules = [GRPO(offload_optimizer=True, optimizer=optimizer), RFT()]
    return offload_faults(trainer, modules, shards=does_shard(strategy), plans=plans)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_gpu_can(gpu: None) -> None:
    assert faults() == faults("ddp") == []


def test_a_cpu_has_no_other_memory(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ["--algo.offload_optimizer: the run has no GPU, so that all memory is the host's; leave it out"]
    assert faults(accelerator="cpu") == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert faults() == expected
    assert faults(plans=True) == []


@pytest.mark.parametrize("strategy", ["fsdp2", "hsdp", "lightning.pytorch.strategies.ModelParallelStrategy"])
def test_shards_stay_on_their_gpu(gpu: None, strategy: str) -> None:
    (fault,) = faults(strategy)
    assert fault.startswith("--algo.offload_optimizer: sharded weights keep their state on each GPU; leave it out")


def test_the_optimizers_of_bitsandbytes_have_their_own_way() -> None:
    (fault,) = faults(optimizer="paged_adamw32bit", plans=True)
    assert fault == "--algo.offload_optimizer: can't move the state of paged_adamw32bit; take --algo.optimizer adamw"
