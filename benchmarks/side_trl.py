"""TRL's side of a comparison: GRPOTrainer with a gate in its training loop.

    python -m benchmarks.side_trl '{"model": ..., "data": ..., "data_settings": ..., "config": {...}}'

Weights, problems and reward are the same as on our side. Weights are float32, and `bf16` is TRL's own mixed precision.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.measure import Gate
from rloop_lightning.cli.registry import find_class
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.model.config import EMBEDDED_MODEL, embedded_model_path
from rloop_lightning.model.loading import load_tokenizer
from rloop_lightning.rewards.base import Reward


class GateCallback(TrainerCallback):
    """Passes the gate at the end of each rollout step, which consists of `updates` steps of TRL."""

    def __init__(self, gate: Gate, updates: int, trainer: GRPOTrainer) -> None:
        self.gate = gate
        self.updates = updates
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.gate.open()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.updates:
            return
        metrics = self.trainer._metrics["train"]
        mean_length = metrics["completions/mean_length"][-1]
        self.gate.pass_step(
            more=state.global_step < state.max_steps,
            generated_tokens=mean_length * args.per_device_train_batch_size * args.steps_per_generation,
            mean_length=mean_length,
            reward=metrics["reward"][-1],
        )


def make_trainer(request: dict[str, Any], gate: Gate | None) -> GRPOTrainer:
    """The trainer for a request. Without a gate it trains without waiting."""
    source: ProblemSource = find_class("data", request["data"], ProblemSource)(**request["data_settings"])
    reward: Reward = find_class("rewards", source.reward, Reward)()
    problems = {problem.id: problem for problem in source.train()}

    def reward_of(
        prompts: Sequence[str], completions: Sequence[str], problem_id: Sequence[str], **_: Any
    ) -> list[float]:
        return [scored.reward for scored in reward([problems[name] for name in problem_id], completions)]

    config = GRPOConfig(**request["config"])
    folder = str(embedded_model_path()) if request["model"] == EMBEDDED_MODEL else request["model"]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        processing_class=load_tokenizer(folder),
        reward_funcs=reward_of,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": p.prompt, "problem_id": p.id} for p in problems.values()]),
    )
    if gate is not None:
        updates = config.steps_per_generation // config.gradient_accumulation_steps
        trainer.add_callback(GateCallback(gate, updates, trainer))
    return trainer


def main() -> None:
    request = json.loads(sys.argv[1])
    make_trainer(request, Gate("cpu" if request["config"]["use_cpu"] else "cuda")).train()


if __name__ == "__main__":
    main()
