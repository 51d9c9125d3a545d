"""The outer loop: rounds of exploration and consolidation in a run folder, from which a killed run resumes.

A run is a list of stages that depends on the configuration only (`state.plan`). A stage is one phase: a fresh Trainer
with one `Trainer.fit`, or an evaluation. After a kill at any moment, the run resumes from the newest checkpoint of the
current stage. Repeated work writes the same files with the same content. See folder.py for the layout of the folder,
resume.py for damaged files, explore.py and consolidate.py for the phases that train, and weights.py for the loaded
weights.
"""

from __future__ import annotations

import logging
import signal
import uuid
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path
from time import perf_counter

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rloop_lightning.algorithms.fsdp2 import FSDP2Strategy
from rloop_lightning.errors import Stopped
from rloop_lightning.evaluation.evaluator import Evaluator
from rloop_lightning.model.policy import Policy
from rloop_lightning.run.base_policy import base_checksums
from rloop_lightning.run.claim import RunClaim
from rloop_lightning.run.consolidate import consolidate
from rloop_lightning.run.damage import damaged_records
from rloop_lightning.run.diagnosis import explaining
from rloop_lightning.run.edits import Resumption, restart_stage
from rloop_lightning.run.evaluation import PolicyEvaluation
from rloop_lightning.run.explore import explore
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.forecast import announce
from rloop_lightning.run.handover import save_final, select_stage
from rloop_lightning.run.leader import EndRun, SeedAll, sampler_of
from rloop_lightning.run.loggers import RunLoggers
from rloop_lightning.run.machine import other_machine, this_machine
from rloop_lightning.run.mending import complete_record, mend
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.policies import drop_policies
from rloop_lightning.run.report.renewed import renew_report
from rloop_lightning.run.results import ResultsWriter
from rloop_lightning.run.resume import clear, drop_checkpoints, restart, resume_point
from rloop_lightning.run.session import Session
from rloop_lightning.run.settings import config_faults, write_config
from rloop_lightning.run.state import Budget, LoopState, Stage, StageOutcome, plan
from rloop_lightning.run.trainer import MakeTrainer, PhaseTrainer, new_trainer
from rloop_lightning.run.versions import running_versions
from rloop_lightning.run.weights import Weights
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.checksums import damaged_files
from rloop_lightning.system.ranks import ALONE, Ranks
from rloop_lightning.system.signals import StopSignals

_log = logging.getLogger(__name__)


