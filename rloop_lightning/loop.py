"""The outer loop: rounds of exploration and consolidation, in a run folder that a killed run resumes from.

    runs/NAME/
      config.yaml  state.json  metrics.csv  results.md  plots/*.png
      round-0/explore/{checkpoints,logs,policy}         phi, the policy at the end of the exploration
      round-0/pool/*.parquet  round-0/expert.parquet    every rollout, and what the filter let through
      round-0/consolidate/{checkpoints,logs}
      round-0/policy/                                   theta_1, what the next round begins with
      final/                                            the policy that the run hands over, a plain Hugging Face folder

A run is a list of stages that the configuration alone decides (`state.plan`). A stage is one phase: a fresh Trainer and
one `Trainer.fit`, or an evaluation. Killed at any moment, a run goes on from the newest checkpoint of the stage it was
in; what it repeats it writes again, the same, under the same names.
"""

from __future__ import annotations

import copy
import logging
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from rloop_lightning.algorithms.base import Algorithm, Consolidation, PolicyModule
from rloop_lightning.atomic import derive_seed, write_text
from rloop_lightning.callbacks.capture import CaptureConfig, RolloutCapture
from rloop_lightning.callbacks.evaluation import InsideEvaluation
from rloop_lightning.callbacks.gradient_norm import GradientConfig, GradientNormMonitor
from rloop_lightning.callbacks.phase_record import PhaseCheckpoint, StepRecord, checkpoint_step, checkpoints
from rloop_lightning.callbacks.progress import PhaseProgress, open_bar
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.sampler import GroupSampler, SamplingCost
from rloop_lightning.data.stream import ExpertStream, RolloutStream
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.evaluation import EvaluationConfig, Evaluator
from rloop_lightning.filter import FilterConfig, build_expert_set, read_expert_set
from rloop_lightning.policy import Policy
from rloop_lightning.pool import RolloutPool
from rloop_lightning.report import PolicyResult, results_table, write_plots
from rloop_lightning.rewards.base import Reward
from rloop_lightning.run_metrics import RunMetrics, read_metrics
from rloop_lightning.state import Budget, LoopConfig, LoopState, Stage, StageOutcome, plan
from rloop_lightning.types import Rollout

_log = logging.getLogger(__name__)

_RESULT_STEPS = {"base": 0, "explored": 1, "consolidated": 2}
"""The step under which metrics.csv holds the evaluations of a round."""


