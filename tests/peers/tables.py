"""What both sides are given: what four policies say of each token of ragged rollouts; and what both give back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tables:
    """Rollouts as tables, B rows in groups of G; what stands behind a completion is noise that nobody may read."""

    rewards: Tensor  # [B] float64
    lengths: Tensor  # [B] int64, tokens
    truncated: Tensor  # [B] bool, cut at the length limit instead of stopped
    logprobs: Tensor  # [B, T] float64, nats, as the next three: under the policy that is differentiated
    old: Tensor  # under the policy that generated, by the trainer
    sampling: Tensor  # the same, by the engine
    reference: Tensor
    group: int  # G
    limit: int  # completion length limit, tokens

    @property
    def mask(self) -> Tensor:
        """[B, T] bool."""
        return torch.arange(self.logprobs.shape[1]) < self.lengths[:, None]

    @property
    def grouped(self) -> Tensor:
        """The rewards [P, G]."""
        return self.rewards.view(-1, self.group)


@dataclass
class Computed:
    """What a side computed; lists have one entry an optimizer step, rows are numbered as in the tables."""

    advantages: Tensor  # [B] float64
    losses: list[float] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)  # of the logprobs, [B, T]
    rows: list[list[int]] = field(default_factory=list)  # of the mini-batch, in the order that they were taken

    @classmethod
    def nothing_of(cls, tables: Tables) -> Computed:
        return cls(torch.full((len(tables.rewards),), torch.nan, dtype=torch.float64))


def random_tables(seed: int, *, on_policy: bool = False, problems: int = 6, group: int = 4, limit: int = 14) -> Tables:
    """Ragged rows. Binary rewards in half of the groups, real ones in the others, but all equal in the last group."""
    generator = torch.Generator().manual_seed(seed)
    rows = problems * group

    def normal(scale: float) -> Tensor:
        return torch.randn(rows, int(lengths.max()), generator=generator, dtype=torch.float64) * scale

    lengths = torch.randint(1, limit + 1, (rows,), generator=generator)
    rewards = torch.rand(problems, group, generator=generator, dtype=torch.float64)
    rewards[::2] = (rewards[::2] > rewards[::2].median(dim=1, keepdim=True).values).double()
    rewards[-1] = 0.5
    logprobs = -normal(1.5).abs()
    old = logprobs if on_policy else logprobs + normal(0.2)
    return Tables(
        rewards=rewards.flatten(),
        lengths=lengths,
        truncated=torch.rand(rows, generator=generator) < 0.3,
        logprobs=logprobs,
        old=old,
        sampling=old + normal(0.3),
        reference=logprobs + normal(0.5),
        group=group,
        limit=limit,
    )
