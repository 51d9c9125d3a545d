"""Answers to try on a gold answer, for reports: other spellings of it, and answers close to it.

    judged = judge_samples(reward, problem, reading)
    judged.accepted, judged.refused

The reward judges every one of them, so the report shows what it does, not what it should do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.verdict import GoldReading, Verdict
from rloop_lightning.types import Problem

_LONGEST = 100  # characters of a gold answer in a sample
_NUMBER = re.compile(r"-?\d{1,30}(?:/\d{1,30}|\.\d{1,30})?")


@dataclass(frozen=True)
class JudgedSamples:
    """Answers by the reward's verdict on them, with what it says about each."""

    accepted: Sequence[tuple[str, Verdict]]
    refused: Sequence[tuple[str, Verdict]]


def judge_samples(reward: Reward, problem: Problem, reading: GoldReading) -> JudgedSamples:
    """The reward's verdicts on sample answers to a problem, each in a box. Empty if the reward tells no verdicts."""
    answers = dict.fromkeys(sample_answers(problem.answer, reading)) if len(problem.answer) <= _LONGEST else ()
    told = [(answer, reward.explain(problem, f"\\boxed{{{answer}}}")) for answer in answers]
    judged = [(answer, verdict) for answer, verdict in told if verdict is not None]
    return JudgedSamples(
        accepted=[pair for pair in judged if pair[1].right], refused=[pair for pair in judged if not pair[1].right]
    )


def sample_answers(gold: str, reading: GoldReading) -> Iterator[str]:
    """Answers that are equal or close to a gold answer."""
    yield gold
    number = _NUMBER.match(reading.value)
    if reading.kind in ("integer", "decimal", "fraction", "percentage") and number:
        yield from _numbers(Fraction(number.group()), reading)
    elif reading.kind in ("list", "set", "point or open interval", "interval"):
        yield rf"x \in {gold}"
        yield from _lists(reading.value)
    elif reading.kind == "choice":
        letter = reading.value.removeprefix("choice ")[:1]
        yield from (letter, f"({letter})", rf"\textbf{{({letter})}}", letter.lower(), "D" if letter == "C" else "C")
    elif reading.kind == "text":
        yield from (gold.upper(), rf"\text{{{gold}}}", f"{gold} or not", " ".join(reversed(gold.split())))
    else:
        yield from (rf"\frac{{2({gold})}}{{2}}", f"x = {gold}", f"-({gold})", f"{gold}+1")


def _numbers(value: Fraction, reading: GoldReading) -> Iterator[str]:
    if value.denominator == 1:
        yield from (str(value), f"{value}.0", f"{int(value):,}", rf"{value}\text{{ cm}}", rf"\frac{{{2 * value}}}{{2}}")
    else:
        yield from (str(value), rf"\frac{{{value.numerator}}}{{{value.denominator}}}", f"{float(value):.10g}")
        yield f"{float(value):.1f}"
    if reading.kind == "percentage":
        yield from (rf"{value}\%", str(float(value / 100)))
    yield from (f"{value + 1}", f"{-value}", f"{float(value / 10):g}", f"{value}x")


def _lists(value: str) -> Iterator[str]:
    value = value.removeprefix("the list ")
    bare = value[1:-1] if value[:1] in ("(", "[", "{") and value[-1:] in (")", "]", "}") else value
    items = bare.split(", ")
    yield from (bare, ", ".join(reversed(items)), rf"\{{{bare}\}}", f"({bare})", f"[{bare}]")
    yield from (items[0], ", ".join([*items, "7"]))
