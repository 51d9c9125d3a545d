"""What a run shows while it runs, after its phases: the results table and the plots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter

from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import count_rollouts
from rloop_lightning.run.figures import is_whole_png
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.mending import lost_rows
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.plots import PLOTS, write_plots
from rloop_lightning.run.pool_plot import write_pool_plot
from rloop_lightning.run.results_table import INTERVALS, PolicyResult, results_table
from rloop_lightning.run.state import LoopState, Stage
from rloop_lightning.system.files import write_text

_log = logging.getLogger(__name__)

DRAWING_SHARE = 0.05
"""The largest part of a run's time that its plots may take while it runs."""

FIRST_DRAWING_S = 1.0
"""What the first drawing is expected to take, seconds."""


class ResultsWriter:
    """Writes the results table and the plots of a run so far, each file atomically.

    Plots take about a second. A run of short phases draws them now and then, and when its last phase ends.

    Args:
        folder: the run folder.
        parts: the parts of the run.
        stages: the plan of the run.
    """

    def __init__(self, folder: RunFolder, parts: Parts, stages: Sequence[Stage]) -> None:
        self.folder, self.parts, self.stages = folder, parts, stages
        self._next_drawing = perf_counter() + FIRST_DRAWING_S / DRAWING_SHARE

    def after_phase(self, state: LoopState) -> None:
        """Write the table, and the plots if they are due.

        Args:
            state: the state after the phase.
        """
        self._write_table(state)
        ended = state.stopped or state.stages_done == len(self.stages)
        if ended or perf_counter() >= self._next_drawing:
            self._draw(state, list(PLOTS))

    def complete(self, state: LoopState) -> None:
        """Write the table of a run whose phases have ended, and the plots that are missing or damaged."""
        self._write_table(state)
        self._draw(state, [name for name in PLOTS if not is_whole_png(self.folder.plots / name)])

    def _write_table(self, state: LoopState) -> None:
        notes = [*state.notes, *filter(None, [lost_rows(self.folder, self.stages[: state.stages_done])])]
        if state.stages_done < len(self.stages) and not state.stopped:
            notes.append(f"in progress: {state.stages_done} of {len(self.stages)} phases are complete")
        listed = [f"- {note}" for note in notes]
        lines = [policies_table(self.parts, state), "", _sampling(self.parts), *([""] if notes else []), *listed]
        write_text(self.folder.results, "\n".join(lines) + "\n")

    def _draw(self, state: LoopState, names: Sequence[str]) -> None:
        """Draw these plots, and those of pools that are missing or damaged."""
        began = perf_counter()
        write_plots(read_metrics(self.folder.metrics), self.folder.plots, names)
        for stage in self.stages[: state.stages_done]:
            if stage.phase == "explore" and not is_whole_png(self.folder.pool_plot(stage)):
                _write_pool_plot(self.folder, self.parts, stage)
        ended = perf_counter()
        self._next_drawing = ended + (ended - began) / DRAWING_SHARE


def policies_table(parts: Parts, state: LoopState) -> str:
    """The results tables of the policies so far, without the sets that they hide, and what their intervals are over."""
    hidden = tuple(f"eval/{name}/" for name in parts.hidden_sets)
    results = [
        PolicyResult(
            name,
            {key: value for key, value in metrics.items() if not key.startswith(hidden)},
            handed_over=name == state.selected,
        )
        for name, metrics in state.results.items()
    ]
    return f"{results_table(results)}\n\n{INTERVALS}"


def _sampling(parts: Parts) -> str:
    """How the policies were sampled for the table."""
    sampling = parts.evaluation.sampling(parts.engine.sampling(seed=0))
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    how += f", top-k {sampling.top_k}" if sampling.top_k else ""
    how += f", top-p {sampling.top_p:g}" if sampling.top_p < 1 else ""
    count = parts.evaluation.samples
    rollouts = "one rollout per problem" if count == 1 else f"{count} rollouts per problem (pass@1 is avg@{count})"
    return f"Evaluation: {rollouts}, {how}, at most {sampling.max_new_tokens} new tokens."


def _write_pool_plot(folder: RunFolder, parts: Parts, stage: Stage) -> None:
    """The plot of the rollouts that the filter of a round counts, unless their shards were removed or are damaged."""
    pools = folder.pools(stage) if parts.filter.rate_over == "run" else folder.pools(stage)[-1:]
    try:
        counts = count_rollouts(*map(RolloutPool, pools))
    except DamagedError as error:
        _log.warning(f"{error}; {folder.pool_plot(stage).name} of the finished round is not drawn")
        return
    if len(counts):
        filtered = parts.filters and parts.filter.enabled
        write_pool_plot(
            counts,
            folder.pool_plot(stage),
            title=f"round {stage.round + 1}",
            max_success_rate=parts.filter.max_success_rate if filtered else None,
        )
