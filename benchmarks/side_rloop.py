"""Our side of a comparison: `rloop-fit` with a gate in its training loop.

    python -m benchmarks.side_rloop --policy.model FOLDER ...       the options of `rloop-fit`

The run is exactly that of `rloop-fit`: parsed, prepared and run by the same calls. The gate is an additional callback.
The parts of a step are measured from outside, and only in steps that request it.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer

from benchmarks.measure import Gate
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import RolloutStep


class GateCallback(L.Callback):
    """Passes the gate at the end of each rollout step. The next step is generated after it."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.gate.open()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: RolloutStep, batch_idx: int
    ) -> None:
        lengths = batch.batch.lengths.double()
        metrics = pl_module.step_metrics
        self.gate.pass_step(
            more=batch_idx + 1 < int(trainer.num_training_batches),
            generated_tokens=metrics["rollout/generated_tokens"],
            mean_length=metrics["rollout/length_tokens"],
            reward=metrics["rollout/reward_mean"],
            generate_s=metrics["time/generate_s"],
            update_s=metrics["time/update_s"],
            trained_tokens=float(lengths.sum()),
            attended=float((lengths * (lengths + 1) / 2).sum()),
        )


def watch_parts(gate: Gate, engine: RolloutEngine, reward: Reward) -> None:
    """Make the gate's clock measure the parts of a step."""
    clock = gate.parts
    clock.watch(type(engine), "generate", "generate")
    clock.watch(type(reward), "__call__", "reward")
    # Without gradients, it also checks one row after each step, for NaN.
    clock.watch(Policy, "logprobs", lambda: "forward" if torch.is_grad_enabled() else "old logprobs")
    clock.watch(PolicyModule, "manual_backward", "backward")
    clock.watch(LightningOptimizer, "step", "optimizer")  # includes the gradient's norm and clipping


def main() -> None:
    cli = RLoopCLI(sys.argv[1:])
    runner, policy = cli.prepare()
    gate = Gate(runner.device.type)
    watch_parts(gate, cli.parts.engine, cli.parts.reward)

    def make_trainer(**kwargs: Any) -> L.Trainer:
        return cli.make_trainer(**{**kwargs, "callbacks": [GateCallback(gate), *kwargs.get("callbacks", [])]})

    runner.make_trainer = make_trainer
    with cli.claim:
        runner.run(policy, claim=cli.claim)


if __name__ == "__main__":
    main()
