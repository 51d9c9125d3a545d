"""maj@k: the success rate of the most frequent of k answers (self-consistency, arXiv 2203.11171).

groups = np.stack([answer_groups(answers_of_problem, equal=reward_says_equal) for ...])  # [N, n]
majority_at_k(groups, right, k=8)  # [N]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

Answer = TypeVar("Answer")


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
    votes = np.zeros(voters.shape, dtype=np.int64)  # of each voter's answer
    for other in range(k):
        votes += voters == voters[:, other : other + 1]
    votes[voters < 0] = 0
    winner = votes.argmax(axis=1)[:, None]  # the first of equals
    chosen_right = np.take_along_axis(right[:, : blocks * k].reshape(-1, k), winner, axis=1)
    wins = chosen_right & (np.take_along_axis(votes, winner, axis=1) > 0)
    return wins.reshape(problems, blocks).mean(axis=1)


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

    def __init__(self, ks: Sequence[int]) -> None:
        super().__init__()
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