class LoopRunner:
    """Runs the rounds of a run folder, from the start or from where it stopped.

    Args:
        out: the run folder.
        parts: the parts of the run.
        make_trainer: makes a new Trainer for a phase from keyword arguments.
        loggers: the loggers of the run; by default metrics.csv and TensorBoard.
        resumed: what this resume does differently.
        ranks: the processes of the job, of which this one leads.

    Raises:
        ValueError: the Trainer has settings that the loop does not support.
    """

    def __init__(
        self,
        out: Path,
        parts: Parts,
        make_trainer: MakeTrainer = L.Trainer,
        loggers: RunLoggers | None = None,
        resumed: Resumption | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.out = out
        self.folder = RunFolder(out)
        self.parts = parts
        self.make_trainer = make_trainer
        self.resumed = resumed or Resumption()
        self.ranks = ranks
        self.sampler = sampler_of(parts, ranks)
        self.stages = plan(parts.loop.rounds, consolidates=parts.consolidation is not None)
        self.loggers = loggers or RunLoggers(self.folder)  # before `mend` drops rows of metrics.csv
        trainer = new_trainer(make_trainer, ranks, logger=False)
        self.strategy = trainer.strategy
        self.device = self.strategy.root_device
        self.mixed_precision = torch.bfloat16 if trainer.precision == "bf16-mixed" else None

    def run(self, policy: Policy, signals: StopSignals | None = None, claim: RunClaim | None = None) -> LoopState:
        """Run all remaining stages, save the final policy, and write results table, plots and report.

        Args:
            policy: the base policy. The run trains its weights in place.
            signals: signals that stop the run: training after the current step, an evaluation at once.
            claim: the caller's claim on the run folder, taken; None takes one for the time of the call.

        Raises:
            ClaimError: another process uses the run folder, or it contains other files than a run's.
            RunFault: too few groups to train on, weights that are not finite, or a damaged file.
            OSError: a file can't be written.
            StateError: the run can't be resumed, because its state is damaged.
            Stopped: a signal stopped the run.
            ValueError: the problems can't be rendered for this policy.
        """
        self.signals = signals or StopSignals()
        with nullcontext(claim) if claim else RunClaim(self.folder) as held, self.signals.deferred():
            held.take(resumes=bool(self.folder.states))
            try:
                state = self._run(policy)
                self.ranks.send(EndRun(0))
                return state
            except SIGTERMException as error:  # Lightning's own, after a step that ended the phase
                raise Stopped(signal.SIGTERM) from error
            finally:
                self.loggers.close()
                self.sampler.engine.close()

    def _run(self, policy: Policy) -> LoopState:
        state = self._state_to_run_from(policy)
        self.policy = policy
        policy.mixed_precision = self.mixed_precision
        self._shard(policy)
        self.parts = self.parts.rendered(policy)
        self.evaluator = Evaluator(self.sampler, self.parts.evaluation_sets, self.parts.evaluation, self.parts.seed)
        self.results = ResultsWriter(self.folder, self.parts, self.stages)
        announce(self.parts, policy, self.device)
        self.weights = Weights(policy, self.folder, self.resumed.base_fault, self.ranks)
        self.sampler.bind(policy)
        phases = PhaseTrainer(
            self.make_trainer, self.folder, self.parts, state.run_id, self.signals, self.loggers, self.ranks
        )
        self.session = Session(self.folder, self.parts, policy, self.weights, self.sampler, phases, self.signals)
        self.evaluation = PolicyEvaluation(self.evaluator, self.parts, self.folder, self.loggers, self.signals)
        self.folder.save_state(state)
        write_config(self.folder, state)
        clear(self.folder, self.stages, state)
        done = state.stages_done
        mend(self.folder, self.stages[:done], self.stages[done] if done < len(self.stages) else None)
        self._make_records_again(state)
        while state.stages_done < len(self.stages) and not state.stopped:
            self.signals.check()
            stage = self.stages[state.stages_done]
            if stage.phase != "evaluate":
                state = state.begun(stage, self.parts.explore_steps)
                self.folder.save_state(state)
                state.save(self.folder.state_before(stage))
            # Our code never reads the global random state. User code that does gets the same state after a resume.
            seed = derive_seed(self.parts.seed, stage.name, stage.phase) % 2**32
            L.seed_everything(seed, verbose=False)
            self.ranks.send(SeedAll(seed))
            started = perf_counter()
            with explaining(self.folder, stage, self.parts):
                outcome = self._run_stage(stage, state)
            complete_record(self.folder, stage)
            outcome = replace(outcome, spent=outcome.spent + Budget(seconds=perf_counter() - started))
            state = state.after(self.stages, outcome)
            self.results.after_phase(state)
            renew_report(self.folder, self.parts, state)
            self.folder.save_state(state)
            drop_checkpoints(self.folder, stage, consolidates=self.parts.consolidation is not None)
            drop_policies(self.folder, self.parts, self.stages[: state.stages_done], state)
        return self._hand_over(state)

    def _shard(self, policy: Policy) -> None:
        """Place the policy, sharded if the strategy says so. From then on, it is as the phases train it."""
        if isinstance(strategy := self.strategy, FSDP2Strategy):
            strategy.shard(policy)

    def _state_to_run_from(self, policy: Policy) -> LoopState:
        """The state of a new run, or the one that the run resumes from, with what this resume changes."""
        if self.resumed.restart_from is not None:
            restart(self.folder, self.stages, restart_stage(self.folder, self.stages, self.resumed.restart_from))
        point = resume_point(self.folder, self.stages, self.parts)
        for warning in (*point.warnings, *config_faults(self.folder)):
            _log.warning(warning)
        state = point.state or LoopState(uuid.uuid4().hex, began=date.today().isoformat())
        if state.stages_done == 0 and not state.base:
            state = replace(state, base=base_checksums(policy.source))
        if state.stages_done == 0 and not state.versions:
            state = replace(state, versions=running_versions())
        if state.stopped and self.parts.loop.on_empty_expert_set == "continue":
            state = replace(state, stopped=False)
        if self.resumed.settings is not None:
            state = replace(state, settings=self.resumed.settings)
        machine = this_machine(self.device)
        for note in filter(None, (self.resumed.note, other_machine(state.machine, machine))):
            _log.warning(note)
            state = replace(state, notes=(*state.notes, note))
        return replace(state, machine=machine)

    def _run_stage(self, stage: Stage, state: LoopState) -> StageOutcome:
        if stage.phase == "explore":
            return explore(self.session, self.evaluator, stage, state)
        if stage.phase == "consolidate":
            return consolidate(self.session, stage, state)
        return self._evaluate(stage, state)

    def _evaluate(self, stage: Stage, state: LoopState) -> StageOutcome:
        """Measure pass@k of a policy on every evaluation set."""
        self._use(stage)
        self.policy.to(self.device)
        expert = state.results.get(stage.name, {}) if stage.which == "consolidated" else {}
        metrics = self.evaluation(stage, f"{self.session.title(stage)} {stage.which}", known=expert)
        return StageOutcome(results={stage.name: metrics})

    def _hand_over(self, state: LoopState) -> LoopState:
        """Save the selected policy to final/, and write the results table, the plots and the report."""
        selected = select_stage(self.folder, self.parts, self.stages[: state.stages_done], state)
        if selected.which == "base":
            select = self.parts.loop.select
            _log.warning(f"--loop.select {select}: no trained policy is better; the base policy is handed over")
        merged_lacks = self.policy.merges and bool(damaged_files(self.folder.merged))
        if state.selected != selected.name or damaged_files(self.folder.final) or merged_lacks:
            self._use(selected)
            state = replace(state, selected=selected.name)
            save_final(self.policy, self.folder, self.parts, state, self.ranks)
            self.folder.save_state(state)
        drop_policies(self.folder, self.parts, self.stages[: state.stages_done], state)
        self.results.complete(state)
        renew_report(self.folder, self.parts, state)
        self.signals.check("the run is complete")
        return state

    def _make_records_again(self, state: LoopState) -> None:
        """Repeat evaluations whose records are damaged, since later policies are compared with them."""
        for stage in damaged_records(self.folder, self.stages, self.parts, state):
            path = self.folder.evaluation(stage)
            if stage.which == "base" and self.resumed.base_fault:
                _log.warning(f"{path} is missing or damaged, and so is the base policy; forgetting leaves it out")
                continue
            _log.warning(f"{path} is missing or damaged; its policy is evaluated again")
            self._use(stage)
            self.policy.to(self.device)
            self.evaluation.write_again(stage, f"{self.session.title(stage)} {stage.which}")

    def _use(self, stage: Stage) -> None:
        """Load the policy that an evaluation measures."""
        self.weights.use(None if stage.which == "base" else self.folder.policy(stage))
