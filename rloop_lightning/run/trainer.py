"""The Trainer of a phase: made new from the user's flags and the loop's settings, checked, and run once."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.fsdp2 import FSDP2Strategy
from rloop_lightning.algorithms.optimizer import is_of_bitsandbytes
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.callbacks.checkpoint import PhaseCheckpoint
from rloop_lightning.callbacks.faulty_rollouts import FaultyRollouts
from rloop_lightning.callbacks.gradient_norm import GradientNormMonitor
from rloop_lightning.callbacks.phase_record import RunSteps, StepRecord
from rloop_lightning.callbacks.progress import PhaseProgress
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.rollouts.expert_stream import ExpertStream
from rloop_lightning.rollouts.stream import RolloutStream
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.leader import BeginPhase, LeadersCheckpoints, Leading, LedStream, SaveCheckpoint
from rloop_lightning.run.loggers import RunLoggers
from rloop_lightning.run.metrics_csv import column
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.state import Stage
from rloop_lightning.system.ranks import ALONE, Ranks
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.terminal import one_line

MakeTrainer = Callable[..., L.Trainer]
"""Makes a new Trainer from keyword arguments."""


_STRATEGIES = ("auto", "ddp", "fsdp2", "hsdp")
_SHARDS = re.compile(r"fsdp|hsdp|ModelParallel|deepspeed", re.IGNORECASE)
_PRECISIONS = (None, 32, "32", "32-true", "bf16", "bf16-mixed")
_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}

# They count epochs, of which a phase has one, or change what the loop decides: optimizer, weights, checkpoints.
_OTHER_LOOPS = (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    SaveConfigCallback,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)


def trainer_faults(settings: Mapping[str, Any], *, plans: bool = False) -> list[str]:
    """Why the loop does not take these arguments of a Trainer, one message each, before one is made of them.

    Args:
        settings: the arguments.
        plans: whether they are for a memory plan only, which needs no GPU.
    """
    wrong = [
        f"{name} is set: Lightning would take it for an option; unset it, and give --trainer.{name[11:].lower()}"
        for name in sorted(os.environ)
        if name.startswith("PL_TRAINER_")
    ]
    accelerator = settings.get("accelerator", "auto")
    if isinstance(accelerator, str) and accelerator not in ("auto", "cpu", "gpu", "cuda"):
        wrong.append(f"--trainer.accelerator {one_line(accelerator)} is not supported; take cpu or gpu")
    if accelerator in ("gpu", "cuda") and not plans and not torch.cuda.is_available():
        wrong.append(
            f"--trainer.accelerator {accelerator}: PyTorch {torch.__version__} finds no CUDA GPU; install a driver "
            "and a CUDA build of PyTorch, or take cpu"
        )
    strategy = settings.get("strategy", "auto")
    if isinstance(strategy, str) and strategy not in _STRATEGIES:
        wrong.append(
            f"--trainer.strategy {one_line(strategy)} is not supported: FSDP1 and DeepSpeed keep weights where "
            f"adapters, checkpoints and engines can't read them; take one of {', '.join(_STRATEGIES)}"
        )
    if settings.get("precision") not in _PRECISIONS:
        wrong.append(f"--trainer.precision {settings['precision']} is not supported; take 32-true or bf16-mixed")
    profiler = settings.get("profiler")
    if isinstance(profiler, str) and profiler not in _PROFILERS:
        wrong.append(f"--trainer.profiler {one_line(profiler)} is not known; take {', '.join(_PROFILERS)}")
    return wrong


def callback_faults(callbacks: Sequence[Callback]) -> list[str]:
    """Why the loop does not take these callbacks of the user, one message each."""
    return [
        f"--trainer.callbacks: {type(one).__name__} can't work here: a phase is one epoch with manual optimization, "
        "and the loop keeps weights and checkpoints; leave it out"
        for one in callbacks
        if isinstance(one, _OTHER_LOOPS)
    ]


def profiler_of(name: str, folder: Path) -> Profiler:
    """The profiler of a short name. It writes to a folder, as Lightning's own log is not shown."""
    return _PROFILERS[name](dirpath=folder, filename="profile")


def does_shard(strategy: Any) -> bool:
    """Whether a strategy, or what --trainer.strategy says, shards weights."""
    return _SHARDS.search(_strategy_name(strategy)) is not None


def _strategy_name(strategy: Any) -> str:
    return strategy if isinstance(strategy, str) else str(getattr(strategy, "class_path", type(strategy).__name__))


def sharding_faults(strategy: Any, policy: PolicyConfig, modules: Sequence[PolicyModule]) -> list[str]:
    """What bitsandbytes can't shard, one message each, if the strategy would shard weights."""
    name = _strategy_name(strategy)
    if not does_shard(strategy):
        return []
    advice = f"can't be sharded (--trainer.strategy {one_line(name)}); leave --trainer.strategy at auto"
    wrong = []
    if policy.quantization != "none":
        wrong.append(f"--policy.quantization {policy.quantization}: weights in 4 bits {advice}")
    for module in modules:
        if is_of_bitsandbytes(module.optimizer):
            what = "moments in 8 bits" if "8bit" in module.optimizer else "the moments of bitsandbytes"
            wrong.append(f"{module.flag}.optimizer {module.optimizer}: {what} {advice}")
    return wrong


