"""A consolidation on the expert set: filters the round's pool, and fine-tunes theta_k or another start."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import numpy as np

from rloop_lightning.algorithms.fine_tuning import FineTuning
from rloop_lightning.errors import RunFault
from rloop_lightning.rollouts.expert_set import read_expert_sets
from rloop_lightning.rollouts.expert_stream import ExpertStream
from rloop_lightning.rollouts.filter import ExpertStats, build_expert_set
from rloop_lightning.run.damage import check_pool
from rloop_lightning.run.session import Session
from rloop_lightning.run.state import Budget, LoopState, Stage, StageOutcome
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.checksums import add_checksum, damaged_files
from rloop_lightning.types import Rollout

_log = logging.getLogger(__name__)


class EmptyExpertSetError(RunFault):
    """The filter selected nothing, and the run is configured to end then."""


def _remedies(stage: Stage, stats: ExpertStats) -> list[str]:
    """Settings of the filter with which the same pool gives rollouts."""
    if stats.successes == 0:
        return []
    if stats.hard_problems:
        return ["--filter.finished_only false"]
    earlier = [", --filter.rate_over run"] if stage.round else []  # counts the rollouts of earlier rounds as well
    return [f"a larger --filter.max_success_rate{''.join(earlier)} or --filter.enabled false"]


def fine_tune(session: Session, consolidation: FineTuning, stage: Stage, state: LoopState) -> StageOutcome:
    """Filter the round's pool, fine-tune on the expert set, and save theta_{k+1}.

    With an empty expert set, theta_{k+1} is the round's initial policy, whatever the start.

    Raises:
        EmptyExpertSetError: the expert set is empty, and the run should end with an error.
    """
    folder, parts = session.folder, session.parts
    seed = derive_seed(parts.seed, "consolidate", stage.round)
    expert_file, pool = folder.expert_set(stage), folder.pool(stage)
    with session.signals.at_once():  # a resume rebuilds the expert set anyway
        check_pool(folder, stage)
        stats = build_expert_set(pool, expert_file, parts.filter, seed, earlier=session.earlier_pools(stage))
    add_checksum(expert_file)
    results = {stage.name: {key: float(value) for key, value in stats.metrics().items()}}
    what = f"expert set of {stats.kept} rollouts of {stats.kept_problems} problems"
    if parts.filter.control == "random":
        what = (
            f"random control of {stats.kept} rollouts of {stats.kept_problems} problems (--filter.control random), "
            f"{stats.kept_hard} of them of the {stats.hard_problems} hard problems"
        )
    _log.info(
        f"round {stage.round + 1}: {what} ({stats.successes:,} successes among {stats.rollouts_seen:,} rollouts, "
        f"{stats.within_reach:,} of {stats.problems_seen:,} problems within reach)"
    )
    if stats.kept == 0:
        session.weights.use(folder.initial_policy(stage))
        note = _empty_set_note(session, stage, stats)
        session.weights.save(folder.policy(stage))
        return StageOutcome(results=results, note=note, stops=parts.loop.on_empty_expert_set == "stop")
    session.weights.use(folder.start(stage, consolidation.start))
    watch = session.watch(stage)
    module = copy.deepcopy(consolidation)
    module.policy = session.policy
    rollouts = _expert_rollouts(session, consolidation, stage)
    if consolidation.expert_sets == "run":
        results[stage.name]["expert/accumulated"] = float(len(rollouts))
    stream = ExpertStream(
        rollouts,
        module.weights([rollout.reward for rollout in rollouts]),
        rollouts_per_update=module.rollouts_per_update,
        epochs=module.epochs,
        seed=seed,
    )
    fitted = session.phases.fit(module, stream, stage, session.progress(stage, state))
    session.weights.save(folder.policy(stage))
    note = "; ".join(filter(None, [fitted.note, watch.note(ended_early=stream.position < len(stream))]))
    return StageOutcome(Budget(optimizer_steps=fitted.optimizer_steps, seconds=fitted.earlier_s), results, note=note)


def _empty_set_note(session: Session, stage: Stage, stats: ExpertStats) -> str:
    """Why the expert set is empty and what happens now, logged as a warning.

    Raises:
        EmptyExpertSetError: the run should end with an error.
    """
    loop = session.parts.loop
    why = f"round {stage.round + 1}: the expert set is empty: {stats.why_empty(session.parts.filter)}"
    if loop.on_empty_expert_set == "error":
        rebuilt = [f"with {way}, which rebuilds the expert set" for way in _remedies(stage, stats)]
        raise EmptyExpertSetError(
            f"{why}. Resume {'; '.join([*rebuilt, 'with --loop.on_empty_expert_set continue or stop'])}"
        )
    if loop.on_empty_expert_set == "stop":
        what_now = "the run stops here"
    elif stage.round + 1 < loop.rounds:
        what_now = "the next round begins where this one began"
    elif loop.select == "last":
        what_now = "the explored policy is handed over"
    else:
        what_now = "there is no consolidated policy of this round"
    note = f"{why}; {what_now}"
    _log.warning(note)
    return note


def _expert_rollouts(session: Session, consolidation: FineTuning, stage: Stage) -> list[Rollout]:
    """The rollouts to train on, with prompts as the policy sees them.

    Raises:
        RunFault: the expert set of an earlier round is missing or damaged.
    """
    folder, policy = session.folder, session.policy
    first = 0 if consolidation.expert_sets == "run" else stage.round
    earlier = [replace(stage, round=number) for number in range(first, stage.round)]
    for one in earlier:
        path = folder.expert_set(one)
        for what in damaged_files(path.parent, [path.name]).values():
            again = f"--restart_from {folder.phase(one).relative_to(folder.out)}"
            raise RunFault(
                f"{path} {what}, and --consolidate.expert_sets run trains on it; resume with {again}, which makes it "
                "again, or with --consolidate.expert_sets round"
            )
    prompts = {problem.id: np.array(policy.prompt_ids(problem)) for problem in session.parts.problems}
    return [
        Rollout(
            problem_id=expert.problem_id,
            prompt_ids=prompts[expert.problem_id],
            completion_ids=expert.completion_ids,
            sampling_logprobs=expert.sampling_logprobs,
            text="",
            finish_reason=expert.finish_reason,
            reward=expert.reward,
            success=True,
        )
        for expert in read_expert_sets([folder.expert_set(one) for one in (*earlier, stage)])
    ]
