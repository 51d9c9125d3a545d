r"""Decides whether an answer is right. Runs in workers and imports no torch.

    extract (extraction.py) -> normalise (spelling.py) -> parse (reading.py) -> compare (compare.py)

`check` and `explain` do this on JSON values, `check` for the reward and `explain` for people. `describe_gold` tells how
a gold answer is read.
"""

from __future__ import annotations

import logging
import random
import re
from typing import Literal

from sympy.core.random import seed as seed_sympy  # type: ignore[import-untyped]  # sympy ships no types

from rloop_lightning.rewards.compare import matches
from rloop_lightning.rewards.describe import describe, flags, kind
from rloop_lightning.rewards.extraction import Extract, extract
from rloop_lightning.rewards.reading import read
from rloop_lightning.rewards.tokens import UnreadableError
from rloop_lightning.rewards.values import Reading

Judgement = Literal["right", "wrong", "unparsable"]

_OPEN_BOX = re.compile(r"\\+boxed\{")

for _name in ("math_verify.parser", "math_verify.grader"):
    # They ask for a time limit, which the worker enforces, and log every text that they can't parse.
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def check(task: tuple[str, str | None]) -> Judgement:
    """Judgement on `(gold, answer)`. If the answer is None, whether the gold answer can be read.

    An answer that can't be read is still right if it is identical to the gold answer.
    """
    gold, answer = task
    if answer is not None and answer.strip() == gold.strip() != "":
        return "right"
    golds = read_gold(gold)
    if answer is None:
        return "right" if golds.values else "unparsable"
    answers = read(answer)
    try:
        if _matches(golds, answers):
            return "right"
    except UnreadableError:
        return "unparsable"
    return "wrong" if answers.values else "unparsable"


def explain(task: tuple[str, str, Extract]) -> tuple[bool, str, str, str, str]:
    """On `(gold, response, mode)`: the values of a `Verdict`, in the order of its fields."""
    gold, response, mode = task
    golds = read_gold(gold)
    gold_read = describe(golds)
    answer = (extract(response, mode) or "").strip()
    if not answer:
        return False, gold_read, "", "the response has no answer in the places of this mode", ""
    answers = read(answer)
    try:
        right = answer == gold.strip() or _matches(golds, answers)
    except UnreadableError as error:
        return False, gold_read, describe(answers), f"they can't be compared: {error}", answer
    if not golds.values and not right:
        reason = f"the gold answer can't be read: {golds.problem}"
    elif not answers.values and not right:
        reason = f"the answer can't be read: {answers.problem}"
    elif golds.text == answers.text or answer == gold.strip():
        reason = "the same text"
    else:
        reason = "equal" if right else "not equal"
    return right, gold_read, describe(answers), reason, answer


def describe_gold(gold: str) -> tuple[str, str, list[str]]:
    """What a gold answer is read as: its value, its type, and what is suspicious about it (`flags` in describe.py)."""
    reading = read_gold(gold)
    return describe(reading), kind(reading), flags(gold, reading)


def read_gold(gold: str) -> Reading:
    """The readings of a gold answer: of all of it, or of the answer that it states, such as 5 in "The answer is 5"."""
    whole = read(gold)
    if not _is_sentence(whole):
        return whole
    stated = extract(_OPEN_BOX.sub("", gold, count=1) if gold.count("{") > gold.count("}") else gold)
    found = read(stated) if stated is not None and stated != gold.strip() else whole
    return found if found.values else whole


def _is_sentence(reading: Reading) -> bool:
    return any(mark in reading.text for mark in ("boxed", "answer"))


def _matches(gold: Reading, answer: Reading) -> bool:
    random.seed(0)  # some of sympy's equality tests use random numbers
    seed_sympy(0)
    return matches(gold, answer)
