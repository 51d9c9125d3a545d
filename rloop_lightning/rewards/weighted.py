"""A weighted sum of rewards: one that decides success, usually correctness, and others for shaping.

WeightedSum(rewards={"correct": MathReward(), "format": BoxFormat()}, weights={"format": 0.1}, success="correct")
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.boxes import last_box
from rloop_lightning.rewards.foreign import score
from rloop_lightning.rewards.verdict import GoldReading, Verdict
from rloop_lightning.system.fields import NonNegativeInt, PositiveInt, check_fields
from rloop_lightning.types import Problem, Scored


class WeightedSum(Reward):
    """The weighted sum of several rewards. One of them decides success.

    A rollout step logs each reward, before weighting, as `reward/NAME_mean`.

    Args:
        rewards: the rewards by the names under which they are logged.
        weights: by name; default 1.
        success: the name of the reward that decides success, for dynamic sampling, the filter and pass@k.
    """

    def __init__(
        self, *, rewards: dict[str, Reward], weights: dict[str, float] | None = None, success: str = "correct"
    ) -> None:
        super().__init__()
        weights = weights or {}
        wrong = [
            f"--reward.weights names {name!r}, which is not in --reward.rewards" for name in weights.keys() - rewards
        ]
        wrong += [
            f"--reward.weights: {name} must be a finite number, got {weight}"
            for name, weight in weights.items()
            if not math.isfinite(weight)
        ]
        if success not in rewards:
            wrong.append(f"--reward.success must be one of --reward.rewards ({', '.join(rewards)}), got {success!r}")
        if wrong:
            raise ValueError("\n".join(wrong))
        self.parts = rewards
        self.weights = {name: weights.get(name, 1.0) for name in rewards}
        self.success = success

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [scored.reward for scored in self(problems, texts)]

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Scored]:
        scored = {name: score(reward, problems, texts) for name, reward in self.parts.items()}
        rows = []
        for i in range(len(texts)):
            parts = {name: values[i].reward for name, values in scored.items()}
            total = sum(self.weights[name] * value for name, value in parts.items())
            faults = [values[i].check_fault for values in scored.values()]  # max takes the first that is not empty
            rows.append(Scored(total, scored[self.success][i].success, parts, max(faults, key=bool)))
        return rows

    def answers(self, texts: Sequence[str]) -> Sequence[str | None] | None:
        return self.parts[self.success].answers(texts)

    def equal_answers(self, pairs: Sequence[tuple[str, str]]) -> Sequence[bool]:
        return self.parts[self.success].equal_answers(pairs)

    def metrics(self) -> dict[str, float]:
        counts: Counter[str] = Counter()
        for reward in self.parts.values():
            counts.update(reward.metrics())
        return dict(counts)

    def unusable(self, problems: Sequence[Problem]) -> Mapping[str, str]:
        said: dict[str, list[str]] = {}
        for reward in self.parts.values():
            for name, message in reward.unusable(problems).items():
                said.setdefault(name, []).append(message)
        return {name: "; ".join(dict.fromkeys(messages)) for name, messages in said.items()}

    def readings(self, golds: Sequence[str]) -> Sequence[GoldReading]:
        return self.parts[self.success].readings(golds)

    def explain(self, problem: Problem, text: str) -> Verdict | None:
        return self.parts[self.success].explain(problem, text)

    def right_completions(self, problem: Problem) -> Mapping[str, str]:
        return self.parts[self.success].right_completions(problem)


class BoxFormat(Reward):
    """1.0 if the completion has a \\boxed{} with balanced braces and any content, else 0.0."""

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [float(last_box(text) is not None) for text in texts]


class LengthPenalty(Reward):
    """0.0 up to one length, then falling linearly to -1.0 at a second length, and -1.0 beyond.

    This is DAPO's penalty (arXiv 2503.14476, eq. 13), with characters instead of tokens.

    Args:
        free_characters: longest completion without a penalty, characters.
        max_characters: shortest completion with the full penalty, characters.
    """

    def __init__(self, *, free_characters: NonNegativeInt, max_characters: PositiveInt) -> None:
        super().__init__()
        self.free_characters = free_characters
        self.max_characters = max_characters
        check_fields(self, "--reward")
        if free_characters >= max_characters:
            raise ValueError(
                f"--reward.free_characters must be below max_characters, got {free_characters} and {max_characters}"
            )

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        span = self.max_characters - self.free_characters
        return [-min(1.0, max(0.0, (len(text) - self.free_characters) / span)) for text in texts]
