"""What a study says: every arm's policies with intervals, and their differences to the first arm.

comparison = compare(study)
comparison.rows[1].differences["test/pass@1"].verdict       # better, worse or inconclusive

Three policies of a run are compared: the base policy, the last explored one, and the one that was handed over. A
difference is a policy's value minus that of the policy which the first arm handed over, over the seeds that both have,
paired by seed and problem. Arms that share no seed are paired by problem alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rloop_lightning.evaluation.record import read_record
from rloop_lightning.evaluation.record_values import (
    of_compared_seeds,
    other_verdicts,
    pass_at_k_difference,
    pass_at_k_interval,
    with_average,
)
from rloop_lightning.run.comparison_figure import Figure
from rloop_lightning.run.metrics_csv import PASS_AT_K, MetricsError
from rloop_lightning.run.state import LoopState, Stage
from rloop_lightning.run.study import Arm, Cell, Study
from rloop_lightning.run.training_figures import training_figures
from rloop_lightning.system.terminal import one_line

ComparedPolicy = Literal["base", "last explored", "handed over"]

ALL_ARMS = "all arms"
OTHER_ARMS = "the other arms"  # where some have a row of their own
_TOKENS_APART = 0.05  # a budget is overshot by up to one rollout step an exploration
COSTS = ("rollout_steps", "optimizer_steps", "rollouts", "tokens", "seconds")
_STAGE = re.compile(r"round (\d+) (explored|consolidated)")
_END_OF_INTERVAL = re.compile(r"(.+)_(?:low|high)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One policy of an arm.

    Args:
        arm: name of the arm; `ALL_ARMS` or `OTHER_ARMS` for a base policy that they share.
        policy: which policy of its runs.
        figures: by metric: `SET/pass@K`, then other metrics of the policy, such as `SET/entropy_nats`.
        differences: by metric, to the policy that the first arm handed over; none for that policy itself.
    """

    arm: str
    policy: ComparedPolicy
    figures: Mapping[str, Figure]
    differences: Mapping[str, Figure]


@dataclass(frozen=True)
class Comparison:
    """The results of a study so far.

    Args:
        reference: name of the first arm.
        rows: the policies.
        training: by arm, how its runs trained: the figures of `training_figures`.
        costs: by arm, the cost of a run: `tokens`, `seconds` and others of `COSTS`.
        missing: the cells that are not complete.
        notes: what a reader must know, such as an arm whose problems differ.
    """

    reference: str
    rows: Sequence[Row]
    training: Mapping[str, Mapping[str, Figure]]
    costs: Mapping[str, Mapping[str, Figure]]
    missing: Sequence[Cell]
    notes: Sequence[str]

    @property
    def metrics(self) -> list[str]:
        """The metrics of all rows."""
        return list(dict.fromkeys(metric for row in self.rows for metric in row.figures))


@dataclass(frozen=True)
class _Evaluated:
    """A policy of a complete run: the record of its evaluation, and its metrics."""

    name: str
    record: Path
    metrics: Mapping[str, float]


