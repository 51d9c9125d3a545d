"""The tables of a comparison: arms with intervals, differences to the first arm, cost, settings, runs, warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rloop_lightning.evaluation.record_values import (
    of_compared_seeds,
    pass_at_k_difference,
    pass_at_k_interval,
    with_average,
)
from rloop_lightning.evaluation.statistics import Difference
from rloop_lightning.run.report.compared import Arm, ComparedArms, place_of
from rloop_lightning.run.report.facts import progress
from rloop_lightning.run.report.failure_signs import RULES
from rloop_lightning.run.report.stored import EvaluatedStage
from rloop_lightning.run.report.tables import Cell, Line, Table, amount, duration, interval_cell
from rloop_lightning.system.markdown import MISSING
from rloop_lightning.system.terminal import one_line, printable

Policies = Callable[[Arm], Mapping[int, EvaluatedStage]]
"""The compared policies of an arm, by seed."""

Records = Mapping[int, Path]
"""The records of the compared policies of an arm, by seed."""

Column = tuple[str, Sequence[str], int]
"""A label, the sets that it averages over, and k."""

_COMMIT_CHARACTERS = 12
_MOST_SEEDS = 5  # that are listed
_VERDICTS = {"better": "ok", "worse": "bad", "inconclusive": ""}
_COST: Sequence[tuple[str, str]] = (
    ("rollout steps", "rollout_steps"),
    ("optimizer steps", "optimizer_steps"),
    ("rollouts", "rollouts"),
    ("training tokens", "tokens"),
)


def columns_of(comparison: ComparedArms) -> tuple[list[Column], list[Column]]:
    """The columns of all sets; and those of the average over sets, none if there is one set."""
    found = list(with_average([(name, k) for name in comparison.sets for k in comparison.ks(name)]))
    return [one for one in found if len(one[1]) == 1], [one for one in found if len(one[1]) > 1]


def main_columns(comparison: ComparedArms) -> list[Column]:
    """The columns of the average over the sets, or of the only set."""
    return next(filter(None, reversed(columns_of(comparison))), [])


def arms_table(
    id: str, what: str, comparison: ComparedArms, columns: Sequence[Column], policies: Policies, faults: list[str]
) -> Table:
    """pass@k of each arm with its interval.

    Args:
        id: of the element on the page.
        what: the compared policies, in words.
        comparison: the arms.
        columns: what to show.
        policies: the compared policies of an arm.
        faults: what can't be computed is added to it.
    """
    lines = []
    for arm in comparison.arms:
        records = _records(policies(arm))
        cells = _cells(arm, columns, records, faults, _interval_cell)
        lines.append(Line(one_line(arm.name), [Cell(_seeds(records)), *cells]))
    caption = (
        f"{what}: mean and 95 % interval. Where an arm has several seeds, the interval is over seeds and problems: it "
        "says what other runs with the same settings would give. With one seed it is over problems alone."
    )
    return Table(id, caption, ["arm", "seeds", *(f"{one_line(label)} pass@{k}" for label, _, k in columns)], lines)


def differences_table(
    id: str, what: str, comparison: ComparedArms, columns: Sequence[Column], policies: Policies, faults: list[str]
) -> Table | None:
    """Each arm minus the first one, with intervals and verdicts; None without a second arm. Args: as `arms_table`."""
    first, *others = comparison.arms
    base = _records(policies(first))
    if not others or not columns or not base:
        return None

    def cell(records: Records, sets: Sequence[str], k: int) -> Cell:
        return _difference_cell(pass_at_k_difference(*of_compared_seeds(records, base), sets, k))

    lines = []
    for arm in others:
        if arm.name in comparison.judged_otherwise:
            lines.append(Line(one_line(arm.name), [Cell(MISSING), *[Cell(MISSING, "not comparable")] * len(columns)]))
            continue
        records = _records(policies(arm))
        paired = _paired_cell(*of_compared_seeds(records, base)) if records else Cell(MISSING)
        lines.append(Line(one_line(arm.name), [paired, *_cells(arm, columns, records, faults, cell)]))
    caption = (
        f"{what}: each arm minus {one_line(first.name)}, with its 95 % interval, over the seeds that both have. A "
        "difference whose interval contains 0 is inconclusive."
    )
    return Table(id, caption, ["arm", "paired by", *(f"{one_line(label)} pass@{k}" for label, _, k in columns)], lines)


def cost_table(comparison: ComparedArms) -> Table:
    """What the runs of each arm cost, on average."""
    lines = []
    for arm in comparison.arms:
        budgets = [run.state.budget for run in arm.runs.values()]
        cells = [Cell(amount(float(np.mean([getattr(one, name) for one in budgets])))) for _, name in _COST]
        cells.append(Cell(duration(float(np.mean([one.seconds for one in budgets])))))
        lines.append(Line(one_line(arm.name), cells))
    caption = "Mean over the runs of an arm. Tokens and rollouts are those generated to train on."
    return Table("cost-table", caption, ["arm", *(title for title, _ in _COST), "time"], lines)


def settings_table(comparison: ComparedArms) -> Table | None:
    """The settings in which the arms differ; None if there are none."""
    lines = [Line(name, [Cell(value) for value in values]) for name, values in comparison.differing_settings().items()]
    if not lines:
        return None
    caption = "Settings that differ between arms."
    return Table("settings", caption, ["setting", *(one_line(arm.name) for arm in comparison.arms)], lines, text=True)


def runs_table(comparison: ComparedArms, page: Path) -> Table:
    """The runs, where they lie, and how far they are."""
    lines = []
    for arm in comparison.arms:
        for number, run in arm.runs.items():
            state = run.state
            cells = [
                Cell(str(number)),
                Cell(printable(place_of(run, page))),
                Cell(progress(run) or "complete"),
                Cell(one_line(run.last_policy) or MISSING),
                Cell(one_line(str(state.versions.get("commit", MISSING))[:_COMMIT_CHARACTERS])),
            ]
            lines.append(Line(one_line(arm.name), cells))
    caption = "The runs. Each folder has a report.html of its own."
    return Table(
        "runs-table", caption, ["arm", "seed", "folder", "progress", "last policy", "commit"], lines, text=True
    )


def signs_table(comparison: ComparedArms) -> Table:
    """In how many runs of each arm a failure signature is found."""
    lines = []
    for rule in RULES:
        name, cells = "", list[Cell]()
        for arm in comparison.arms:
            signs = [rule(run) for run in arm.runs.values()]
            name = signs[0].name
            found = sum(sign.found is True for sign in signs)
            known = sum(sign.found is not None for sign in signs)
            text = f"{found} of {known} runs" if known else "no data"
            cells.append(Cell(f"⚠ {text}" if found else text, kind="bad" if found else ""))
        lines.append(Line(name, cells))
    caption = "Failure signatures of RL with verifiable rewards. The reports of the runs tell more."
    return Table("signs", caption, ["signature", *(one_line(arm.name) for arm in comparison.arms)], lines, text=True)


def differences(comparison: ComparedArms, policies: Policies, sets: Sequence[str], k: int) -> dict[str, Difference]:
    """Each arm minus the first one, by arm, as far as they can be computed."""
    first, *others = comparison.arms
    base = _records(policies(first))
    found = {}
    for arm in others:
        if arm.name in comparison.judged_otherwise:
            continue
        try:
            found[arm.name] = pass_at_k_difference(*of_compared_seeds(_records(policies(arm)), base), sets, k)
        except ValueError:  # the table of differences tells it
            continue
    return found


def _seeds(records: Records) -> str:
    if not records:
        return MISSING
    return ", ".join(map(str, records)) if len(records) <= _MOST_SEEDS else f"{len(records)} seeds"


def _records(policies: Mapping[int, EvaluatedStage]) -> Records:
    return {number: policy.record for number, policy in policies.items()}


def _paired_cell(records: Records, base: Records) -> Cell:
    """What the differences of these records are paired by, and the number of seeds."""
    shared = records.keys() == base.keys()
    numbers = [len(records)] if shared else [len(records), len(base)]
    counts = " against ".join(f"{number} seed{'s' * (number > 1)}" for number in numbers)
    return Cell("problems and seeds" if shared and len(records) > 1 else "problems", counts)


def _interval_cell(records: Records, sets: Sequence[str], k: int) -> Cell:
    return interval_cell(pass_at_k_interval(list(records.values()), sets, k))


def _difference_cell(difference: Difference) -> Cell:
    cell = interval_cell(difference.interval, signed=True)
    return Cell(cell.text, f"{cell.remark}\n{difference.verdict}", _VERDICTS[difference.verdict])


def _cells(
    arm: Arm,
    columns: Sequence[Column],
    records: Records,
    faults: list[str],
    cell: Callable[[Records, Sequence[str], int], Cell],
) -> list[Cell]:
    """The cells of an arm. What can't be computed is told among `faults`."""
    if not records:
        return [Cell(MISSING)] * len(columns)
    cells = []
    for _, sets, k in columns:
        try:
            cells.append(cell(records, sets, k))
        except ValueError as error:
            cells.append(Cell(MISSING, "not comparable"))
            if (fault := f"{one_line(arm.name)}: {error}") not in faults:
                faults.append(fault)
    return cells
