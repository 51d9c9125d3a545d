"""How the two sides are put next to each other: the same rows, TRL's eps of the standard deviation, and what each side
divides the loss of a mini-batch by.
"""

from __future__ import annotations

import torch
from builders import relative_difference
from peers.our_side import batch_of, our_run
from peers.tables import Computed, Tables
from torch import Tensor

from rloop_lightning.algorithms.base import Algorithm

CLIP = {"clip_eps_low": 0.1, "clip_eps_high": 0.15}
TRL_CLIP = {"epsilon": 0.1, "epsilon_high": 0.15}
TOLERANCE = 1e-5


def with_eps_of_trl(tables: Tables) -> Tensor:
    """What advantages of ours, divided by std + 1e-6, are to be multiplied by, [B]."""
    std = tables.grouped.std(dim=1)
    return ((std + 1e-6) / (std + 1e-4)).repeat_interleave(tables.group)


def ours_beside(theirs: Computed, algorithm: Algorithm, tables: Tables, *, scaled: bool = True) -> Computed:
    """Our side on the mini-batches that TRL made; of `scaled` advantages with TRL's eps."""
    advantages = batch_of(algorithm, tables).advantages
    if scaled:
        advantages = advantages * with_eps_of_trl(tables)
    order = [row for rows in theirs.rows for row in rows]
    ours = our_run(algorithm, tables, order, advantages=advantages)
    assert ours.rows == theirs.rows
    return ours


def assert_equal(ours: Computed, theirs: Computed, factors: list[float]) -> None:
    """Losses and gradients of each mini-batch, ours times its factor, and all advantages."""
    assert torch.allclose(ours.advantages, theirs.advantages, rtol=0, atol=TOLERANCE)
    assert len(ours.losses) == len(theirs.losses) == len(factors)
    for number, factor in enumerate(factors):
        assert abs(ours.losses[number] * factor - theirs.losses[number]) < TOLERANCE
        assert theirs.gradients[number].norm() > 1e-3  # or the next line would say nothing
        assert relative_difference(ours.gradients[number] * factor, theirs.gradients[number]) < TOLERANCE
