"""The problems of a run and some of their rollouts, as data for the page's explorer, within a budget of characters.

Texts are of others, so every character that is not printable is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rloop_lightning.run.report.pool_totals import PoolTotals
from rloop_lightning.run.report.samples import (
    MOST_CHARACTERS,
    MOST_OF_A_KIND,
    MOST_STEPS,
    Samples,
    Step,
    Visit,
    cut,
    spread_steps,
)
from rloop_lightning.system.terminal import one_line, printable

BUDGET = 2_000_000
"""Characters of all data."""

_GOLD = 300
_ID = 200
_LEVELS = ((MOST_STEPS, MOST_OF_A_KIND), (8, 1), (4, 1), (2, 1))
"""Steps of a problem, and rollouts of a kind in each, from the most generous to the least."""


@dataclass(frozen=True)
class Explorer:
    """The data.

    Args:
        problems: one entry for each problem.
        note: what is left out, in words.
    """

    problems: Sequence[Mapping[str, Any]]
    note: str


def explorer(
    totals: PoolTotals, samples: Samples, prompts: Mapping[str, tuple[str, str]], budget: int = BUDGET
) -> Explorer:
    """The explorer's data, in at most about `budget` characters.

    Args:
        totals: counts of the pools.
        samples: rollouts of the chosen problems.
        prompts: prompt and gold answer by problem id, as far as they are known.
        budget: characters.
    """
    rollouts, successes = totals.counts(totals.rounds)
    chosen = list(samples.visits)
    for steps, of_a_kind in _LEVELS:
        shown: list[Mapping[str, Any]] = []
        size = 0
        for problem in _outside_in(chosen):
            number = totals.index[problem]
            entry = _entry(problem, prompts.get(problem), samples.visits[problem], steps, of_a_kind)
            entry |= {"n": int(rollouts[number]), "s": int(successes[number])}
            size += len(json.dumps(entry))
            if size > budget and shown:
                break
            shown.append(entry)
        if len(shown) == len(chosen):
            break
    return Explorer(sorted(shown, key=_order), _note(len(shown), totals, samples, bool(prompts)))


def _entry(
    problem: str, prompt: tuple[str, str] | None, visits: Mapping[Step, Visit], steps: int, of_a_kind: int
) -> dict[str, Any]:
    taken = [(step, visits[step]) for step in spread_steps(visits, steps)]
    entry: dict[str, Any] = {"id": one_line(problem, limit=_ID)}
    if prompt is not None:
        entry |= {"prompt": printable(cut(prompt[0], MOST_CHARACTERS)), "gold": one_line(prompt[1], limit=_GOLD)}
    entry["steps"] = [
        [number + 1, step, visit.rollouts, visit.right, _shown(visit, of_a_kind)] for (number, step), visit in taken
    ]
    return entry


def _shown(visit: Visit, of_a_kind: int) -> list[list[Any]]:
    rollouts = [
        rollout for kind in (True, False) for rollout in [one for one in visit.shown if one.success == kind][:of_a_kind]
    ]
    return [
        [
            int(one.success),
            f"{one.reward:.4g}",
            one.length,
            int(one.finish_reason == "length"),
            printable(one.text),
        ]
        for one in rollouts
    ]


def _outside_in(values: Sequence[str]) -> list[str]:
    """An order whose every beginning is spread over the values."""
    step = 1 << max(len(values) - 1, 0).bit_length()
    order: dict[int, None] = {}
    while step:
        order |= dict.fromkeys(range(0, len(values), step))
        step //= 2
    return [values[place] for place in order]


def _order(entry: Mapping[str, Any]) -> tuple[float, str]:
    return entry["s"] / max(entry["n"], 1), entry["id"]


def _note(shown: int, totals: PoolTotals, samples: Samples, prompts: bool) -> str:
    known = len(totals.index)
    parts = [f"All {known:,} problems" if shown == known else f"{shown:,} of {known:,} problems, of all success rates,"]
    parts.append("with some right and some wrong rollouts of up to a dozen rollout steps each")
    text = " ".join(parts) + "."
    if samples.shards_read < samples.shards:
        text += f" Rollouts were read from {samples.shards_read:,} of {samples.shards:,} rollout steps."
    return text if prompts else f"{text} Prompts are shown where the data of the run can be read."
