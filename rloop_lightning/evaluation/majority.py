"""maj@k: the success rate of the most frequent of k answers (self-consistency, arXiv 2203.11171).

groups = answer_classes(sampled_groups, reward, ks=[8])  # [N, n]
majority_at_k(groups, right, k=8)  # [N]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import Group

Answer = TypeVar("Answer")

_RIGHT = object()
"""The one answer of all successes."""


def answer_groups(
    answers: Sequence[Answer | None], equal: Callable[[Answer, Answer], bool] | None = None
) -> np.ndarray:
    """Number the classes of equal answers of one problem, from 0 in the order of their first answer.

    An answer joins the first class whose first answer equals it, so a relation that is not transitive still gives
    classes.

    Args:
        answers: [n]; None is a completion without an answer.
        equal: whether two answers are equal, such as the reward's comparison; None compares with `==`.

    Returns:
        Class of each answer [n] int64; -1 where there is none.
    """
    heads: list[Answer] = []
    groups = np.full(len(answers), -1, dtype=np.int64)
    same = equal or (lambda first, second: bool(first == second))
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        group = next((number for number, head in enumerate(heads) if same(head, answer)), len(heads))
        if group == len(heads):
            heads.append(answer)
        groups[index] = group
    return groups


def answer_classes(groups: Sequence[Group], reward: Reward, ks: Sequence[int]) -> np.ndarray | None:
    """The classes of equal answers within each group of n rollouts, as `answer_groups`, for maj@k at several k.

    All successes with an answer are one class. Other answers are equal if the reward says so. Texts are compared only
    where it can change a maj@k: in no block of k rollouts whose successes are none, or more than all other answers.
    A rollout whose check ended without a verdict has a class of its text.

    Args:
        groups: N groups of n rollouts, scored by `reward`.
        reward: says what an answer is.
        ks: the values of k.

    Returns:
        [N, n] int64, -1 without an answer; None if the reward does not know answers.
    """
    texts = reward.answers([rollout.text for group in groups for rollout in group.rollouts])
    if texts is None:
        return None
    rows = np.array(texts, dtype=object).reshape(len(groups), -1)
    answers = [
        [
            _RIGHT if rollout.success and text is not None else text
            for rollout, text in zip(group.rollouts, row, strict=True)
        ]
        for group, row in zip(groups, rows, strict=True)
    ]
    comparable = [
        _comparable(group, of_group) if _undecided(of_group, ks) else []
        for group, of_group in zip(groups, answers, strict=True)
    ]
    heads = _heads(comparable, reward)
    return np.stack(
        [
            answer_groups([head.get(answer, answer) for answer in of_group])
            for of_group, head in zip(answers, heads, strict=True)
        ]
    )


def majority_at_k(groups: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """Each problem's maj@k: the share of blocks of k consecutive rollouts whose most frequent answer is right.

    n rollouts hold n // k blocks without overlap; a remainder is not used. Rollouts of a problem are exchangeable, so
    this estimates the expectation over k rollouts without bias, as the first k do, with the variance of all blocks.
    Of equally frequent answers the first seen wins. A completion without an answer has no vote; k of them are wrong.

    Args: groups [N, n], class of each answer within its problem, -1 without an answer; right [N, n] bool, equal within
        a class. Returns [N] float64. Raises ValueError if k > n, k < 1, or the shapes differ.
    """
    groups, right = np.asarray(groups), np.asarray(right, dtype=bool)
    if groups.ndim != 2 or groups.shape != right.shape:
        raise ValueError(f"groups and right must be [problems, n], got {list(groups.shape)} and {list(right.shape)}")
    problems, samples = groups.shape
    if not 1 <= k <= samples:
        raise ValueError(f"maj@{k} needs 1 <= k <= n, got k = {k} and n = {samples}")
    blocks = samples // k
    voters = groups[:, : blocks * k].reshape(-1, k)
    of_block = np.arange(len(voters))[:, None] * (int(voters.max(initial=0)) + 2) + voters + 1
    _, answer, counts = np.unique(of_block, return_inverse=True, return_counts=True)
    votes = counts[answer.reshape(voters.shape)]  # of each voter's answer
    votes[voters < 0] = 0
    winner = votes.argmax(axis=1)[:, None]  # the first of equals
    chosen_right = np.take_along_axis(right[:, : blocks * k].reshape(-1, k), winner, axis=1)
    wins = chosen_right & (np.take_along_axis(votes, winner, axis=1) > 0)
    return wins.reshape(problems, blocks).mean(axis=1)


def _undecided(answers: Sequence[object], ks: Sequence[int]) -> bool:
    """Whether the classes of wrong answers can change a maj@k."""
    right = np.array([answer is _RIGHT for answer in answers])
    wrong = np.array([answer is not _RIGHT and answer is not None for answer in answers])
    for k in ks:
        blocks = len(answers) // k
        rights, wrongs = (mask[: blocks * k].reshape(blocks, k).sum(axis=1) for mask in (right, wrong))
        if np.any((rights > 0) & (rights <= wrongs)):
            return True
    return False


def _comparable(group: Group, answers: Sequence[Any]) -> list[str]:
    """The different wrong answers of a group, in the order in which they first occur."""
    checked = zip(group.rollouts, answers, strict=True)
    return list(dict.fromkeys(a for rollout, a in checked if isinstance(a, str) and not rollout.check_fault))


def _heads(texts: Sequence[Sequence[str]], reward: Reward) -> list[dict[Any, str]]:
    """For each group's different texts, the first text that each equals. All groups are compared at once."""
    heads: list[dict[Any, str]] = [{} for _ in texts]
    waiting = [list(of_group) for of_group in texts]
    while any(len(of_group) > 1 for of_group in waiting):
        pairs = [(of_group[0], other) for of_group in waiting for other in of_group[1:]]
        equal = iter(reward.equal_answers(pairs))
        for number, of_group in enumerate(waiting):
            same = {other for other in of_group[1:] if next(equal)}
            heads[number] |= dict.fromkeys(same, of_group[0] if of_group else "")
            waiting[number] = [other for other in of_group[1:] if other not in same]
    return heads


class MajorityAtK(Metric):
    """Mean maj@k over problems, for several k. Problems may arrive in several updates and on several ranks.

    `compute` returns NaN before the first update.

    Args:
        ks: the values of k. `update` needs at least as many rollouts per problem as the largest.
    """

    higher_is_better = True
    full_state_update = False
    totals: Tensor  # [K], sums over problems
    problems: Tensor

    def __init__(self, ks: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not ks or min(ks) < 1:
            raise ValueError(f"ks must be whole numbers of at least 1, got {list(ks)}")
        self.ks = tuple(sorted(set(ks)))
        self.add_state("totals", torch.zeros(len(self.ks), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("problems", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, groups: np.ndarray, right: np.ndarray) -> None:
        """Add N problems: groups [N, n] and right [N, n], as for `majority_at_k`."""
        sums = [float(majority_at_k(groups, right, k).sum()) for k in self.ks]
        self.totals += torch.tensor(sums, dtype=torch.float64, device=self.totals.device)
        self.problems += len(groups)

    def compute(self) -> dict[str, Tensor]:
        """`{"maj@8": mean over problems, ...}`, in ascending order of k."""
        means = self.totals / self.problems
        return {f"maj@{k}": mean for k, mean in zip(self.ks, means.unbind(), strict=True)}
