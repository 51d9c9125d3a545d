"""The math reward: 1 if the completion's answer is equivalent to the gold answer, else 0.

Worker processes (workers.py) parse and compare under a limit on time and memory. An answer that exceeds a limit scores
0 and is counted.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.extraction import Extract, extract
from rloop_lightning.rewards.verdict import GoldReading, Verdict, check, read_golds
from rloop_lightning.rewards.worker import Status
from rloop_lightning.rewards.workers import Outcome, WorkerPool
from rloop_lightning.system.fields import PositiveFloat, PositiveInt, check_fields
from rloop_lightning.types import CheckFault, Problem, Scored

_COUNTS = ("checked", "cached", "timed_out", "crashed", "unparsable")
_INTEGER = re.compile(r"-?[1-9][0-9]{0,17}|0")
REMEMBERED_PAIRS = 100_000  # about 15 MB
_SHOWN_CHARACTERS = 80  # of a gold answer in a message

_Verdict = Literal["right", "wrong"] | CheckFault
_FAULT_OF: Mapping[Status, CheckFault] = {"timed_out": "timeout", "exceeded_memory": "memory"}
_FAULTS: Sequence[CheckFault] = ("timeout", "memory", "crash")


class MathReward(Reward):
    """1.0 if the answer is equivalent to the gold answer, else 0.0.

    Gold answers and answers may be LaTeX, plain expressions, numbers, sets, intervals, matrices, equations and
    percentages, with or without units, choices and words. docs/rewards.md tells how each is read.

    Args:
        extract: where the answer is: `box`, in the last \\boxed{}; `last`, at the end of the last non-empty line, such
            as 80 in "A: 80", else the last number; `auto`, in an <answer> tag, in the last \\boxed{}, behind "the
            answer is", or as for `last`. It is read in the same way wherever it is.
        workers: number of worker processes.
        time_limit_s: limit for one answer, seconds of CPU time.
        memory_limit_mb: address space of a worker, MiB; the interpreter and sympy take about 80.
        max_characters: a longer answer scores 0 without being parsed.
        success_threshold: smallest reward that counts as a success.
    """

    def __init__(
        self,
        *,
        extract: Extract = "auto",
        workers: PositiveInt = 2,
        time_limit_s: PositiveFloat = 5.0,
        memory_limit_mb: PositiveInt = 1024,
        max_characters: PositiveInt = 4000,
        success_threshold: float = 1.0,
    ) -> None:
        super().__init__(success_threshold)
        self.extract = extract
        self.workers = workers
        self.time_limit_s = time_limit_s
        self.memory_limit_mb = memory_limit_mb
        self.max_characters = max_characters
        check_fields(self, "--reward")
        self.pool = WorkerPool(
            "rloop_lightning.rewards.equivalence:check",
            processes=workers,
            time_limit_s=time_limit_s,
            memory_limit_mb=memory_limit_mb,
        )
        self._verdicts: OrderedDict[bytes, _Verdict] = OrderedDict()  # by pair, least recently used first
        self._counts: Counter[str] = Counter()

    def close(self) -> None:
        """End the worker processes. They start again when needed."""
        self.pool.close()

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [scored.reward for scored in self(problems, texts)]

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Scored]:
        pairs = self._pairs(problems, texts)
        self._counts["unparsable"] += pairs.count([])
        verdicts = iter(self._judge([pair for of_one in pairs for pair in of_one]))
        return [self._scored({next(verdicts) for _ in of_one}) for of_one in pairs]

    def _scored(self, verdicts: Collection[_Verdict]) -> Scored:
        """By the verdicts on a completion's answer, one for each gold answer."""
        reward = float("right" in verdicts)
        faults: list[CheckFault] = [] if reward else [one for one in _FAULTS if one in verdicts]
        return Scored(reward, reward >= self.success_threshold, check_fault=faults[0] if faults else "")

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[_Verdict]:
        """The verdict on each answer, in order."""
        keys = [_key(*pair) for pair in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._verdicts}
        verdicts = dict(zip(new, map(self._verdict, self.pool.map(list(new.values()))), strict=True))
        self._counts["checked"] += len(new)
        self._counts["cached"] += len(pairs) - len(new)
        verdicts |= {key: self._verdicts[key] for key in keys if key not in verdicts}
        self._remember(verdicts)
        return [verdicts[key] for key in keys]

    def answers(self, texts: Sequence[str]) -> Sequence[str | None]:
        return [None if (answer := self._answer(text)) is None else answer.strip() for text in texts]

    def equal_answers(self, pairs: Sequence[tuple[str, str]]) -> Sequence[bool]:
        """As an answer and the gold answer are compared. A pair whose check exceeds a limit is not equal."""
        # Integers in their usual form need no check; most wrong answers are such.
        hard = [number for number, pair in enumerate(pairs) if not all(map(_INTEGER.fullmatch, pair))]
        outcomes = self.pool.map([pairs[number] for number in hard])
        equal = {number for number, outcome in zip(hard, outcomes, strict=True) if outcome.value == "right"}
        return [number in equal for number in range(len(pairs))]

    def metrics(self) -> dict[str, float]:
        """Counts of completions by outcome since the last call.

        `checked` and `cached` count completions with an answer. `timed_out`, `crashed` (also by exceeding the memory
        limit) and `unparsable` count checked ones that scored 0 for that reason. `unparsable` also counts completions
        without an answer.
        """
        counts, self._counts = self._counts, Counter()
        return {name: float(counts[name]) for name in _COUNTS}

    def unusable(self, problems: Sequence[Problem]) -> Mapping[str, str]:
        """Reads every gold answer, each distinct one once."""
        golds = list(dict.fromkeys(gold for problem in problems for gold in problem.golds))
        outcomes = self.pool.map([(gold, None) for gold in golds])
        faults = {
            gold: "the reward can't read" if outcome.status == "done" else f"checking {outcome.status} on"
            for gold, outcome in zip(golds, outcomes, strict=True)
            if outcome.value != "right"
        }
        bad = {problem.id: next((gold for gold in problem.golds if gold in faults), None) for problem in problems}
        return {
            name: f"{faults[gold]} the gold answer {gold[:_SHOWN_CHARACTERS]!r}"
            for name, gold in bad.items()
            if gold is not None
        }

    def _pairs(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[list[tuple[str, str]]]:
        """The pairs of a gold answer and the completion's answer; none for a completion without an answer."""
        answers = map(self._answer, texts)
        return [
            [] if answer is None else [(gold, answer) for gold in problem.golds]
            for problem, answer in zip(problems, answers, strict=True)
        ]

    def readings(self, golds: Sequence[str]) -> Sequence[GoldReading]:
        return read_golds(list(golds))

    def explain(self, problem: Problem, text: str) -> Verdict:
        if len(extract(text, self.extract) or "") > self.max_characters:
            return Verdict(False, "", "", f"the answer is longer than {self.max_characters:,} characters")
        verdicts = [check(gold, text, self.extract) for gold in problem.golds]
        return next((verdict for verdict in verdicts if verdict.right), verdicts[0])

    def _answer(self, text: str) -> str | None:
        """The part of a completion that is compared; None if there is no answer or it is too long."""
        answer = extract(text, self.extract)
        return answer if answer is not None and answer.strip() and len(answer) <= self.max_characters else None

    def _verdict(self, outcome: Outcome) -> _Verdict:
        if outcome.status == "done":
            self._counts["unparsable"] += outcome.value == "unparsable"
            return "right" if outcome.value == "right" else "wrong"
        self._counts["timed_out" if outcome.status == "timed_out" else "crashed"] += 1
        return _FAULT_OF.get(outcome.status, "crash")

    def _remember(self, verdicts: dict[bytes, _Verdict]) -> None:
        for key, verdict in verdicts.items():
            self._verdicts[key] = verdict
            self._verdicts.move_to_end(key)
        for _ in range(len(self._verdicts) - REMEMBERED_PAIRS):
            self._verdicts.popitem(last=False)


def _key(gold: str, answer: str) -> bytes:
    """A 16-byte digest of a pair of texts."""
    texts: Iterable[bytes] = (text.encode(errors="surrogatepass") for text in (gold, answer))
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.digest()
