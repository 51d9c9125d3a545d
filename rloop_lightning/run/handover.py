"""The end of a run: selects the final policy, and writes the results table and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.run.plots import write_plots
from rloop_lightning.run.results_table import PolicyResult, results_table
from rloop_lightning.run.state import LoopState, Select
from rloop_lightning.system.files import write_text


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


def write_results(folder: RunFolder, state: LoopState, hidden_sets: Sequence[str]) -> None:
    """Write the results table and the plots of a run.

    Args:
        folder: the run folder.
        state: the state with the results.
        hidden_sets: evaluation sets to leave out of the table.
    """
    hidden = tuple(f"eval/{name}/" for name in hidden_sets)
    results = [
        PolicyResult(
            name,
            {key: value for key, value in metrics.items() if not key.startswith(hidden)},
            handed_over=name == state.selected,
        )
        for name, metrics in state.results.items()
    ]
    notes = "".join(f"\n- {note}" for note in state.notes)
    write_text(folder.results, results_table(results) + "\n" + (f"{notes}\n" if notes else ""))
    write_plots(read_metrics(folder.metrics), folder.plots)
