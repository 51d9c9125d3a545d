"""The columns of a batch of rows that all end in the same one: shorter rows begin further to the right."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import pad


class PaddedPrompts:
    """Prompts, padded on the left.

    Args:
        prompts: P token lists.
    """

    def __init__(self, prompts: list[list[int]], device: torch.device) -> None:
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [P], tokens
        self.columns = max(map(len, prompts))
        columns = torch.arange(self.columns, device=device)
        padding = self.columns - self.lengths[:, None]  # [P, 1]
        seen = columns >= padding  # [P, columns]
        self.input_ids = torch.zeros(seen.shape, dtype=torch.int64, device=device)
        self.input_ids[seen] = torch.tensor(list(chain.from_iterable(prompts)), device=device)
        self._positions = (columns - padding).clamp(min=0)
        # Without padding no mask is needed, and attention uses its fastest kernel.
        self._seen = seen if min(map(len, prompts)) < self.columns else None

    def pieces(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Tokens, positions and mask of `size` prompts each, [size, columns]."""
        for start in range(0, len(self.input_ids), size):
            piece = slice(start, start + size)
            yield self.input_ids[piece], self._positions[piece], None if self._seen is None else self._seen[piece]


class Columns:
    """The columns that each row sees: its last ones, as many as it has tokens.

    Args:
        lengths: [R] int64, tokens of each row.
    """

    def __init__(self, lengths: Tensor) -> None:
        self._lengths = lengths.clone()  # [R], tokens
        self.count = self.longest
        self._seen: Tensor
        self._padded: bool
        self._show()

    @property
    def longest(self) -> int:
        """Tokens of the longest row. Waits for the device."""
        return int(self._lengths.max())

    @property
    def seen(self) -> Tensor | None:
        """Whether a column contains a token of the row [R, columns]; None if all do."""
        return self.all_seen if self._padded else None

    @property
    def all_seen(self) -> Tensor:
        """`seen`, also where all do."""
        if self._seen.shape[1] < self.count:  # rows see all columns that were appended
            self._seen = pad(self._seen, (0, max(32, self.count // 2)), value=True)
        return self._seen[:, : self.count]

    def select(self, rows: Tensor) -> None:
        """Continue with these rows."""
        self._lengths = self._lengths[rows]
        self._show()

    def replace(self, rows: Tensor, lengths: Tensor) -> None:
        """Begin rows of these lengths [K] in the place of others [K]."""
        self._lengths[rows] = lengths
        self._show()

    def shift(self, columns: int) -> None:
        """Add columns on the left that no row sees; if negative, drop as many."""
        self.count += columns
        self._show()

    def append(self) -> Tensor:
        """Add a column. Returns the rows' positions in it [R]."""
        self.count += 1
        self._lengths = self._lengths + 1
        return self._lengths - 1

    def _show(self) -> None:
        padding = self.count - self._lengths[:, None]
        self._seen = torch.arange(self.count, device=padding.device) >= padding
        self._padded = bool((padding > 0).any())
