"""The verifier as a function: what was read, and why it is right or wrong.

    from rloop_lightning.rewards import check

    check("1/2", r"so it is \\boxed{0.5}")
    # Verdict(right=True, gold_read="1/2", answer_read="0.5", reason="equal")

It judges as the math reward does, in a worker process that starts with the first call. Time and memory are limited.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from rloop_lightning.rewards.extraction import Extract
from rloop_lightning.rewards.workers import WorkerPool

_LIMITS = {
    "timed_out": "the check exceeded its time limit",
    "exceeded_memory": "the check exceeded its memory limit",
    "crashed": "the check crashed",
}


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check.

    Args:
        right: whether the response's answer is the gold answer.
        gold_read: what the gold answer is read as; empty if it can't be read.
        answer_read: what the response's answer is read as; empty if there is none or it can't be read.
        reason: why it is right or wrong.
        extracted: the part of the response that is its answer; empty if there is none.
    """

    right: bool
    gold_read: str
    answer_read: str
    reason: str
    extracted: str = field(default="", compare=False)

    def in_words(self) -> str:
        """One line: what was extracted, what it was read as, and why it is right or wrong."""
        outcome = "right" if self.right else "wrong"
        if not self.extracted:
            return f"{outcome}: {self.reason}"
        read = f"read as {self.answer_read}" if self.answer_read else "not readable"
        return f"{outcome}: extracted '{self.extracted}', {read}; {self.reason}"


@dataclass(frozen=True)
class GoldReading:
    """How a gold answer is read.

    Args:
        value: what it is read as; empty if it can't be read.
        kind: its type, such as `integer`, `list` or `text`.
        flags: what is suspicious about it, each in a few words.
    """

    value: str
    kind: str
    flags: tuple[str, ...]


def check(gold: str, response: str, extract: Extract = "auto") -> Verdict:
    """Whether a response answers a problem rightly.

    Args:
        gold: the gold answer.
        response: a whole completion, or only an answer.
        extract: where the answer is, see `MathReward`.
    """
    (outcome,) = _pool("explain").map([(gold, response, extract)])
    if outcome.status != "done":
        return Verdict(False, "", "", _LIMITS.get(outcome.status, "the check failed"))
    return Verdict(*outcome.value)


def read_golds(golds: list[str]) -> list[GoldReading]:
    """How each gold answer is read, in order."""
    outcomes = _pool("describe_gold").map(golds)
    return [
        GoldReading(outcome.value[0], outcome.value[1], tuple(outcome.value[2]))
        if outcome.status == "done"
        else GoldReading("", "unreadable", (_LIMITS.get(outcome.status, "the check failed"),))
        for outcome in outcomes
    ]


@lru_cache(maxsize=2)
def _pool(function: str) -> WorkerPool:
    return WorkerPool(
        f"rloop_lightning.rewards.equivalence:{function}", processes=1, time_limit_s=5.0, memory_limit_mb=1024
    )
