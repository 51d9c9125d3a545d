"""What a run shows and hands over: the results table and the plots after every phase, and the final policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rloop_lightning.errors import StateError
from rloop_lightning.rollouts.pool_scan import count_rollouts
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.plots import PLOTS, write_plots
from rloop_lightning.run.pool_plot import write_pool_plot
from rloop_lightning.run.results_table import PolicyResult, results_table
from rloop_lightning.run.state import LoopState, Phase, Select, Stage
from rloop_lightning.system.files import write_text

_CHANGED_BY: Mapping[Phase | None, Sequence[str]] = {
    "explore": list(PLOTS),
    "evaluate": ["reward_and_pass.png"],
    "consolidate": [],
    None: [],
}
"""The plots that a phase changes."""


def select_final(names: Sequence[str], results: Mapping[str, Mapping[str, float]], select: Select, k: int) -> str:
    """The name of the run's final policy.

    Args:
        names: names of the evaluated policies, in order.
        results: metrics by policy.
        select: as `LoopConfig.select`.
        k: the k of `pass@k`.
    """
    if select == "last":
        return names[-1]
    if select == "explored":
        return [name for name in names if name.endswith("explored")][-1]
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
        StateError: the policy has been deleted (`--loop.keep_policies last`).
    """
    evaluated = {stage.name: stage for stage in done if stage.phase == "evaluate"}
    select = parts.loop.select
    chosen = evaluated[select_final(list(evaluated), state.results, select, k=max(parts.evaluation.k))]
    if chosen.which != "base" and not folder.policy(chosen).exists():
        raise StateError(
            f"--loop.select {select} selects {chosen.name}, whose policy was deleted (--loop.keep_policies last); "
            "select last or explored"
        )
    return chosen


def write_results(
    folder: RunFolder, parts: Parts, stages: Sequence[Stage], state: LoopState, after: Phase | None = None
) -> None:
    """Write the results table and the plots of a run so far, each atomically.

    Args:
        folder: the run folder.
        parts: the parts of the run.
        stages: the plan of the run.
        state: the state with the results.
        after: the phase since the last call, whose plots are drawn anew; None draws missing plots only.
    """
    _write_table(folder, parts, stages, state)
    changed = _CHANGED_BY[after]
    drawn = [name for name in PLOTS if name in changed or not (folder.plots / name).exists()]
    write_plots(read_metrics(folder.metrics), folder.plots, drawn)
    done = stages[: state.stages_done]
    for stage in done:
        if stage.phase == "explore" and ((after and stage is done[-1]) or not folder.pool_plot(stage).exists()):
            _write_pool_plot(folder, parts, stage)


def _write_table(folder: RunFolder, parts: Parts, stages: Sequence[Stage], state: LoopState) -> None:
    hidden = () if parts.loop.select.startswith("pass@") else ("eval/validation/",)
    results = [
        PolicyResult(
            name,
            {key: value for key, value in metrics.items() if not key.startswith(hidden)},
            handed_over=name == state.selected,
        )
        for name, metrics in state.results.items()
    ]
    notes = [*state.notes]
    if state.stages_done < len(stages) and not state.stopped:
        notes.append(f"in progress: {state.stages_done} of {len(stages)} phases are complete")
    lines = [results_table(results), "", _sampling(parts), *([""] if notes else []), *(f"- {note}" for note in notes)]
    write_text(folder.results, "\n".join(lines) + "\n")


def _sampling(parts: Parts) -> str:
    """How the policies were sampled for the table."""
    sampling = parts.evaluation.sampling(parts.engine.sampling(seed=0))
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    how += f", top-k {sampling.top_k}" if sampling.top_k else ""
    how += f", top-p {sampling.top_p:g}" if sampling.top_p < 1 else ""
    count = parts.evaluation.samples
    rollouts = "one rollout" if count == 1 else f"{count} rollouts"
    return f"Evaluation: {rollouts} per problem, {how}, at most {sampling.max_new_tokens} new tokens."


def _write_pool_plot(folder: RunFolder, parts: Parts, stage: Stage) -> None:
    """The plot of a round's pool, unless its shards were removed."""
    counts = count_rollouts(folder.pool(stage))
    if len(counts):
        filtered = parts.consolidation is not None and parts.filter.enabled
        write_pool_plot(
            counts,
            folder.pool_plot(stage),
            title=f"round {stage.round + 1}",
            max_success_rate=parts.filter.max_success_rate if filtered else None,
        )