def strategy_of(name: Any, nodes: int) -> Any:
    """The strategy of one of our short names; any other as it is.

    Args:
        nodes: machines. `hsdp` shards within each, and replicates between them.
    """
    return FSDP2Strategy(replicas=nodes if name == "hsdp" else 1) if name in ("fsdp2", "hsdp") else name


def new_trainer(make_trainer: MakeTrainer, ranks: Ranks = ALONE, **kwargs: Any) -> L.Trainer:
    """A Trainer for one phase.

    Args:
        make_trainer: makes it.
        ranks: the processes that train together.
        kwargs: its arguments.

    Raises:
        ValueError: it has settings that the loop does not support.
    """
    trainer = make_trainer(
        max_epochs=1,  # a phase is one pass over its stream
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        plugins=[LeadersCheckpoints(ranks)] if ranks.several else None,
        **kwargs,
    )
    if (processes := trainer.num_devices * trainer.num_nodes) != ranks.size:
        raise ValueError(
            f"--trainer.devices x --trainer.num_nodes is {processes}, and the job has {ranks.size} processes; "
            f"take {ranks.size} in all"
        )
    if (kind := trainer.strategy.root_device.type) not in ("cpu", "cuda"):
        raise ValueError(f"--trainer.accelerator: {kind} is not supported; take cpu or gpu")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | FSDP2Strategy):
        raise ValueError(f"--trainer.strategy: take one of {', '.join(_STRATEGIES)}")
    if isinstance(trainer.strategy, FSDP2Strategy) and not ranks.several:
        raise ValueError("--trainer.strategy fsdp2 and hsdp shard over processes; give --trainer.devices N")
    if trainer.precision not in _PRECISIONS:
        raise ValueError(f"--trainer.precision {trainer.precision} is not supported; take 32-true or bf16-mixed")
    return trainer


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Args:
        optimizer_steps: those made, without skipped ones.
        note: a note on skipped ones.
        earlier_s: wall-clock time of the phase up to the checkpoint that the fit went on from, seconds.
    """

    optimizer_steps: int
    note: str
    earlier_s: float


@dataclass(frozen=True)
class PhaseTrainer:
    """Trains the modules of a run's phases.

    Args:
        make_trainer: makes the Trainer of a phase.
        folder: the run folder.
        parts: the parts of the run.
        run_id: id of the run.
        signals: the signals that stop the run.
        loggers: the loggers of the run.
        ranks: the processes that train together.
    """

    make_trainer: MakeTrainer
    folder: RunFolder
    parts: Parts
    run_id: str
    signals: StopSignals
    loggers: RunLoggers
    ranks: Ranks = ALONE

    def fit(
        self,
        module: PolicyModule,
        stream: RolloutStream | ExpertStream,
        stage: Stage,
        progress: PhaseProgress,
        callbacks: Sequence[Callback] = (),
    ) -> Fitted:
        """Run one fit with a new Trainer, from the phase's newest checkpoint if there is one."""
        saved = self.folder.checkpoints(stage)
        faults = FaultyRollouts(self.folder.faults(stage), round=stage.round, run_id=self.run_id)
        rollouts = stream.rollouts if isinstance(stream, ExpertStream) else ()
        every, log = self.parts.loop.checkpoint_every_n_steps, self.loggers.phase(stage)
        checkpoint = PhaseCheckpoint(
            self.folder.checkpoint_folder(stage),
            every,
            self.signals,
            before_saving=lambda path: self.ranks.send(SaveCheckpoint(str(path))),
            saved=self.folder.checkpoint_saved,
            ranks=self.ranks,
        )
        trainer = new_trainer(
            self.make_trainer,
            self.ranks,
            default_root_dir=self.folder.phase(stage),
            logger=log.loggers,
            callbacks=[
                *callbacks,
                GradientNormMonitor(self.parts.gradient, faults, rollouts),
                progress,
                StepRecord(log),
                checkpoint,
                *([Leading(self.ranks, self.signals)] if self.ranks.several else []),
            ],
        )
        newest = saved[-1] if saved else None
        self.ranks.send(
            BeginPhase(
                explores=isinstance(module, Algorithm),
                steps=len(stream),
                staleness=self.parts.loop.staleness,
                checkpoint=None if newest is None else str(newest),
            )
        )
        led = LedStream(stream, self.ranks) if self.ranks.several else stream
        # Before the user's own. Lightning sets the attribute where type checkers don't see it.
        trainer.callbacks.insert(0, RunSteps(log.run_step))  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            # The policy stays in eval mode on purpose: dropout would make its logprobs random.
            warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
            trainer.fit(module, train_dataloaders=led, ckpt_path=newest, weights_only=True)
        skipped = int(sum(column(self.folder.metrics, stage.round, stage.phase, "grad/skipped_updates")))
        note = f"{progress.title}: {skipped} optimizer steps skipped; their rollouts are in {faults.folder}"
        return Fitted(trainer.global_step - skipped, note if skipped else "", checkpoint.earlier_s)
