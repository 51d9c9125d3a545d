"""The outer loop: rounds of exploration and consolidation in a run folder, from which a killed run resumes.

A run is a list of stages that depends on the configuration only (`state.plan`). A stage is one phase: a fresh Trainer
with one `Trainer.fit`, or an evaluation. After a kill at any moment, the run resumes from the newest checkpoint of the
current stage. Repeated work writes the same files with the same content. See folder.py for the layout of the folder,
resume.py for damaged files, weights.py for the loaded weights, and trainer.py for the training of a phase.
"""

from __future__ import annotations

import copy
import logging
import signal
import uuid
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rloop_lightning.callbacks.capture import RolloutCapture
from rloop_lightning.callbacks.evaluation import InsideEvaluation
from rloop_lightning.callbacks.progress import PhaseProgress
from rloop_lightning.errors import Stopped
from rloop_lightning.evaluation.evaluator import Evaluator
from rloop_lightning.evaluation.record import drop_inside_records
from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.expert_set import read_expert_set
from rloop_lightning.rollouts.filter import build_expert_set
from rloop_lightning.rollouts.sampler import GroupSampler
from rloop_lightning.rollouts.stream import ExpertStream, RolloutStream
from rloop_lightning.run.evaluation import PolicyEvaluation
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.handover import select_stage, write_results
from rloop_lightning.run.loggers import RunLoggers
from rloop_lightning.run.metrics_csv import column
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.policies import drop_policies
from rloop_lightning.run.resume import check_pool, last_good_state
from rloop_lightning.run.state import Budget, LoopState, Stage, StageOutcome, plan
from rloop_lightning.run.trainer import MakeTrainer, PhaseTrainer, new_trainer
from rloop_lightning.run.weights import Weights
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.checksums import damaged_files
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.terminal import printable
from rloop_lightning.types import Rollout

_log = logging.getLogger(__name__)


