"""The exploration of a round: trains phi, the round's initial policy, and keeps every rollout in the pool."""

from __future__ import annotations

import copy
import logging
from contextlib import closing

from lightning.pytorch.callbacks import Callback

from rloop_lightning.callbacks.capture import RolloutCapture
from rloop_lightning.callbacks.evaluation import InsideEvaluation
from rloop_lightning.callbacks.rollout_metrics import RolloutMetrics
from rloop_lightning.callbacks.run_estimate import RunEstimate
from rloop_lightning.evaluation.evaluator import Evaluator
from rloop_lightning.evaluation.record import drop_inside_records
from rloop_lightning.rollouts.pool_scan import count_rollouts
from rloop_lightning.rollouts.step_sampler import StepSampler
from rloop_lightning.rollouts.stream import RolloutStream
from rloop_lightning.run.forecast import work_left
from rloop_lightning.run.metrics_csv import column
from rloop_lightning.run.progress import completion_log
from rloop_lightning.run.session import Session
from rloop_lightning.run.state import Budget, LoopState, Stage, StageOutcome
from rloop_lightning.seeds import derive_seed

_log = logging.getLogger(__name__)


def explore(session: Session, evaluator: Evaluator, stage: Stage, state: LoopState) -> StageOutcome:
    """Run the exploration, from the phase's newest checkpoint if there is one, and save phi."""
    folder, parts = session.folder, session.parts
    session.weights.use(folder.initial_policy(stage))
    watch, progress = session.watch(stage), session.progress(stage, state)
    algorithm = copy.deepcopy(parts.algorithm)
    algorithm.policy = session.policy
    algorithm.pools = folder.pools(stage)
    seed = derive_seed(parts.seed, "explore", stage.round)
    algorithm.expect_lag(parts.loop.staleness)
    stream = RolloutStream(
        StepSampler(
            session.sampler,
            algorithm,
            parts.problems,
            problems_per_step=parts.problems_per_step,
            rollouts_per_problem=parts.loop.rollouts_per_problem,
            seed=seed,
        ),
        steps=state.explore_steps[stage.round],
        tokens=parts.explore_tokens,
        on_too_few_groups=parts.loop.on_too_few_groups,
        staleness=parts.loop.staleness,
        in_flight_updates=parts.loop.in_flight_updates,
        listeners=[progress, completion_log(progress.title, stage, parts, session.policy)],
    )
    if algorithm.unsolved.over == "run":
        stream.step_sampler.counts.add_pools(count_rollouts(*session.earlier_pools(stage)))
    pool = folder.pool(stage)
    pool.drop_after(folder.steps_done(stage))
    callbacks: list[Callback] = [
        RolloutCapture(
            pool,
            parts.capture,
            session.sampler,
            parts.problems,
            parts.filter if parts.filters and parts.filter.enabled else None,
            session.earlier_pools(stage),
            round=stage.round,
            run_id=state.run_id,
            seed=seed,
        ),
        RolloutMetrics(pool, seed),
    ]
    callbacks.append(RunEstimate(*work_left(parts, stage, folder.steps_done(stage))))
    callbacks += _evaluation_inside(session, evaluator, stage)
    with closing(stream):
        fitted = session.phases.fit(algorithm, stream, stage, progress, callbacks)
    if stream.unused:
        name, step = f"unused-{stream.position + 1:06d}", stream.position
        pool.write(name, stream.unused, round=stage.round, rollout_step=step, run_id=state.run_id)
    session.weights.save(folder.policy(stage))
    wrong = watch.note(
        ended_early=stream.position < stream.steps and not stream.tokens_spent,
        too_few_groups=stream.newest if stream.unused else None,
    )
    norms = column(folder.metrics, stage.round, stage.phase, "grad/norm_preclip_max")
    return StageOutcome(
        spent=Budget(
            stream.position, fitted.optimizer_steps, stream.cost.rollouts, stream.cost.tokens, fitted.earlier_s
        ),
        results={stage.name: {"grad/norm_preclip_max": max(norms, default=float("nan"))}},
        note="; ".join(filter(None, [_early_end(session, stage, stream), fitted.note, wrong])),
    )


def _evaluation_inside(session: Session, evaluator: Evaluator, stage: Stage) -> list[Callback]:
    """The evaluation every few rollout steps; none without --eval.every_n_steps. Drops records that it repeats."""
    folder, parts = session.folder, session.parts
    records, every = folder.evaluations(stage), parts.evaluation.every_n_steps
    if not every or not parts.sets_inside:
        return []
    drop_inside_records(records, after=folder.steps_done(stage))
    return [
        InsideEvaluation(
            evaluator,
            parts.sets_inside,
            every,
            records=records,
            round=stage.round,
            earlier=folder.earlier_evaluations(stage),
            log_completions=session.phases.loggers.log_completions,
        )
    ]


def _early_end(session: Session, stage: Stage, stream: RolloutStream) -> str:
    """A note on an exploration that ended before its last rollout step, or trained on too few groups."""
    if stream.position < stream.steps and not (stream.tokens_spent and not stream.unused):
        early = f"{session.title(stage)} ended after {stream.position} of {stream.steps} rollout steps"
        if not stream.unused:
            return early
        note = f"{early}: {stream.shortage} (--loop.on_too_few_groups {stream.on_too_few_groups})"
        _log.warning(note)
        return note
    sizes = column(session.folder.metrics, stage.round, stage.phase, "rollout/trained_groups")
    short = sum(size < stream.step_sampler.problems_per_step for size in sizes)
    return f"{session.title(stage)}: {short} of {stream.steps} rollout steps trained on fewer groups" if short else ""
