"""The part of `rloop-data check` that shows how gold answers are read, and what answers would be accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.samples import judge_samples
from rloop_lightning.rewards.verdict import GoldReading
from rloop_lightning.run.forecast import spread
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Problem

_ALL_SHOWN = 20  # gold answers of a set that are shown one by one without --limit
_FLAGGED_SHOWN = 20
_SAMPLED = 5  # problems of which sample answers are judged
_SAMPLES_SHOWN = 6
_CHARACTERS = 80  # of a gold answer or an answer


def gold_lines(reward: Reward, problems: Sequence[Problem], limit: int | None) -> Iterator[str]:
    """How the gold answers of a set are read: their types, each or some of them, and what is suspicious.

    Args:
        reward: reads them; nothing is printed if it does not.
        problems: the set.
        limit: number of gold answers that are shown, evenly spread; None shows all of a small set.
    """
    golds = list(dict.fromkeys(gold for problem in problems for gold in problem.golds))
    readings = dict(zip(golds, reward.readings(golds), strict=False))
    if not readings:
        return
    kinds = Counter(readings[gold].kind for problem in problems for gold in problem.golds)
    yield "  gold answers as the reward reads them: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())
    several = sum(bool(problem.alternatives) for problem in problems)
    if several:
        yield f"  problems with alternatives, each of which is right: {several:,}"
    count = limit or (len(problems) if len(problems) <= _ALL_SHOWN else 0)
    shown = spread(problems, count) if count else []
    for problem in shown:
        yield from (_line(problem, gold, readings[gold]) for gold in problem.golds)
    flagged = [(problem, gold) for problem in problems for gold in problem.golds if readings[gold].flags]
    yield f"  suspicious gold answers: {len(flagged):,}"
    known = {problem.id for problem in shown}
    rest = [(problem, gold) for problem, gold in flagged if problem.id not in known]
    yield from (_line(problem, gold, readings[gold]) for problem, gold in _one_of_each(rest, readings))
    if len(rest) > _FLAGGED_SHOWN:
        yield f"    and {len(rest) - _FLAGGED_SHOWN:,} more; --limit N shows N gold answers"


def sample_lines(reward: Reward, problems: Sequence[Problem]) -> Iterator[str]:
    """Answers that the reward accepts and refuses, for a few problems of different types."""
    found = [(problem, reward.readings([problem.answer])) for problem in _different(reward, problems)]
    sampled = [(problem, judge_samples(reward, problem, read[0])) for problem, read in found if read]
    if not sampled:
        return
    yield f"\nanswers that the reward accepts and refuses, for {len(sampled)} of train:"
    for problem, judged in sampled:
        golds = " or ".join(_shown(gold) for gold in problem.golds)
        yield f"  {one_line(problem.id)}, gold answer {golds}"
        accepted = [_shown(answer) for answer, _ in judged.accepted[:_SAMPLES_SHOWN]]
        refused = [f"{_shown(answer)} ({one_line(told.reason)})" for answer, told in judged.refused[:_SAMPLES_SHOWN]]
        yield f"    accepted: {', '.join(accepted) or 'none'}"
        yield f"    refused:  {', '.join(refused) or 'none'}"


def _line(problem: Problem, gold: str, reading: GoldReading) -> str:
    read = f"{one_line(reading.value, limit=200)} ({reading.kind})" if reading.value else reading.kind
    flags = f"; {', '.join(map(one_line, reading.flags))}" if reading.flags else ""
    return f"    {one_line(problem.id)}: {_shown(gold)} is read as {read}{flags}"


def _one_of_each(
    flagged: Sequence[tuple[Problem, str]], readings: dict[str, GoldReading]
) -> Sequence[tuple[Problem, str]]:
    """As many as are shown, those with different flags first."""
    first = {readings[gold].flags[0]: (problem, gold) for problem, gold in reversed(flagged)}
    ordered = [*reversed(first.values()), *flagged]
    return list({(problem.id, gold): (problem, gold) for problem, gold in ordered}.values())[:_FLAGGED_SHOWN]


def _different(reward: Reward, problems: Sequence[Problem]) -> Sequence[Problem]:
    """A few problems whose gold answers are of different types, as far as there are."""
    some = spread(problems, min(len(problems), 200))
    kinds: dict[str, Problem] = {}
    for problem, reading in zip(some, reward.readings([problem.answer for problem in some]), strict=False):
        kinds.setdefault(reading.kind, problem)
    chosen = [*kinds.values(), *some]
    return list({problem.id: problem for problem in chosen}.values())[:_SAMPLED]


def _shown(text: str) -> str:
    return f"'{one_line(text, limit=_CHARACTERS)}'"
