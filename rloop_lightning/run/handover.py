"""The end of a run: selects the final policy, saves it with its model card, and uploads it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rloop_lightning.errors import PushError, StateError
from rloop_lightning.model.generation_config import GENERATION_CONFIG, generation_config
from rloop_lightning.model.on_ranks import on_ranks
from rloop_lightning.model.policy import Policy
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.model_card import CARD, CardFacts, base_facts, model_card
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.results import policies_table
from rloop_lightning.run.state import LoopState, Select, Stage
from rloop_lightning.system.checksums import damaged_files
from rloop_lightning.system.hub import HubConfig, push_folder
from rloop_lightning.system.ranks import ALONE, Ranks

_log = logging.getLogger(__name__)


def select_final(names: Sequence[str], results: Mapping[str, Mapping[str, float]], select: Select, k: int) -> str:
    """The name of the run's final policy.

    Args:
        names: names of the evaluated policies, in order.
        results: metrics by policy.
        select: as `LoopConfig.select`.
        k: the k of `pass@k`.
    """
    explored = [name for name in names if name.endswith("explored")]
    if select == "last":
        # With an empty expert set, the last consolidation left the policy of the round's beginning as it was.
        return explored[-1] if results[names[-1]].get("expert/rollouts") == 0 else names[-1]
    if select == "explored":
        return explored[-1]
    metric = f"eval/validation/pass@{1 if select == 'pass@1' else k}"
    return max(names, key=lambda name: results[name][metric])


def select_stage(folder: RunFolder, parts: Parts, done: Sequence[Stage], state: LoopState) -> Stage:
    """The evaluation of the policy to hand over.

    Args:
        folder: the run folder.
        parts: the parts of the run.
        done: the complete stages.
        state: the state after them.

    Raises:
        StateError: the policy has been deleted.
    """
    evaluated = {stage.name: stage for stage in done if stage.phase == "evaluate"}
    select = parts.loop.select
    chosen = evaluated[select_final(list(evaluated), state.results, select, k=max(parts.evaluation.k))]
    if chosen.which != "base" and not folder.holds_policy(folder.policy(chosen)):
        which = f"--loop.select {select} selects {chosen.name}, whose policy"
        if select.startswith("pass@") and parts.loop.keep_policies == "last":
            raise StateError(f"{which} was deleted (--loop.keep_policies last); select last or explored")
        phase = "explore" if chosen.which == "explored" else "consolidate"
        raise StateError(
            f"{which} is missing, {folder.policy(chosen)}; make it again with --restart_from "
            f"round-{chosen.round}/{phase}"
        )
    return chosen


def save_final(policy: Policy, folder: RunFolder, parts: Parts, state: LoopState, ranks: Ranks = ALONE) -> None:
    """Save the final policy with its model card and with the sampling of training in generation_config.json.

    An adapter is saved merged into its model as well, if the policy's settings say so.

    Args:
        policy: holds the weights of `state.selected`.
        folder: the run folder.
        parts: the parts of the run, rendered.
        state: the state with the results.

    Raises:
        RunFault: a weight is not finite.
        WriteError: the folder can't be written.
    """
    if folder.final.exists():
        for name, what in damaged_files(folder.final).items():
            _log.warning(f"{folder.final / name} {what}; the folder is written again")
    sampling = parts.engine.sampling(seed=0)
    budget = state.budget
    facts = CardFacts(
        base=base_facts(policy.source),
        algorithm=type(parts.algorithm).__name__,
        consolidation=type(parts.consolidation).__name__ if parts.consolidation else "",
        consolidated_by=parts.consolidation.does if parts.consolidation else "",
        rloop=parts.filters,
        handed_over=state.selected,
        table=policies_table(parts, state),
        notes=state.notes,
        spent={
            "Rollout steps": budget.rollout_steps,
            "Optimizer steps": budget.optimizer_steps,
            "Rollouts": budget.rollouts,
            "Completion tokens": budget.tokens,
        },
        sets={"train": len(parts.problems), **{name: len(found) for name, found in parts.evaluation_sets.items()}},
        settings=state.settings,
        sampling=sampling,
        seed=parts.seed,
        adapter=policy.adapter is not None,
    )
    generation = generation_config(policy, sampling)
    on_ranks(ranks, policy, Policy.save, folder.final, {CARD: model_card(facts), GENERATION_CONFIG: generation})
    if policy.merges:
        merged = replace(facts, adapter=False)
        texts = {CARD: model_card(merged), GENERATION_CONFIG: generation}
        on_ranks(ranks, policy, Policy.save, folder.merged, texts, merge=True)


def push_final(folder: RunFolder, hub: HubConfig) -> None:
    """Upload the final policy of a complete run, if `hub` says so.

    Raises:
        PushError: it was not uploaded; the message has the command that tries again.
    """
    if hub.push is None:
        return
    _log.info(f"uploading {folder.final} to {hub.push}")
    try:
        address = push_folder(folder.final, hub)
    except PushError as error:
        again = f"rloop-fit --resume {shlex.quote(str(folder))} --hub.push {hub.push}"
        raise PushError(f"{error}\nthe run is complete and saved; upload it with: {again}") from error
    _log.info(f"the policy is at {address}")