def compare(study: Study) -> Comparison:
    """Compare the complete cells of a study."""
    states = {cell: state for cell in study.cells if (state := _complete_state(cell))}
    notes = [f"{cell}: {note}" for cell, state in states.items() for note in state.notes]
    notes += _unequal_tokens(study, states)
    found = {
        arm.name: _policies({cell.seed: (cell, states[cell]) for cell in study.cells_of(arm) if cell in states}, notes)
        for arm in study.arms
    }
    reference = study.arms[0]
    builder = _Builder(found[reference.name].get("handed over", {}), notes)
    bases = {name: policies.get("base", {}) for name, policies in found.items()}
    apart = {
        arm.name for arm in study.arms if _judged_otherwise(arm.name, bases[arm.name], bases[reference.name], notes)
    }
    others = [arm for arm in study.arms if arm.name not in apart]
    shared_base = all(_same_base(arm, reference) for arm in others)
    rows = []
    base = next((bases[arm.name] for arm in others if bases[arm.name]), {})
    if shared_base and base:
        rows.append(builder.row(OTHER_ARMS if apart else ALL_ARMS, "base", base))
    for arm in study.arms:
        for policy, by_seed in found[arm.name].items():
            if policy == "base" and shared_base and arm in others:
                continue
            alone = arm.name in apart or (policy == "handed over" and arm is reference)
            rows.append(builder.row(arm.name, policy, by_seed, alone=alone))
    complete = {arm.name: [cell for cell in study.cells_of(arm) if cell in states] for arm in study.arms}
    training = {name: _training(cells, notes) for name, cells in complete.items()}
    costs = {name: _costs([states[cell] for cell in cells]) for name, cells in complete.items()}
    missing = [cell for cell in study.cells if cell not in states]
    return Comparison(reference.name, rows, training, costs, missing, list(dict.fromkeys(notes)))


class _Builder:
    """Makes the rows.

    Args:
        reference: by seed, the policies that the first arm handed over.
        notes: takes what a reader must know.
    """

    def __init__(self, reference: Mapping[int, _Evaluated], notes: list[str]) -> None:
        self._reference = reference
        self._notes = notes

    def row(self, arm: str, policy: ComparedPolicy, by_seed: Mapping[int, _Evaluated], *, alone: bool = False) -> Row:
        """A row; `alone` has no difference to the reference."""
        figures: dict[str, Figure] = {}
        differences: dict[str, Figure] = {}
        records = {seed: one.record for seed, one in by_seed.items()}
        shared, references = of_compared_seeds(records, {seed: one.record for seed, one in self._reference.items()})
        for label, sets, k in with_average(_passes(by_seed.values())):
            metric = f"{label}/pass@{k}"
            try:
                figures[metric] = Figure.of(pass_at_k_interval([records[seed] for seed in sorted(records)], sets, k))
                if references and not alone:
                    before = pass_at_k_interval([references[seed] for seed in sorted(references)], sets, k)
                    found = pass_at_k_difference(shared, references, sets, k)
                    differences[metric] = Figure.of(found, before.estimate)
            except ValueError as error:
                self._notes.append(f"{arm}, {policy}: no comparison of {one_line(metric)}: {error}")
        paired = [] if alone else sorted(by_seed.keys() & self._reference.keys())
        self._add_others(by_seed, paired, figures, differences)
        return Row(arm, policy, figures, differences)

    def _add_others(
        self,
        by_seed: Mapping[int, _Evaluated],
        paired: Sequence[int],
        figures: dict[str, Figure],
        differences: dict[str, Figure],
    ) -> None:
        """Add the metrics of which a run has one value each."""
        for metric in dict.fromkeys(metric for one in by_seed.values() for metric in one.metrics):
            name = metric.removeprefix("eval/")
            values = {seed: one.metrics[metric] for seed, one in by_seed.items() if metric in one.metrics}
            end = _END_OF_INTERVAL.fullmatch(metric)
            of_one_run = end is not None and any(end[1] in one.metrics for one in by_seed.values())
            if "/pass@" in metric or of_one_run or not np.isfinite(list(values.values())).all():
                continue
            figures[name] = Figure.over_seeds(list(values.values()))
            before = {seed: self._reference[seed].metrics.get(metric, np.nan) for seed in paired if seed in values}
            if before and np.isfinite(list(before.values())).all():
                differences[name] = Figure.over_seeds([values[seed] - before[seed] for seed in before])


def _complete_state(cell: Cell) -> LoopState | None:
    state = cell.state()
    return state if state is not None and state.phase == "done" and state.selected else None


