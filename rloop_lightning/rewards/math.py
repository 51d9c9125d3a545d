"""The math reward: 1 where the completion's answer means the same as the gold answer to math-verify, else 0.

Parsing and comparing run in worker processes (workers.py) with a limit on time and memory: an answer that passes it
scores 0 and is counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.extraction import form, last_answer, last_box
from rloop_lightning.rewards.workers import Outcome, WorkerPool
from rloop_lightning.system.fields import PositiveFloat, PositiveInt, check_fields
from rloop_lightning.types import Problem

_COUNTS = ("checked", "cached", "timed_out", "crashed", "unparsable")
_REMEMBERED_PAIRS = 100_000  # about 15 MB
_SHOWN_CHARACTERS = 80  # of a gold answer, in a message


class MathReward(Reward):
    """1.0 where the answer equals the gold answer (Math-Verify), else 0.0.

    Gold and answer may be LaTeX, plain expressions, numbers, sets, intervals, matrices, equations, percentages, and
    have units.

    Args:
        extract: where the answer stands: `box`, in the last \\boxed{}; `last`, at the end of the last line that is not
            empty, such as 80 of "A: 80", or else the last number; `auto`, wherever math-verify finds one.
        workers: processes that check answers.
        time_limit_s: wall-clock seconds that one answer may take.
        memory_limit_mb: address space of a worker, MiB; the interpreter and sympy take about 80.
        max_characters: an answer from the box or the last line that is longer scores 0 unread; `auto` looks at this
            many characters at the completion's end.
        success_threshold: the reward from which on a rollout counts as a success.
    """

    def __init__(
        self,
        *,
        extract: Literal["auto", "box", "last"] = "auto",
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
        self._verdicts: OrderedDict[bytes, bool] = OrderedDict()  # by pair, the one used longest ago first
        self._counts: Counter[str] = Counter()

    def close(self) -> None:
        """End the worker processes; they start again when there is something to check."""
        self.pool.close()

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        pairs = [(problem.answer, self._answer(text)) for problem, text in zip(problems, texts, strict=True)]
        keys = [None if answer is None else _key(gold, answer) for gold, answer in pairs]
        new = {
            key: (gold, answer)
            for key, (gold, answer) in zip(keys, pairs, strict=True)
            if key is not None and key not in self._verdicts
        }
        is_answer = self.extract != "auto"
        verdicts = dict(
            zip(
                new,
                map(self._verdict, self.pool.map([(gold, text, is_answer) for gold, text in new.values()])),
                strict=True,
            )
        )
        self._counts["checked"] += len(new)
        self._counts["cached"] += sum(key is not None for key in keys) - len(new)
        self._counts["unparsable"] += keys.count(None)
        for key in keys:
            if key is not None and key not in verdicts:
                verdicts[key] = self._verdicts[key]
        self._remember(verdicts)
        return [0.0 if key is None else float(verdicts[key]) for key in keys]

    def metrics(self) -> dict[str, float]:
        """Completions by what became of them, since the last call.

        `checked` and `cached` are those with an answer; of the checked ones, `timed_out`, `crashed` (over the memory
        limit, mostly) and `unparsable` scored 0 for that. `unparsable` also counts completions without an answer.
        """
        counts, self._counts = self._counts, Counter()
        return {name: float(counts[name]) for name in _COUNTS}

    def unusable(self, problems: Sequence[Problem]) -> Mapping[str, str]:
        """Reads one gold answer of each form, and each one by itself of the forms whose first can't be read."""
        golds = dict.fromkeys(problem.answer for problem in problems)
        first_of: dict[str, str] = {}
        for gold in golds:
            first_of.setdefault(form(gold), gold)
        faults = self._unreadable(list(first_of.values()))
        faults |= self._unreadable([gold for gold in golds if gold not in faults and first_of[form(gold)] in faults])
        return {
            problem.id: f"{faults[problem.answer]} the gold answer {problem.answer[:_SHOWN_CHARACTERS]!r}"
            for problem in problems
            if problem.answer in faults
        }

    def _unreadable(self, golds: Sequence[str]) -> dict[str, str]:
        """Why a gold answer can't be read, for those that can't."""
        outcomes = self.pool.map([(gold, None, True) for gold in golds])
        return {
            gold: "math-verify finds no answer in" if outcome.status == "done" else f"checking {outcome.status} on"
            for gold, outcome in zip(golds, outcomes, strict=True)
            if outcome.value != "right"
        }

    def _answer(self, text: str) -> str | None:
        """What of a completion is compared; None if it has no answer or one of absurd length."""
        if self.extract == "auto":
            return text[-self.max_characters :]
        answer = last_box(text) if self.extract == "box" else last_answer(text)
        return answer if answer is not None and answer.strip() and len(answer) <= self.max_characters else None

    def _verdict(self, outcome: Outcome) -> bool:
        if outcome.status == "done":
            self._counts["unparsable"] += outcome.value == "unparsable"
        else:
            self._counts["timed_out" if outcome.status == "timed_out" else "crashed"] += 1
        return outcome.value == "right"

    def _remember(self, verdicts: dict[bytes, bool]) -> None:
        for key, verdict in verdicts.items():
            self._verdicts[key] = verdict
            self._verdicts.move_to_end(key)
        for _ in range(len(self._verdicts) - _REMEMBERED_PAIRS):
            self._verdicts.popitem(last=False)


def _key(gold: str, answer: str) -> bytes:
    """A pair in 16 bytes, however long its texts are."""
    texts: Iterable[bytes] = (text.encode(errors="surrogatepass") for text in (gold, answer))
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.digest()
