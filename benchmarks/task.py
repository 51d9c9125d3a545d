"""The task of both sides of a comparison, as flags of `rloop-fit` and as settings of TRL's GRPOTrainer.

`OURS` and `TRL` hold the settings that a side may choose: its fastest ones for a device. `Task` fixes all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.options import Options

_CPU = {"policy.max_tokens_per_micro_batch": 4096, "engine.max_rows": 1024}
_CUDA = {"policy.max_tokens_per_micro_batch": 65_536, "engine.max_rows": 1024}

OURS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cpu": {
        "fp32": {**_CPU, "trainer.precision": "32-true"},
        "bf16 update": {**_CPU, "trainer.precision": "bf16-mixed"},
        "bf16": {**_CPU, "trainer.precision": "bf16-mixed", "engine.dtype": "bfloat16"},
    },
    "cuda": {
        "bf16": {**_CUDA, "trainer.precision": "bf16-mixed", "engine.dtype": "bfloat16"},
        "bf16 weights": {**_CUDA, "policy.dtype": "bfloat16"},
    },
}
"""By device and variant: the flags of `rloop-fit` that a user would choose for speed."""

TRL: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cpu": {
        "fp32": {"bf16": False, "pieces": 1},
        "bf16": {"bf16": True, "pieces": 1},
        "fp32, in 8 pieces": {"bf16": False, "pieces": 8},
        "bf16, in 8 pieces": {"bf16": True, "pieces": 8},
    },
    "cuda": {
        "bf16, in 8 pieces": {"bf16": True, "pieces": 8},
        "bf16, in 32 pieces": {"bf16": True, "pieces": 32},
    },
}
"""By device and variant: precision, and the number of pieces in which a mini-batch passes through the model."""


@dataclass(frozen=True)
class Task:
    """A training task that any trainer can do.

    Args:
        model: Hugging Face folder, or `countdown` for the embedded policy.
        data: class path or short name of the problem set.
        data_settings: arguments of the problem set.
        problems_per_step: groups per rollout step.
        rollouts_per_problem: rollouts per group.
        max_new_tokens: completion length limit, tokens.
        updates_per_step: optimizer steps per rollout step.
        lr: constant learning rate.
        seed: seed of all randomness.
    """

    model: str
    data: str
    data_settings: Mapping[str, Any]
    problems_per_step: int = 32
    rollouts_per_problem: int = 8
    max_new_tokens: int = 64
    updates_per_step: int = 1
    lr: float = 1e-5
    seed: int = 0

    @property
    def rollouts_per_step(self) -> int:
        return self.problems_per_step * self.rollouts_per_problem

    def shared_text(self) -> str:
        """The settings of all sides, for a table's notes."""
        return (
            f"{self.problems_per_step} problems x {self.rollouts_per_problem} rollouts, at most {self.max_new_tokens} "
            f"new tokens, {self.updates_per_step} optimizer step(s) a rollout step, lr {self.lr:g} constant, "
            "temperature 1, clip 0.2 / 0.28, AdamW 0.9 / 0.999, weight decay 0.01, gradient norm clipped to 1"
        )

    def rloop_flags(self, device: str, chosen: Mapping[str, Any], steps: int, out: Path) -> list[str]:
        """The command line of `rloop-fit` for `steps` rollout steps: exploration only, without checkpoints."""
        flags = {
            "policy.model": self.model,
            "data": self.data,
            **{f"data.{name}": value for name, value in self.data_settings.items()},
            "engine.max_new_tokens": self.max_new_tokens,
            "algo": "dapo",
            "algo.dynamic_sampling": "false",  # TRL has none, so both train on all rollouts
            "algo.updates_per_step": self.updates_per_step,
            "algo.lr": self.lr,
            "algo.warmup_steps": 0,
            "algo.weight_decay": 0.01,
            "consolidate": "none",
            "loop.rounds": 1,
            "loop.explore_steps": steps,
            "loop.problems_per_step": self.problems_per_step,
            "loop.rollouts_per_problem": self.rollouts_per_problem,
            "loop.checkpoint_every_n_steps": 0,
            "eval.sets": "[]",
            "trainer.accelerator": "gpu" if device == "cuda" else "cpu",
            "trainer.enable_progress_bar": "false",
            "seed_everything": self.seed,
            "out": out,
            **chosen,
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    def trl_settings(self, device: str, chosen: Mapping[str, Any], steps: int, out: Path) -> dict[str, Any]:
        """Arguments of TRL's GRPOConfig for `steps` rollout steps."""
        pieces = min(chosen["pieces"], self.rollouts_per_step // self.updates_per_step)
        return {
            "output_dir": str(out),
            "loss_type": "dapo",
            "beta": 0.0,
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "num_generations": self.rollouts_per_problem,
            "max_completion_length": self.max_new_tokens,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "per_device_train_batch_size": self.rollouts_per_step // self.updates_per_step // pieces,
            "gradient_accumulation_steps": pieces,
            "steps_per_generation": self.updates_per_step * pieces,
            "max_steps": steps * self.updates_per_step,
            "learning_rate": self.lr,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "bf16": chosen["bf16"],
            "gradient_checkpointing": False,  # it would trade time for memory
            "use_cpu": device == "cpu",
            "dataloader_pin_memory": device == "cuda",
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": self.seed,
        }


def trl_request(task: Task, chosen: Mapping[str, Any], device: str, steps: int, out: Path) -> dict[str, Any]:
    """The request that side_trl.py reads."""
    config = task.trl_settings(device, chosen, steps, out)
    return {"model": task.model, "data": task.data, "data_settings": dict(task.data_settings), "config": config}


def variants(settings: Mapping[str, Mapping[str, Any]], options: Options) -> list[str]:
    """The variants of `OURS` or `TRL` for the device; at toy size, only the first."""
    names = list(settings[options.device])
    return names[:1] if options.toy else names
