"""The page that compares several runs.

runs = [ComparedRun(read_run(path), arm="dapo", seed=seed) for seed, path in enumerate(paths)]
write_comparison_page(ComparedArms(runs), Path("comparison.html"))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rloop_lightning.evaluation.statistics import Difference
from rloop_lightning.run.report.compared import Arm, ComparedArms
from rloop_lightning.run.report.comparison_pictures import evaluation_pictures, trade_offs, training_pictures
from rloop_lightning.run.report.comparison_tables import (
    Policies,
    arms_table,
    columns_of,
    cost_table,
    differences,
    differences_table,
    main_columns,
    runs_table,
    settings_table,
    signs_table,
)
from rloop_lightning.run.report.facts import data_name, model_name
from rloop_lightning.run.report.page import Page, Section, write_page
from rloop_lightning.run.report.tables import Table, signed
from rloop_lightning.system.terminal import one_line, printable

_MOST_TOLD = 3  # arms whose differences the first sentence gives
_FOOTER = "Written by rloop-lightning from what the runs store. The page needs no network and sends nothing."


def write_comparison_page(comparison: ComparedArms, path: Path, notes: Sequence[str] = ()) -> None:
    """Write the page, atomically.

    Args:
        comparison: one or more arms, each with one run or several of different seeds.
        path: the HTML file.
        notes: remarks at the top, such as on runs that failed.

    Raises:
        ValueError: there is no run, or two runs of an arm have the same seed.
        OSError: it can't be written.
    """
    write_page(path, comparison_page(comparison, path, notes))


def comparison_page(comparison: ComparedArms, path: Path, notes: Sequence[str] = ()) -> Page:
    """The page. Args and errors: as `write_comparison_page`."""
    if not comparison.runs:
        raise ValueError("there is no run to compare")
    faults: list[str] = []
    final = _tables("final", "Policies that the runs hand over", comparison, lambda arm: arm.final, faults)
    explored = []
    if any(arm.explored != arm.final for arm in comparison.arms):
        explored = _tables("explored", "Last explored policies", comparison, lambda arm: arm.explored, faults)
    sections = [
        Section("trade-off", "First try against many", pictures=trade_offs(comparison)),
        Section("final-policies", "Final policies", tables=final),
        Section("explored-policies", "Explored policies", tables=explored),
        Section("passes", "Evaluation during the runs", pictures=evaluation_pictures(comparison)),
        Section("training", "Training", pictures=training_pictures(comparison)),
        Section("cost", "Cost", tables=[cost_table(comparison)]),
        Section("setup", "What differs", tables=[table for table in [settings_table(comparison)] if table]),
        Section("runs", "Runs", tables=[runs_table(comparison, path)]),
        Section("warnings", "Warnings", tables=[signs_table(comparison)]),
    ]
    told = [*comparison.judged_otherwise.values(), *faults]
    return Page(
        title=" against ".join(one_line(arm.name) for arm in comparison.arms[:3]) + _more(comparison.arms[3:]),
        sentence=sentence(comparison),
        sections=[section for section in sections if section.tables or section.pictures],
        notes=[printable(note) for note in (*notes, *told, *_single(comparison), *_unfinished(comparison))],
        footer=_FOOTER,
    )


def sentence(comparison: ComparedArms) -> str:
    """What was compared, and what came out at the first and the last k."""
    arms = comparison.arms
    run = comparison.runs[0].run
    counts = sorted({len(arm.runs) for arm in arms})
    seeds = f"{counts[0]} seed{'s' * (counts[0] > 1)}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    what = f"{len(arms)} arm{'s' * (len(arms) > 1)} with {seeds} each"
    what += f", {model_name(run)} on {data_name(run)} problems"
    columns = main_columns(comparison)
    told: list[str] = []
    for label, sets, k in [columns[0], *columns[1:][-1:]] if columns else []:
        found = differences(comparison, lambda arm: arm.final, sets, k)
        where = f"{one_line(label)} pass@{k}" if len(sets) == 1 else f"pass@{k} on {label}"
        told += _relations(found, one_line(arms[0].name), where)
    return f"{what}{': ' if told else ''}{'; '.join(told)}."


def _relations(found: Mapping[str, Difference], first: str, where: str) -> Iterator[str]:
    """How arms compare with the first one; many arms by their verdicts."""
    if len(found) <= _MOST_TOLD:
        for arm, one in found.items():
            yield f"{one_line(arm)} is {_VERDICTS[one.verdict]} {first} in {where} ({signed(one.interval)})"
        return
    for verdict, relation in _VERDICTS.items():
        arms = [one_line(arm) for arm, one in found.items() if one.verdict == verdict]
        if arms:
            named = ", ".join(arms) if verdict != "inconclusive" else f"{len(arms)} of {len(found)} arms"
            yield f"{relation} {first} in {where}: {named}"


_VERDICTS = {"better": "better than", "worse": "worse than", "inconclusive": "not distinguishable from"}


def _tables(id: str, what: str, comparison: ComparedArms, policies: Policies, faults: list[str]) -> list[Table]:
    """The arms and their differences: on each set, then on average over the sets."""
    tables: list[Table | None] = []
    for suffix, columns in zip(("", "-average"), columns_of(comparison), strict=True):
        if columns or not suffix:
            tables.append(arms_table(f"{id}{suffix}", what, comparison, columns, policies, faults))
            tables.append(differences_table(f"{id}{suffix}-differences", what, comparison, columns, policies, faults))
    return [table for table in tables if table]


def _single(comparison: ComparedArms) -> list[str]:
    """What a comparison of single runs can't say."""
    if all(len(arm.runs) > 1 for arm in comparison.arms):
        return []
    return [
        "An arm has one seed, so intervals are over problems alone: they compare these policies, and can't tell what "
        "other seeds would give."
    ]


def _unfinished(comparison: ComparedArms) -> list[str]:
    waiting = [one for one in comparison.runs if not one.run.state.selected]
    if not waiting:
        return []
    named = ", ".join(f"{one_line(one.arm)} seed {one.seed}" for one in waiting[:5])
    rest = f" and {len(waiting) - 5} more" if len(waiting) > 5 else ""
    return [f"Not complete, and compared as far as they are: {named}{rest}."]


def _more(arms: Sequence[Arm]) -> str:
    return f" and {len(arms)} more" if arms else ""
