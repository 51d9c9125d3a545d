"""What a run shows while it runs: the results table and the plots, written after every phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from rloop_lightning.run.state import LoopState, Phase, Stage
from rloop_lightning.system.files import write_text

_CHANGED_BY: Mapping[Phase | None, Sequence[str]] = {
    "explore": list(PLOTS),
    "evaluate": ["reward_and_pass.png", "coverage.png"],
    "consolidate": [],
    None: [],
}
"""The plots that a phase changes."""


def write_results(
    folder: RunFolder, parts: Parts, stages: Sequence[Stage], state: LoopState, after: Phase | None = None
) -> None:
    """Write the results table and the plots of a run so far, each atomically.

    Args:
        folder: the run folder.
        parts: the parts of the run.
        stages: the plan of the run.
        state: the state with the results.
        after: the phase since the last call, whose plots are drawn anew; None draws missing and damaged plots only.
    """
    done = stages[: state.stages_done]
    notes = [*state.notes, *filter(None, [lost_rows(folder, done)])]
    if state.stages_done < len(stages) and not state.stopped:
        notes.append(f"in progress: {state.stages_done} of {len(stages)} phases are complete")
    listed = [f"- {note}" for note in notes]
    lines = [policies_table(parts, state), "", _sampling(parts), *([""] if notes else []), *listed]
    write_text(folder.results, "\n".join(lines) + "\n")
    changed = _CHANGED_BY[after]
    drawn = [name for name in PLOTS if name in changed or not is_whole_png(folder.plots / name)]
    write_plots(read_metrics(folder.metrics), folder.plots, drawn)
    for stage in done:
        if stage.phase == "explore" and ((after and stage is done[-1]) or not is_whole_png(folder.pool_plot(stage))):
            _write_pool_plot(folder, parts, stage)


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
    """The plot of the rollouts that the filter of a round counts, unless their shards were removed."""
    pools = folder.pools(stage) if parts.filter.rate_over == "run" else folder.pools(stage)[-1:]
    counts = count_rollouts(*map(RolloutPool, pools))
    if len(counts):
        filtered = parts.filters and parts.filter.enabled
        write_pool_plot(
            counts,
            folder.pool_plot(stage),
            title=f"round {stage.round + 1}",
            max_success_rate=parts.filter.max_success_rate if filtered else None,
        )
