"""Sample completions of an evaluation, for people to read in a logger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rloop_lightning.system.terminal import printable
from rloop_lightning.types import Group

_PROBLEMS = 4
_PROMPT_TAIL = 1000  # characters shown, as below
_COMPLETION_HEAD = 2000
_COMPLETION_TAIL = 1000
_ANSWER = 200


@dataclass(frozen=True)
class SampleCompletion:
    """One completion. Control characters are escaped and long texts shortened, because the texts are the model's.

    Args:
        problem_id: id of the problem.
        prompt: the end of the prompt.
        gold: the gold answer.
        completion: the completion, without the middle of a long one.
        right: whether it is a success.
        reward: its reward.
        tokens: its length.
        finish_reason: `stop`, or `length` if it was cut at the limit.
    """

    problem_id: str
    prompt: str
    gold: str
    completion: str
    right: bool
    reward: float
    tokens: int
    finish_reason: str


def sample_completions(groups: Sequence[Group]) -> list[SampleCompletion]:
    """A right and a wrong completion of each of the first problems, the same problems in every evaluation of a set."""
    return [sample for group in groups[:_PROBLEMS] for sample in _of_group(group)]


def _of_group(group: Group) -> Iterator[SampleCompletion]:
    for wanted in (True, False):
        rollout = next((rollout for rollout in group.rollouts if rollout.success == wanted), None)
        if rollout is not None:
            yield SampleCompletion(
                problem_id=printable(group.problem.id, limit=_ANSWER),
                prompt=printable(group.problem.prompt[-_PROMPT_TAIL:]),
                gold=printable(group.problem.answer, limit=_ANSWER),
                completion=printable(_shortened(rollout.text)),
                right=wanted,
                reward=float(rollout.reward),
                tokens=rollout.length,
                finish_reason=rollout.finish_reason,
            )


def _shortened(text: str) -> str:
    cut = len(text) - _COMPLETION_HEAD - _COMPLETION_TAIL
    if cut <= 0:
        return text
    return f"{text[:_COMPLETION_HEAD]} ... ({cut:,} characters) ... {text[-_COMPLETION_TAIL:]}"
