"""Fits through Lightning in one process, or in several with whole or sharded weights, for comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from builders import StepMetrics, fit, random_batch
from lightning.pytorch.strategies import DDPStrategy
from sharded_work import build, vector
from slow_updates import step_of
from torch import Tensor

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.fsdp2 import FSDP2Strategy
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.callbacks.gradient_norm import GradientConfig, GradientNormMonitor
from rloop_lightning.cli.registry import find_class
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import whole


@dataclass(frozen=True)
class Case:
    """What is trained and how.

    Args:
        policy: a kind of sharded_work.py.
        algorithm: short name of an algorithm or consolidation.
        settings: its settings.
        rounds: fits of the same policy.
        tokens: token budget of a micro-batch.
        rows: rows of the batch; None is all.
    """

    policy: str
    algorithm: str = "grpo"
    settings: dict[str, Any] = field(default_factory=dict)
    rounds: int = 1
    tokens: int = 40
    rows: tuple[int, ...] | None = None
    precision: str = "32-true"


@dataclass
class Trained:
    """What came out of it."""

    gradients: list[Tensor] = field(default_factory=list)  # of every optimizer step, before clipping
    weights: list[Tensor] = field(default_factory=list)  # of the whole policy, before training and after each round
    metrics: list[dict[str, float]] = field(default_factory=list)
    losses: Tensor | None = None  # of each row, at the end
    logprobs: Tensor | None = None


class _Watch(L.Callback):
    def __init__(self, trained: Trained, batch: Any) -> None:
        self.trained = trained
        self.batch = batch

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        own = [whole(p.grad).flatten().double() for p in pl_module.policy.parameters() if p.grad is not None]
        self.trained.gradients.append(torch.cat(own))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.trained.losses, self.trained.logprobs = pl_module.row_losses(self.batch)


def train(case: Case, strategy: str = "", world: int = 1) -> Trained:
    """Train in this process; with a strategy, as one of several ranks."""
    policy = build(case.policy)
    policy.max_tokens_per_micro_batch = case.tokens
    batch = random_batch(max_new_tokens=12)
    batch = replace(batch, groups=torch.arange(len(batch)) // 4)
    if case.rows is not None:
        batch = batch.select(torch.tensor(case.rows))
    trained = Trained(weights=[vector(policy)])
    for _ in range(case.rounds):
        _fit(case, policy, batch, strategy, world, trained)
        trained.weights.append(vector(policy))
    return trained


def _fit(case: Case, policy: Policy, batch: Any, strategy: str, world: int, trained: Trained) -> None:
    registry = "consolidations" if case.algorithm == "rft" else "algorithms"
    module = find_class(registry, case.algorithm, PolicyModule)(**{"lr": 1e-3, "warmup_steps": 0, **case.settings})
    metrics = StepMetrics()
    data = [step_of(batch), step_of(batch, 1)] if isinstance(module, Algorithm) else [batch, batch]
    callbacks = [GradientNormMonitor(GradientConfig()), _Watch(trained, batch), metrics]
    kwargs: dict[str, Any] = {"precision": case.precision}
    if strategy:
        strategies = {
            "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
            "fsdp2": lambda: FSDP2Strategy(process_group_backend="gloo"),
            "hsdp": lambda: FSDP2Strategy(replicas=2, process_group_backend="gloo"),
        }
        kwargs |= {"strategy": strategies[strategy](), "devices": world}
    fit(module, policy, data, callbacks, **kwargs)
    trained.metrics += [
        {name: value for name, value in step.items() if not name.startswith("time/")} for step in metrics.steps
    ]


def train_on_rank(rank: int, case: Case, strategy: str, world: int) -> Trained:
    return train(case, strategy, world)


class Resumable:
    """Training data from a list, which goes on after a resume where a checkpoint was written."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.position = 0

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        while self.position < len(self.items):
            self.position += 1
            yield self.items[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class _SaveAfterFirst(L.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            trainer.save_checkpoint(self.path)


def resume_on_rank(rank: int, kind: str, world: int, path: Path) -> tuple[Tensor, Tensor]:
    """The weights after three training steps, and after a resume from a checkpoint behind the first of them."""
    batch = random_batch(max_new_tokens=12)
    found = []
    for callbacks, fit_kwargs in (([_SaveAfterFirst(path)], {}), ([], {"ckpt_path": path, "weights_only": True})):
        policy = build(kind)
        module = GRPO(lr=1e-3, warmup_steps=0, kl_beta=0.1)
        data = Resumable([step_of(batch, index) for index in range(3)])
        strategy = FSDP2Strategy(process_group_backend="gloo")
        fit(module, policy, data, callbacks, fit_kwargs, strategy=strategy, devices=world)
        found.append(vector(policy))
    return found[0], found[1]