class LoopRunner:
    """Runs the rounds of a run folder, from the start or from where it stopped.

    Args:
        out: the run folder.
        parts: the parts of the run.
        make_trainer: makes a new Trainer for a phase from keyword arguments.
        loggers: the loggers of the run; by default metrics.csv and TensorBoard.

    Raises:
        ValueError: the Trainer has settings that the loop does not support.
    """

    def __init__(
        self, out: Path, parts: Parts, make_trainer: MakeTrainer = L.Trainer, loggers: RunLoggers | None = None
    ) -> None:
        self.out = out
        self.folder = RunFolder(out)
        self.parts = parts
        self.make_trainer = make_trainer
        self.sampler = GroupSampler(parts.engine, parts.reward)
        self.stages = plan(parts.loop.rounds, consolidates=parts.consolidation is not None)
        self.loggers = loggers or RunLoggers(self.folder)  # before the run drops rows of metrics.csv
        trainer = new_trainer(make_trainer, logger=False)
        self.device = trainer.strategy.root_device
        self.mixed_precision = torch.bfloat16 if trainer.precision == "bf16-mixed" else None

    def run(self, policy: Policy, signals: StopSignals | None = None) -> LoopState:
        """Run all remaining stages, save the final policy, and write results table and plots.

        Args:
            policy: the base policy. The run trains its weights in place.
            signals: signals that stop the run: training after the current step, an evaluation at once.

        Raises:
            RunFault: too few groups to train on, weights that are not finite, or a damaged file.
            OSError: a file can't be written.
            StateError: the run can't be resumed, because its state is damaged.
            Stopped: a signal stopped the run.
            ValueError: the problems can't be rendered for this policy.
        """
        self.signals = signals or StopSignals()
        with self.signals.deferred():
            try:
                return self._run(policy)
            except SIGTERMException as error:  # Lightning's own, after a step that ended the phase
                raise Stopped(signal.SIGTERM) from error

    def _run(self, policy: Policy) -> LoopState:
        state = last_good_state(self.folder, self.stages) or LoopState(uuid.uuid4().hex)
        self.policy = policy
        policy.mixed_precision = self.mixed_precision
        self.parts = self.parts.rendered(policy)
        self.evaluator = Evaluator(self.sampler, self.parts.evaluation_sets, self.parts.evaluation, self.parts.seed)
        self._announce_problems()
        self.weights = Weights(policy, self.folder)
        self.sampler.engine.bind(policy)
        self.phases = PhaseTrainer(self.make_trainer, self.folder, self.parts, state.run_id, self.signals, self.loggers)
        sets = self.parts.sets_between
        self.evaluation = PolicyEvaluation(self.evaluator, sets, self.folder, self.loggers, self.signals)
        self.folder.save_state(state)
        while state.stages_done < len(self.stages) and not state.stopped:
            self.signals.check()
            stage = self.stages[state.stages_done]
            if stage.phase != "evaluate":
                state.save(self.folder.state_before(stage))
            # Our code never reads the global random state. User code that does gets the same state after a resume.
            L.seed_everything(derive_seed(self.parts.seed, stage.name, stage.phase) % 2**32, verbose=False)
            started = perf_counter()
            outcome = self._run_stage(stage, state)
            outcome = replace(outcome, spent=outcome.spent + Budget(seconds=perf_counter() - started))
            state = state.after(self.stages, outcome)
            write_results(self.folder, self.parts, self.stages, state, after=stage.phase)
            self.folder.save_state(state)
            self._drop_checkpoints(stage)
            drop_policies(self.folder, self.parts, self.stages[: state.stages_done], state)
        return self._hand_over(state)

    def _announce_problems(self) -> None:
        """Log the number of problems, those left out, and the first prompt as the policy sees it."""
        for note in self.parts.data.notes():
            _log.info(note)
        _log.info(f"first prompt: {printable(self.parts.problems[0].prompt, limit=2000)}")

    def _run_stage(self, stage: Stage, state: LoopState) -> StageOutcome:
        if stage.phase == "explore":
            return self._explore(stage, state)
        if stage.phase == "consolidate":
            return self._consolidate(stage, state)
        return self._evaluate(stage, state)

    def _explore(self, stage: Stage, state: LoopState) -> StageOutcome:
        """Train phi: the round's initial policy, trained by the algorithm. Every rollout goes to the pool."""
        loop = self.parts.loop
        self.weights.use(self.folder.initial_policy(stage))
        algorithm = copy.deepcopy(self.parts.algorithm)
        algorithm.policy = self.policy
        algorithm.pools = self.folder.pools(stage)
        seed = derive_seed(self.parts.seed, "explore", stage.round)
        stream = RolloutStream(
            self.sampler,
            algorithm,
            self.parts.problems,
            problems_per_step=loop.problems_per_step,
            rollouts_per_problem=loop.rollouts_per_problem,
            steps=loop.explore_steps * (1 if self.parts.consolidation else loop.rounds),
            seed=seed,
        )
        pool = self.folder.pool(stage)
        pool.drop_after(self.folder.steps_done(stage))
        callbacks: list[Callback] = [
            RolloutCapture(
                pool,
                self.parts.capture,
                self.sampler,
                self.parts.problems,
                round=stage.round,
                run_id=state.run_id,
                seed=seed,
            )
        ]
        if self.parts.evaluation.every_n_steps and self.parts.sets_inside:
            every, sets = self.parts.evaluation.every_n_steps, self.parts.sets_inside
            records = self.folder.evaluations(stage)
            drop_inside_records(records, after=self.folder.steps_done(stage))
            callbacks.append(InsideEvaluation(self.evaluator, sets, every, records=records, round=stage.round))
        optimizer_steps, skipped = self.phases.fit(algorithm, stream, stage, self._progress(stage, state), callbacks)
        self.weights.save(self.folder.policy(stage))
        ended_early = f"{self._title(stage)} ended after {stream.position} of {stream.steps} rollout steps"
        norms = column(self.folder.metrics, stage.round, stage.phase, "grad/norm_preclip_max")
        return StageOutcome(
            spent=Budget(stream.position, optimizer_steps, stream.cost.rollouts, stream.cost.tokens),
            results={stage.name: {"grad/norm_preclip_max": max(norms, default=float("nan"))}},
            note="; ".join(filter(None, [ended_early if stream.position < stream.steps else "", skipped])),
        )

    def _consolidate(self, stage: Stage, state: LoopState) -> StageOutcome:
        """Train theta_{k+1}: theta_k, not phi, fine-tuned on the expert set of the round's pool."""
        assert self.parts.consolidation is not None
        seed = derive_seed(self.parts.seed, "consolidate", stage.round)
        expert_file, policy_folder = self.folder.expert_set(stage), self.folder.policy(stage)
        with self.signals.at_once():  # a resume rebuilds the expert set anyway
            check_pool(self.folder, stage)
            stats = build_expert_set(self.folder.pool(stage), expert_file, self.parts.filter, seed)
        results = {stage.name: {key: float(value) for key, value in stats.metrics().items()}}
        _log.info(
            f"round {stage.round + 1}: expert set of {stats.kept} rollouts of {stats.hard_problems} problems "
            f"({stats.successes:,} successes among {stats.rollouts_seen:,} rollouts)"
        )
        self.weights.use(self.folder.initial_policy(stage))
        if stats.kept == 0:
            self.weights.save(policy_folder)
            stops = self.parts.loop.on_empty_expert_set == "stop"
            what_now = "the run stops here" if stops else "the next round begins where this one began"
            note = f"round {stage.round + 1}: the expert set is empty (--filter.max_success_rate); {what_now}"
            _log.warning(note)
            return StageOutcome(results=results, note=note, stops=stops)
        module = copy.deepcopy(self.parts.consolidation)
        module.policy = self.policy
        rollouts = self._expert_rollouts(expert_file)
        stream = ExpertStream(
            rollouts,
            [module.weight(rollout.reward) for rollout in rollouts],
            rollouts_per_update=module.rollouts_per_update,
            epochs=module.epochs,
            seed=seed,
        )
        optimizer_steps, skipped = self.phases.fit(module, stream, stage, self._progress(stage, state))
        self.weights.save(policy_folder)
        return StageOutcome(Budget(optimizer_steps=optimizer_steps), results, note=skipped)

    def _evaluate(self, stage: Stage, state: LoopState) -> StageOutcome:
        """Measure pass@k of a policy on every evaluation set."""
        self._use(stage)
        self.policy.to(self.device)
        expert = state.results.get(stage.name, {}) if stage.which == "consolidated" else {}
        metrics = self.evaluation(stage, f"{self._title(stage)} {stage.which}", known=expert)
        return StageOutcome(results={stage.name: metrics})

    def _hand_over(self, state: LoopState) -> LoopState:
        """Save the selected policy to final/, and write the results table and the plots."""
        selected = select_stage(self.folder, self.parts, self.stages[: state.stages_done], state)
        if state.selected != selected.name or damaged_files(self.folder.final):
            self._use(selected)
            self.policy.save(self.folder.final)
            state = replace(state, selected=selected.name)
            self.folder.save_state(state)
        drop_policies(self.folder, self.parts, self.stages[: state.stages_done], state)
        write_results(self.folder, self.parts, self.stages, state)
        self.signals.check("the run is complete")
        return state

    def _use(self, stage: Stage) -> None:
        """Load the policy that an evaluation measures."""
        self.weights.use(None if stage.which == "base" else self.folder.policy(stage))

    def _progress(self, stage: Stage, state: LoopState) -> PhaseProgress:
        """The phase's progress bar. It starts with the last pass@1 on the first set evaluated inside phases."""
        name = next(iter(self.parts.sets_inside), "")
        known = [result[key] for result in state.results.values() if (key := f"eval/{name}/pass@1") in result]
        return PhaseProgress(self._title(stage), known[-1] if known else None)

    def _drop_checkpoints(self, stage: Stage) -> None:
        """Delete checkpoints of complete phases: their policies are saved, and checkpoints include optimizer state.

        Those of an exploration stay until its pool has been read. If a shard is damaged, the run resumes from them.
        """
        awaited = "evaluate" if self.parts.consolidation is None else "consolidate"
        if stage.phase == awaited:
            for phase in ("explore", "consolidate"):
                for path in self.folder.checkpoints(replace(stage, phase=phase)):
                    path.unlink()

    def _title(self, stage: Stage) -> str:
        rounds = self.parts.loop.rounds if self.parts.consolidation else 1
        return f"round {stage.round + 1}/{rounds} {stage.phase}"

    def _expert_rollouts(self, expert_file: Path) -> list[Rollout]:
        """The expert set as rollouts, with prompts as the policy sees them."""
        prompts = {problem.id: np.array(self.policy.encode(problem.prompt)) for problem in self.parts.problems}
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