def _policies(
    runs: Mapping[int, tuple[Cell, LoopState]], notes: list[str]
) -> dict[ComparedPolicy, dict[int, _Evaluated]]:
    """By policy and seed, what was evaluated. The last explored policy is left out where it was handed over."""
    found: dict[ComparedPolicy, dict[int, _Evaluated]] = {"base": {}, "last explored": {}, "handed over": {}}
    for seed, (cell, state) in runs.items():
        explored = [name for name in state.results if name.endswith(" explored")]
        named: dict[ComparedPolicy, str] = {
            "base": "base",
            "last explored": explored[-1],
            "handed over": state.selected,
        }
        for policy, name in named.items():
            record = cell.run.evaluation(_stage(name))
            try:
                read_record(record)
            except ValueError as error:
                again = f"to make the run again, move {cell.run.out} away and repeat the command"
                notes.append(f"{cell}: {error}; the policy is left out; {again}")
                continue
            found[policy][seed] = _Evaluated(name, record, state.results.get(name, {}))
    names = [{seed: one.name for seed, one in found[policy].items()} for policy in ("last explored", "handed over")]
    if names[0] == names[1]:
        del found["last explored"]
    return {policy: by_seed for policy, by_seed in found.items() if by_seed}


def _unequal_tokens(study: Study, states: Mapping[Cell, LoopState]) -> Iterator[str]:
    """Cells that generated another number of tokens than their budget."""
    tokens = {(cell.arm.name, cell.seed): state.budget.tokens for cell, state in states.items()}
    for cell in states:
        reference = study.reference(cell)
        if reference is None:
            continue
        spent, budget = tokens[cell.arm.name, cell.seed], tokens.get((reference.arm.name, cell.seed), 0)
        if abs(spent - budget) > _TOKENS_APART * budget:
            yield f"{cell}: it generated {spent:,} tokens, and its budget was the {budget:,} of {reference}"


def _stage(name: str) -> Stage:
    """The evaluation of the policy of this name in the results."""
    match = _STAGE.fullmatch(name)
    if match is None:
        return Stage(0, "evaluate", "base")
    return Stage(int(match[1]) - 1, "evaluate", "explored" if match[2] == "explored" else "consolidated")


def _passes(policies: Iterable[_Evaluated]) -> list[tuple[str, int]]:
    """Each set with each k that some policy was evaluated with."""
    found = [match for one in policies for metric in one.metrics if (match := PASS_AT_K.fullmatch(metric))]
    return list(dict.fromkeys((match["set"], int(match["k"])) for match in found))


def _same_base(arm: Arm, other: Arm) -> bool:
    """Whether both arms begin with the same policy and evaluate it in the same way."""
    return all(arm.settings.get(group) == other.settings.get(group) for group in ("policy", "data", "engine", "eval"))


def _judged_otherwise(
    name: str, base: Mapping[int, _Evaluated], reference: Mapping[int, _Evaluated], notes: list[str]
) -> bool:
    """Whether an arm's reward takes other rollouts for successes than that of the first arm, with a note."""
    told = [other_verdicts(base[seed].record, reference[seed].record) for seed in base.keys() & reference.keys()]
    notes += [f"{name} (here) and the first arm (there): {one}" for one in [*filter(None, told)][:1]]
    return any(told)


def _training(cells: Sequence[Cell], notes: list[str]) -> dict[str, Figure]:
    """How the complete runs of an arm trained. A run whose metrics are damaged is left out, with a note."""
    values: dict[str, list[float]] = {}
    for cell in cells:
        try:
            found = training_figures(cell.run.metrics)
        except MetricsError as error:
            notes.append(f"{cell}: {error}; the figures of its training are left out")
            continue
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    return {name: Figure.over_seeds(of_seeds) for name, of_seeds in values.items() if np.isfinite(of_seeds).all()}


def _costs(states: Sequence[LoopState]) -> dict[str, Figure]:
    budgets = [asdict(state.budget) for state in states]
    return {name: Figure.over_seeds([budget[name] for budget in budgets]) for name in COSTS} if budgets else {}
