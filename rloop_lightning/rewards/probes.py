"""Checks a reward before training: its verdicts on completions whose verdict is known.

    check = probe(reward, problems)
    check.faults()        # a reward that never pays, always pays, or pays right and wrong alike
    check.table()         # verdicts by kind of completion

Right completions come from `Reward.right_completions`. The wrong ones are an empty text, the problem itself, the first
right completion cut inside its gold answer, and a right completion of another problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rloop_lightning.errors import RunFault
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.workers import WorkerStartError
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Problem, Scored

EMPTY, REPEATED, TRUNCATED, ANOTHER = "empty", "problem repeated", "truncated gold", "another gold"
WRONG = (EMPTY, REPEATED, TRUNCATED, ANOTHER)

_MANY = 0.5  # share of problems
_NEXT_PROBLEMS = 100  # that are searched for another gold answer


@dataclass(frozen=True)
class Verdicts:
    """A reward's verdicts on one kind of completion.

    Args:
        kind: what the completions are: a form of right completions, or one of `WRONG`.
        scored: by problem id.
        texts: the completions, by problem id.
        error: what the reward raised instead; empty if nothing.
    """

    kind: str
    scored: Mapping[str, Scored] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def successes(self) -> int:
        return sum(verdict.success for verdict in self.scored.values())

    @property
    def success_share(self) -> float:
        return self.successes / max(1, len(self.scored))

    @property
    def mean_reward(self) -> float:
        return sum(verdict.reward for verdict in self.scored.values()) / max(1, len(self.scored))

    def in_words(self) -> str:
        if self.error:
            return "an error"
        return f"{self.successes:,} of {len(self.scored):,} are successes, mean reward {self.mean_reward:.3g}"


@dataclass(frozen=True)
class RewardCheck:
    """A reward's verdicts on right and on wrong completions of problems.

    Args:
        threshold: its `success_threshold`.
        problems: number of problems.
        right: verdicts on right completions, by form.
        wrong: verdicts on wrong completions.
    """

    threshold: float
    problems: int
    right: Sequence[Verdicts]
    wrong: Sequence[Verdicts]

    def unpaid(self) -> list[str]:
        """Ids of the problems of which no right completion is a success."""
        ids = dict.fromkeys(problem_id for verdicts in self.right for problem_id in verdicts.scored)
        return [one for one in ids if not any(v.scored[one].success for v in self.right if one in v.scored)]

    def faults(self) -> list[str]:
        """Faults that make training useless, one message each."""
        failed = [verdicts for verdicts in (*self.right, *self.wrong) if verdicts.error]
        if failed:
            kinds = ", ".join(verdicts.kind for verdicts in failed)
            return [f"the reward must return a number for any text, but raises {failed[0].error} (on: {kinds})"]
        return [*self._never(), *self._always()] or self._flat()

    def warnings(self) -> list[str]:
        """Verdicts that are wrong for some problems, one message each."""
        unpaid = len(self.unpaid())
        said = [f"no right completion of {unpaid:,} problems is a success"] if unpaid else []
        for verdicts in self.wrong:
            few = 1 if verdicts.kind in (EMPTY, ANOTHER) else math.ceil(_MANY * len(verdicts.scored))
            if verdicts.successes >= few:
                said.append(_counted(verdicts))
        return [] if self.faults() else [f"the reward: {what}" for what in said]

    def table(self) -> list[str]:
        """A line per kind of completion, aligned: successes and mean reward."""
        lines = [(verdicts, "should pay") for verdicts in self.right]
        lines += [(verdicts, "should not pay") for verdicts in self.wrong]
        width = max(len(verdicts.kind) for verdicts, _ in lines)
        return [f"{verdicts.kind:<{width}}  {verdicts.in_words()} ({expected})" for verdicts, expected in lines]

    def _never(self) -> list[str]:
        if not self.right or any(verdicts.successes for verdicts in self.right):
            return []
        tried = ", ".join(verdicts.kind for verdicts in self.right)
        best = max(verdict.reward for verdicts in self.right for verdict in verdicts.scored.values())
        return [
            f"the reward never pays: no right completion of {self.problems:,} problems is a success (tried: {tried}; "
            f"the largest reward is {best:.3g}, a success begins at {self.threshold:g}); if a right completion looks "
            "otherwise, override Reward.right_completions"
        ]

    def _always(self) -> list[str]:
        return [
            f"the reward pays wrong answers: {_counted(verdicts)}"
            for verdicts in self.wrong
            if verdicts.kind in (EMPTY, ANOTHER) and verdicts.success_share >= _MANY
        ]

    def _flat(self) -> list[str]:
        wrong = [verdicts.mean_reward for verdicts in self.wrong if verdicts.kind in (EMPTY, ANOTHER)]
        right = max((verdicts.mean_reward for verdicts in self.right), default=math.inf)
        if right > min(wrong):
            return []
        return [f"the reward pays right answers no more than wrong ones: mean {right:.3g} against {min(wrong):.3g}"]


def probe(reward: Reward, problems: Sequence[Problem]) -> RewardCheck:
    """Score right and wrong completions of problems. A reward's exception becomes a fault.

    Raises:
        WorkerStartError: the reward's workers don't start.
    """
    forms: dict[str, list[tuple[Problem, str]]] = {}
    first: dict[str, str] = {}
    for problem in problems:
        for form, text in reward.right_completions(problem).items():
            forms.setdefault(form, []).append((problem, text))
            first.setdefault(problem.id, text)
    wrong = {
        EMPTY: [(problem, "") for problem in problems],
        REPEATED: [(problem, problem.prompt) for problem in problems],
        TRUNCATED: [(problem, _cut(first[problem.id], problem.answer)) for problem in problems if problem.id in first],
        ANOTHER: _with_another_gold(reward, [problem for problem in problems if problem.id in first], first),
    }
    check = RewardCheck(
        threshold=reward.success_threshold,
        problems=len(problems),
        right=[_verdicts(reward, form, pairs) for form, pairs in forms.items()],
        wrong=[_verdicts(reward, kind, pairs) for kind, pairs in wrong.items() if pairs],
    )
    reward.metrics()  # discards the counts
    return check


def _verdicts(reward: Reward, kind: str, pairs: Sequence[tuple[Problem, str]]) -> Verdicts:
    problems, texts = [problem for problem, _ in pairs], [text for _, text in pairs]
    try:
        scored = reward(problems, texts)
    except WorkerStartError:
        raise
    except Exception as error:  # a user's function may raise anything
        cause = error.__cause__ or error if isinstance(error, RunFault) else error
        return Verdicts(kind, error=one_line(f"{type(cause).__name__}: {cause}", limit=300))
    ids = [problem.id for problem in problems]
    return Verdicts(kind, dict(zip(ids, scored, strict=True)), dict(zip(ids, texts, strict=True)))


def _cut(text: str, gold: str) -> str:
    """A completion that ends inside its gold answer, as at a length limit; without the gold in it, its first half."""
    start = text.rfind(gold)
    return text[: start + len(gold) // 2] if start >= 0 else text[: len(text) // 2]


def _with_another_gold(
    reward: Reward, problems: Sequence[Problem], completions: Mapping[str, str]
) -> list[tuple[Problem, str]]:
    """Each problem with the completion of the next problem that has another gold answer, if one has.

    Answers that the reward takes for the same, such as 1/2 and 0.5, are no others.
    """
    others = [*problems, *problems]
    near = [others[number + 1 : number + 1 + _NEXT_PROBLEMS] for number in range(len(problems))]
    wanted = [
        next((one for one in following if one.answer not in problem.golds), None)
        for problem, following in zip(problems, near, strict=True)
    ]
    pairs = [(problem, other) for problem, other in zip(problems, wanted, strict=True) if other is not None]
    asked = [(gold, other.answer) for problem, other in pairs for gold in problem.golds]
    try:
        answers = iter(reward.equal_answers(asked))
    except Exception:  # a user's reward; scoring tells what it raises
        answers = iter([False] * len(asked))
    found = []
    for problem, other in pairs:
        equal = [next(answers, False) for _ in problem.golds]
        if not any(equal):
            found.append((problem, completions[other.id]))
    return found


def _counted(verdicts: Verdicts) -> str:
    what = {
        EMPTY: "an empty completion",
        REPEATED: "the problem's own text",
        TRUNCATED: "a completion cut inside its gold answer",
        ANOTHER: "another problem's gold answer",
    }[verdicts.kind]
    return f"{what} is a success for {verdicts.successes:,} of {len(verdicts.scored):,} problems"