class LoopRunner:
    """Runs the rounds of a run folder, from its beginning or from where it was left.

    Args:
        out: the run folder.
        load_policy: loads the base policy; called once, when everything else was checked.
        engine: generates rollouts.
        data: the problem sets.
        reward: scores completions.
        algorithm: explores; a copy of it trains in each round.
        consolidation: fine-tunes each round's initial policy on the expert set; None is plain reinforcement learning.
        config: rounds and sizes.
        filter: what the expert set takes.
        capture: extra rollouts for the pool.
        gradient: what is done about exploding gradients.
        evaluation: how policies are evaluated.
        seed: everything random derives from it.
        make_trainer: makes the Trainer of a phase from keyword arguments; never the same one twice.
    """

    def __init__(
        self,
        *,
        out: Path,
        load_policy: Callable[[], Policy],
        engine: RolloutEngine,
        data: ProblemSource,
        reward: Reward,
        algorithm: Algorithm,
        consolidation: Consolidation | None,
        config: LoopConfig,
        filter: FilterConfig,
        capture: CaptureConfig,
        gradient: GradientConfig,
        evaluation: EvaluationConfig,
        seed: int,
        make_trainer: Callable[..., L.Trainer] = L.Trainer,
    ) -> None:
        self.out = out
        self.load_policy = load_policy
        self.algorithm = algorithm
        self.consolidation = consolidation
        self.config = config
        self.filter = filter
        self.capture = capture
        self.gradient = gradient
        self.evaluation = evaluation
        self.seed = seed
        self.make_trainer = make_trainer
        self.sampler = GroupSampler(engine, reward)
        self.problems = data.train()
        self.evaluation_sets = data.evaluation()
        self.stages = plan(config.rounds, consolidates=consolidation is not None)

    def invalid(self) -> list[str]:
        """What can't work in this combination of settings, one message each."""
        config, problems = self.config, []
        problems += self.algorithm.invalid()
        problems += self.consolidation.invalid() if self.consolidation else []
        if config.rollouts_per_problem < self.algorithm.min_rollouts_per_problem:
            problems.append(
                f"--loop.rollouts_per_problem must be at least {self.algorithm.min_rollouts_per_problem} for "
                f"{type(self.algorithm).__name__}, got {config.rollouts_per_problem}"
            )
        rollouts = config.problems_per_step * config.rollouts_per_problem
        if self.algorithm.updates_per_step > rollouts:
            problems.append(
                f"--algo.updates_per_step {self.algorithm.updates_per_step} exceeds the {rollouts} rollouts of a step "
                "(--loop.problems_per_step x --loop.rollouts_per_problem)"
            )
        if config.problems_per_step > len(self.problems):
            available = f"the {len(self.problems)} training problems"
            problems.append(f"--loop.problems_per_step {config.problems_per_step} exceeds {available}")
        known = list(self.evaluation_sets)
        for flag, names in (("sets", self.evaluation.sets), ("sets_inside", self.evaluation.sets_inside)):
            problems += [
                f"--eval.{flag}: no set {name!r} in the data, it has {', '.join(known) or 'none'}"
                for name in names or []
                if name not in known
            ]
        if config.select.startswith("pass@") and "validation" not in self._sets_between():
            problems.append(f"--loop.select {config.select} needs an evaluation set named validation")
        problems += self.sampler.reward.unusable(list(chain(self.problems, *self.evaluation_sets.values())))
        return problems

    def run(self) -> LoopState:
        """Run all stages that are not done yet, hand over a policy, and write table and plots."""
        state_file = self.out / "state.json"
        state = LoopState.load(state_file) if state_file.exists() else LoopState(uuid.uuid4().hex, self.seed)
        state.save(state_file)
        self.run_id = state.run_id
        self.policy = self.load_policy()
        self.base = self.policy.source
        self._weights = self.base
        self.sampler.engine.bind(self.policy)
        self.evaluator = Evaluator(self.sampler, self.evaluation_sets, self.evaluation, self.seed)
        for stage in self.stages[state.stages_done :]:
            if state.stopped:
                break
            started = perf_counter()
            outcome = self._run_stage(stage, state)
            outcome = replace(outcome, spent=outcome.spent + Budget(seconds=perf_counter() - started))
            state = state.after(self.stages, outcome)
            state.save(state_file)
        return self._hand_over(state)

    def _run_stage(self, stage: Stage, state: LoopState) -> StageOutcome:
        if stage.phase == "explore":
            return self._explore(stage, state)
        if stage.phase == "consolidate":
            return self._consolidate(stage, state)
        return self._evaluate(stage)

    def _explore(self, stage: Stage, state: LoopState) -> StageOutcome:
        """phi: the round's initial policy, trained by the algorithm; every rollout on the way goes to the pool."""
        folder = self._folder(stage) / "explore"
        self._use(self._initial(stage))
        algorithm = copy.deepcopy(self.algorithm)
        algorithm.policy = self.policy
        seed = derive_seed(self.seed, "explore", stage.round)
        stream = RolloutStream(
            self.sampler,
            algorithm,
            self.problems,
            problems_per_step=self.config.problems_per_step,
            rollouts_per_problem=self.config.rollouts_per_problem,
            steps=self.config.explore_steps * (1 if self.consolidation else self.config.rounds),
            seed=seed,
        )
        pool = RolloutPool(self._folder(stage) / "pool")
        pool.drop_after(_steps_done(folder))
        callbacks: list[Callback] = [
            RolloutCapture(
                pool, self.capture, self.sampler, self.problems, round=stage.round, run_id=self.run_id, seed=seed
            )
        ]
        if self.evaluation.every_n_steps:
            callbacks.append(InsideEvaluation(self.evaluator, self._sets_inside(), self.evaluation.every_n_steps))
        optimizer_steps = self._fit(algorithm, stream, stage, folder, callbacks, state)
        self._save(folder / "policy")
        return StageOutcome(
            Budget(stream.position, optimizer_steps, stream.cost.rollouts, stream.cost.tokens),
            {stage.name: {"grad/norm_preclip_max": self._largest_gradient(stage)}},
        )

    def _consolidate(self, stage: Stage, state: LoopState) -> StageOutcome:
        """theta_{k+1}: theta_k, not phi, fine-tuned on what the filter lets through of the round's pool."""
        assert self.consolidation is not None
        folder = self._folder(stage)
        seed = derive_seed(self.seed, "consolidate", stage.round)
        expert_file = folder / "expert.parquet"
        stats = build_expert_set(RolloutPool(folder / "pool"), expert_file, self.filter, seed)
        self._use(self._initial(stage))
        results = {stage.name: {key: float(value) for key, value in stats.metrics().items()}}
        title = f"round {stage.round + 1}: expert set of {stats.kept} rollouts from {stats.hard_problems} problems"
        _log.info(f"{title} ({stats.successes:,} successes among {stats.rollouts_seen:,} rollouts)")
        if stats.kept == 0:
            self._save(folder / "policy")
            stops = self.config.on_empty_expert_set == "stop"
            message = (
                f"the expert set of round {stage.round + 1} is empty (--filter.max_success_rate, --filter.enabled)"
            )
            _log.warning(f"{message}; the policy that the round began with is kept")
            return StageOutcome(results=results, stopped=message if stops else "")
        module = copy.deepcopy(self.consolidation)
        module.policy = self.policy
        rollouts = self._expert_rollouts(expert_file)
        stream = ExpertStream(
            rollouts,
            [module.weight(rollout.reward) for rollout in rollouts],
            rollouts_per_update=module.rollouts_per_update,
            epochs=module.epochs,
            seed=seed,
        )
        optimizer_steps = self._fit(module, stream, stage, folder / "consolidate", [], state)
        self._save(folder / "policy")
        return StageOutcome(Budget(optimizer_steps=optimizer_steps), results)

    def _evaluate(self, stage: Stage) -> StageOutcome:
        """pass@k of a policy on every evaluation set; the same problems and seeds for all policies."""
        self._use(self._weights_of(stage.name))
        self.policy.to(self._trainer().strategy.root_device)
        metrics: dict[str, float] = {}
        sets = self._sets_between()
        with open_bar(total=len(sets), title=f"{self._title(stage)} {stage.which}", unit="set") as bar:
            for name in sets:
                metrics |= self.evaluator([name], SamplingCost())
                bar.set_postfix_str(f"{name} pass@1 {metrics[f'eval/{name}/pass@1']:.3f}", refresh=False)
                bar.update()
        step = _RESULT_STEPS[stage.which]
        record = RunMetrics(self.out / "metrics.csv", stage.round, "evaluate", keep_before=step)
        record.log_metrics(metrics, step=step)
        record.save()
        return StageOutcome(results={stage.name: metrics})

    def _fit(
        self,
        module: PolicyModule,
        stream: RolloutStream | ExpertStream,
        stage: Stage,
        folder: Path,
        callbacks: Sequence[Callback],
        state: LoopState,
    ) -> int:
        """One fresh Trainer and one fit, from the phase's newest checkpoint if there is one; gives optimizer steps."""
        done = _steps_done(folder)
        saved = checkpoints(folder / "checkpoints")
        known = [result["eval/test/pass@1"] for result in state.results.values() if "eval/test/pass@1" in result]
        trainer = self._trainer(
            default_root_dir=folder,
            logger=[
                TensorBoardLogger(folder, name="logs", version="", purge_step=done + 1),
                RunMetrics(self.out / "metrics.csv", stage.round, stage.phase, keep_before=done + 1),
            ],
            callbacks=[
                *callbacks,
                GradientNormMonitor(self.gradient),
                PhaseProgress(self._title(stage), known[-1] if known else None),
                StepRecord(),
                PhaseCheckpoint(folder / "checkpoints", self.config.checkpoint_every_n_steps),
            ],
        )
        with warnings.catch_warnings():
            # A policy stays in eval mode on purpose: dropout would make its logprobs random.
            warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
            trainer.fit(module, train_dataloaders=stream, ckpt_path=saved[-1] if saved else None, weights_only=True)
        return trainer.global_step

    def _trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = self.make_trainer(
            max_epochs=1,  # a phase is one pass over its stream
            enable_checkpointing=True,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            **kwargs,
        )
        if trainer.world_size > 1:
            raise ValueError(f"--trainer.devices: a run uses one device so far, got {trainer.world_size}")
        return trainer

    def _hand_over(self, state: LoopState) -> LoopState:
        """Save the selected policy to final/, and write the table and the plots."""
        selected = self._select(state)
        if state.selected != selected or not (self.out / "final").exists():
            self._use(self._weights_of(selected))
            self.policy.save(self.out / "final")
            state = replace(state, selected=selected)
            state.save(self.out / "state.json")
        results = [
            PolicyResult(name, self._shown(metrics), handed_over=name == selected)
            for name, metrics in state.results.items()
        ]
        write_text(self.out / "results.md", results_table(results) + "\n")
        write_plots(read_metrics(self.out / "metrics.csv"), self.out / "plots")
        return state

    def _shown(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """What the table shows: the validation set only where the choice was made on it."""
        chosen_on_it = self.config.select.startswith("pass@")
        return {name: v for name, v in metrics.items() if chosen_on_it or not name.startswith("eval/validation/")}

    def _select(self, state: LoopState) -> str:
        evaluated = [name for name, metrics in state.results.items() if any(key.startswith("eval/") for key in metrics)]
        if self.config.select == "explored":
            return [name for name in evaluated if name.endswith("explored")][-1]
        if self.config.select == "last":
            return evaluated[-1]
        k = 1 if self.config.select == "pass@1" else max(self.evaluation.k)
        return max(evaluated, key=lambda name: state.results[name][f"eval/validation/pass@{k}"])

    def _largest_gradient(self, stage: Stage) -> float:
        """Over the whole phase, the part before a resume included."""
        rows = read_metrics(self.out / "metrics.csv")
        return max(
            (
                row["grad/norm_preclip_max"]
                for row in rows
                if (row["round"], row["phase"]) == (stage.round, stage.phase) and "grad/norm_preclip_max" in row
            ),
            default=float("nan"),
        )

    def _use(self, folder: str) -> None:
        """Make the policy's weights those of a folder, unless they are."""
        if folder != self._weights:
            self.policy.load_weights(folder)
            self._weights = folder
        self.sampler.engine.sync()

    def _save(self, folder: Path) -> None:
        self.policy.save(folder)
        self._weights = str(folder)

    def _weights_of(self, name: str) -> str:
        """The folder of a policy by its name in the table."""
        stage = next(stage for stage in self.stages if stage.name == name)
        if stage.which == "base":
            return self.base
        return str(self._folder(stage) / ("explore/policy" if stage.which == "explored" else "policy"))

    def _initial(self, stage: Stage) -> str:
        """The folder of theta_k, the policy that a round begins with."""
        return str(self.out / f"round-{stage.round - 1}" / "policy") if stage.round else self.base

    def _folder(self, stage: Stage) -> Path:
        return self.out / f"round-{stage.round}"

    def _title(self, stage: Stage) -> str:
        rounds = self.config.rounds if self.consolidation else 1
        return f"round {stage.round + 1}/{rounds} {stage.phase}"

    def _sets_between(self) -> list[str]:
        return list(self.evaluation_sets) if self.evaluation.sets is None else self.evaluation.sets

    def _sets_inside(self) -> list[str]:
        return self._sets_between() if self.evaluation.sets_inside is None else self.evaluation.sets_inside

    def _expert_rollouts(self, expert_file: Path) -> list[Rollout]:
        """The expert set with its prompts, as the policy sees them."""
        prompts = {problem.id: np.array(self.policy.encode(problem.prompt)) for problem in self.problems}
        return [
            Rollout(
                problem_id=expert.problem_id,
                prompt_ids=prompts[expert.problem_id],
                completion_ids=expert.completion_ids,
                sampling_logprobs=expert.sampling_logprobs,
                text="",
                finish_reason="stop",
                reward=expert.reward,
                success=True,
            )
            for expert in read_expert_set(expert_file)
        ]


def _steps_done(folder: Path) -> int:
    """Training steps that the newest checkpoint of a phase has behind it."""
    saved = checkpoints(folder / "checkpoints")
    return checkpoint_step(saved[-1]) if saved else 0
