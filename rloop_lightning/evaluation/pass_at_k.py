"""pass@k: the probability that at least one of k completions of a problem is a success, estimated from n >= k.

metric = PassAtK(ks=(1, 32))
metric.update(successes, samples=64)  # successes [N]: number of successes among each problem's 64 completions
metric.compute()  # {"pass@1": ..., "pass@32": ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def pass_at_k(successes: Tensor, samples: int, k: int) -> Tensor:
    """The unbiased estimate of each problem's pass@k (arXiv 2107.03374, eq. 1), in its product form.

        1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1 .. n} (1 - k / i)

    The estimate is 1 if n - c < k, because the factor i = k is 0. pass@1 is c / n: its mean is also called avg@n.

    Args: successes [N], c, integers in 0 .. n; samples, n, completions per problem; k <= n.
    Returns [N] float64. Raises ValueError if k or a count is out of range.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= samples, got k = {k} and samples = {samples}")
    if torch.any((successes < 0) | (successes > samples)):
        raise ValueError(f"successes must be in 0 .. samples = {samples}, got {successes.tolist()}")
    i = torch.arange(samples, 0, -1, dtype=torch.float64)
    failure = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - k / i, dim=0)])  # [n + 1], by c
    return 1 - failure.to(successes.device)[successes.long()]


class PassAtK(Metric):
    """Mean pass@k over problems, for several k. Problems may arrive in several updates and on several ranks.

    `compute` returns NaN before the first update.

    Args:
        ks: the values of k. `update` needs at least as many samples per problem as the largest.
        kwargs: of `torchmetrics.Metric`, such as `sync_on_compute`.
    """

    higher_is_better = True
    full_state_update = False
    totals: Tensor  # [K], sums over problems
    problems: Tensor

    def __init__(self, ks: Sequence[int] = (1,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not ks or min(ks) < 1:
            raise ValueError(f"ks must be whole numbers of at least 1, got {list(ks)}")
        self.ks = tuple(sorted(set(ks)))
        self.add_state("totals", torch.zeros(len(self.ks), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("problems", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, successes: Tensor, samples: int) -> None:
        """Add N problems: successes [N] among `samples` completions each."""
        estimates = [pass_at_k(successes, samples, k).sum() for k in self.ks]
        self.totals += torch.stack(estimates)
        self.problems += successes.numel()

    def compute(self) -> dict[str, Tensor]:
        """`{"pass@1": mean over problems, ...}`, in ascending order of k."""
        means = self.totals / self.problems
        return {f"pass@{k}": mean for k, mean in zip(self.ks, means.unbind(), strict=True)}
