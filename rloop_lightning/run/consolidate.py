"""The consolidation of a round: makes theta_{k+1}, in the way of its kind."""

from __future__ import annotations

import copy
import logging
from contextlib import closing

from rloop_lightning.algorithms.average import Average
from rloop_lightning.algorithms.consolidation import Consolidation
from rloop_lightning.algorithms.distil import Distil
from rloop_lightning.algorithms.fine_tuning import FineTuning
from rloop_lightning.model.weight_sample import share_changed, weight_sample
from rloop_lightning.rollouts.step_sampler import StepSampler
from rloop_lightning.rollouts.stream import RolloutStream
from rloop_lightning.run.fine_tuning import fine_tune
from rloop_lightning.run.leader import LearnFrom
from rloop_lightning.run.session import Session
from rloop_lightning.run.state import Budget, LoopState, Stage, StageOutcome
from rloop_lightning.seeds import derive_seed

_log = logging.getLogger(__name__)


def consolidate(session: Session, stage: Stage, state: LoopState) -> StageOutcome:
    """Make theta_{k+1} and save it.

    Raises:
        EmptyExpertSetError: the expert set is empty, and the run should end with an error.
    """
    consolidation = session.parts.consolidation
    if isinstance(consolidation, FineTuning):
        return fine_tune(session, consolidation, stage, state)
    if isinstance(consolidation, Average):
        return average(session, consolidation, stage)
    assert isinstance(consolidation, Distil)  # the parts are checked
    return distil(session, consolidation, stage, state)


def average(session: Session, consolidation: Average, stage: Stage) -> StageOutcome:
    """Save the average of the explored policy and the one that it started from."""
    folder = session.folder
    note = _note_if_equal(session, consolidation, stage)
    if not note:
        session.weights.move_towards(folder.explored_policy(stage), consolidation.alpha)
    session.weights.save(folder.policy(stage))
    return StageOutcome(note=note)


def distil(session: Session, consolidation: Distil, stage: Stage, state: LoopState) -> StageOutcome:
    """Train the start towards the explored policy on its own samples, and save it.

    It goes on from the phase's newest checkpoint, if there is one.
    """
    folder, parts = session.folder, session.parts
    if note := _note_if_equal(session, consolidation, stage):
        session.weights.save(folder.policy(stage))
        return StageOutcome(note=note)
    module = copy.deepcopy(consolidation)
    module.policy = session.policy
    session.weights.use(folder.explored_policy(stage))
    session.phases.ranks.send(LearnFrom())
    module.learn_from(session.policy)
    session.weights.use(folder.start(stage, consolidation.start))
    watch, progress = session.watch(stage), session.progress(stage, state)
    stream = RolloutStream(
        StepSampler(
            session.sampler,
            module,
            parts.problems,
            problems_per_step=module.rollouts_per_update,
            rollouts_per_problem=1,
            seed=derive_seed(parts.seed, "consolidate", stage.round),
        ),
        steps=module.steps,
        listeners=[progress],
    )
    with closing(stream):
        fitted = session.phases.fit(module, stream, stage, progress)
    session.weights.save(folder.policy(stage))
    note = "; ".join(filter(None, [fitted.note, watch.note(ended_early=stream.position < stream.steps)]))
    spent = Budget(0, fitted.optimizer_steps, stream.cost.rollouts, stream.cost.tokens, fitted.earlier_s)
    return StageOutcome(spent, note=note)


def _note_if_equal(session: Session, consolidation: Consolidation, stage: Stage) -> str:
    """A note, logged as a warning, if the explored policy has the weights of the start. Loads the start."""
    session.weights.use(session.folder.explored_policy(stage))
    explored = weight_sample(session.policy)
    session.weights.use(session.folder.start(stage, consolidation.start))
    if share_changed(explored, weight_sample(session.policy)):
        return ""
    note = (
        f"{session.title(stage)}: the explored policy has the weights of the {consolidation.start} policy, so there is "
        f"nothing to consolidate; that policy is kept"
    )
    _log.warning(note)
    return note
