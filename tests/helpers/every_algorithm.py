"""Every registered algorithm and consolidation, with the settings that its gradient hangs on, and one update of each.

A new one is here by its registry line, with its defaults; what else it can do wants a line in `SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from builders import GradientRecorder, StepMetrics, UpdateOnlyDAPO, fit, gradients, make_policy, random_batch
from slow_updates import MoveTo, moved_policy, step_of, with_engine_logprobs, with_old_logprobs
from torch import Tensor

from rloop_lightning.algorithms import ALGORITHMS, CONSOLIDATIONS
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.distil import Distil
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.cli.registry import find_class
from rloop_lightning.types import LossOutput, RolloutBatch

# Three groups of 4, 4 and 3 rows: 42 tokens in the loss on a first rank, 8 on a second.
LENGTHS = ((3, 5), (1, 9), (6, 1), (4, 12), (2, 2), (5, 7), (3, 3), (7, 4), (2, 6), (3, 1), (1, 1))
GROUPS = (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2)
WITHOUT_LOSS = 2
REPLAYED = (3, 10)

BY_TOKEN = {"importance_correction": "truncate", "importance_cap": 1.2}
BY_ROLLOUT = {"importance_correction": "mask", "importance_level": "sequence", "importance_cap": 3.0}

IN_LOSS = {"kl_beta": 0.5, "kl_estimator": "k2"}
IN_REWARD = {"kl_beta": 0.5, "kl_estimator": "k1", "kl_in": "reward"}
ENTROPY = {"entropy_coef": 0.3}

SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cispo": {
        "low cap": {"clip_eps_high": 0.1},
        "k2, token weights, entropy": {**IN_LOSS, **BY_TOKEN, **ENTROPY, "clip_eps_high": 0.1},
    },
    "dapo": {"dual clip": {"dual_clip": 1.5}, "k2, token weights, entropy": {**IN_LOSS, **BY_TOKEN, **ENTROPY}},
    "dr-grpo": {"": {}, "k2, token weights, entropy": {**IN_LOSS, **BY_TOKEN, **ENTROPY}},
    "grpo": {"": {}, "k2 in the loss": IN_LOSS, "k1 in the reward": IN_REWARD, "entropy": ENTROPY},
    "gspo": {
        "wide": {"clip_eps_low": 0.1, "clip_eps_high": 0.1},
        "k1 in the reward, rollout weights, entropy": {**IN_REWARD, **BY_ROLLOUT, **ENTROPY},
    },
    "kl": {"k3": {"kl_beta": 0.5}},
    "maxrl": {"": {}, "k1 in the reward, token weights, entropy": {**IN_REWARD, **BY_TOKEN, **ENTROPY}},
    "minirl": {
        "": {},
        "length normalised": {"length_normalised": True},
        "k2, token weights, entropy": {**IN_LOSS, **BY_TOKEN, **ENTROPY, "importance_weight": False},
    },
    "replay": {"": {}, "k1 in the reward, token weights, entropy": {**IN_REWARD, **BY_TOKEN, **ENTROPY}},
    "rft": {"": {}, "k3": {"kl_beta": 0.5}, "sequence-mean": {"aggregation": "sequence-mean"}},
}

CASES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    f"{name} {what}".strip(): (registry, name, settings)
    for registry, names in (("algorithms", ALGORITHMS), ("consolidations", CONSOLIDATIONS))
    for name in names
    if issubclass(find_class(registry, name, object), PolicyModule)  # others train nothing
    for what, settings in SETTINGS.get(name, {"": {}}).items()
}


def make_case(case: str) -> PolicyModule:
    """The module of a case, at a learning rate that moves nothing."""
    registry, name, settings = CASES[case]
    whole = {"updates_per_step": 1} if registry == "algorithms" else {}
    module = find_class(registry, name, PolicyModule)(**{"lr": 1e-30, "weight_decay": 0.0, **whole, **settings})
    if isinstance(module, Distil):
        module.learn_from(make_policy())
    return module


def make_batch() -> RolloutBatch:
    """Off the policy, off the engine, with rows that are replayed, masked, and of groups that differ in size."""
    policy = moved_policy()
    carries = [row != WITHOUT_LOSS for row in range(len(LENGTHS))]
    batch = random_batch(LENGTHS, in_loss=carries, max_new_tokens=12)
    batch = replace(
        batch,
        replayed=torch.tensor([row in REPLAYED for row in range(len(LENGTHS))]),
        groups=torch.tensor(GROUPS),
    )
    return with_old_logprobs(with_engine_logprobs(batch, policy), policy)


def gradient_and_metrics(case: str, batch: RolloutBatch, *, max_tokens: int = 16384) -> tuple[Tensor, dict[str, float]]:
    """Of one training step through Lightning, whose mini-batch is the whole batch."""
    module, recorder, metrics = make_case(case), GradientRecorder(), StepMetrics()
    data = step_of(batch) if isinstance(module, Algorithm | Distil) else batch
    fit(module, make_policy(max_tokens=max_tokens), [data], [MoveTo(moved_policy()), recorder, metrics])
    (gradient,), (step,) = recorder.gradients, metrics.steps
    return gradient, {name: value for name, value in step.items() if not name.startswith("time/")}


class EveryAlgorithm(UpdateOnlyDAPO):
    """An update of every case on the same batch; leaves gradients and metrics of each process in a folder.

    One module for all, as starting the processes of a fit takes seconds.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(lr=1e-30, weight_decay=0.0, warmup_steps=0)
        self.folder = folder
        self.noted: dict[str, float] = {}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.cases = {case: make_case(case) for case in CASES}  # a dictionary: they are no parts of this module
        for module in self.cases.values():
            module.policy = self.policy
            module.record = self.note
            module.setup(stage)
            module.configure_model()
        self.policy.load_state_dict(moved_policy().state_dict())

    def note(self, metrics: Mapping[str, Any]) -> None:
        self.noted.update({name: float(value) for name, value in metrics.items()})

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        for case, module in self.cases.items():
            self.case, self.current, self.aggregation = case, module, module.aggregation
            self.noted = {}
            metrics = self.update(module.prepare(batch) if isinstance(module, Algorithm) else batch)
            self.note(metrics)
            torch.save(self.noted, self.folder / f"{case} metrics {self.global_rank}.pt")

    def scores(self, batch: RolloutBatch) -> Any:
        return self.current.scores(batch)

    def micro_batch_loss(self, scores: Any, batch: RolloutBatch) -> LossOutput:
        return self.current.micro_batch_loss(scores, batch)

    def loss_count(self, batch: RolloutBatch) -> Tensor:
        return self.current.loss_count(batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        torch.save(gradients(self.policy), self.folder / f"{self.case} gradient {self.global_rank}.pt")
