"""The policies that phases saved: which of them the rest of a run can need, and the deletion of the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.handover import select_final
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.state import LoopState, Stage
from rloop_lightning.system.folders import remove_folder

_NEEDED = {"explore": 1, "consolidate": 2}
"""How many of the newest policies of a phase are kept.

The newest consolidated policy begins the next round. If its files are damaged, a resume consolidates again, from the
one before. The newest explored policy is evaluated, and may be handed over.
"""


def drop_policies(folder: RunFolder, parts: Parts, done: Sequence[Stage], state: LoopState) -> None:
    """With `--loop.keep_policies last`, delete the saved policies that neither a resume nor the hand-over can need.

    Args:
        folder: the run folder.
        parts: the parts of the run.
        done: the complete stages, in order; `state` is on disk.
        state: the state after them.
    """
    if parts.loop.keep_policies == "all":
        return
    kept = _needed(folder, parts, done, state)
    for stage in done:
        path = folder.policy(stage)
        if stage.phase != "evaluate" and path not in kept:
            remove_folder(path)


def _needed(folder: RunFolder, parts: Parts, done: Sequence[Stage], state: LoopState) -> set[Path]:
    kept = set()
    for phase, count in _NEEDED.items():
        made = [folder.policy(stage) for stage in done if stage.phase == phase]
        kept |= set(made[-count:])
    evaluated = {stage.name: stage for stage in done if stage.phase == "evaluate"}
    select = parts.loop.select
    if select.startswith("pass@") and evaluated:
        best = evaluated[select_final(list(evaluated), state.results, select, k=max(parts.evaluation.k))]
        if best.which != "base":
            kept.add(folder.policy(best))
    return kept
