"""Causal attention over packed rollouts by PyTorch's dense kernel: whole rollouts, padded to squares.

    attention = SquareAttention(packed)
    if attention.waste < 1.5: attention(queries, keys, values, scaling)     # [N, heads, D] to [N, heads, Dv]

For dense squares, PyTorch takes cuDNN's kernel on recent GPUs. On an H100 it computes 540 to 600 TFLOP/s, the varlen
kernel 300 to 350. In return, a prompt's attention is computed for each of its rollouts, and rollouts of similar length
are padded to the longest. Padding is on the right, where a causal mask hides it from all other tokens.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from rloop_lightning.model.packing import PackedBatch

# Rollouts of at least this share of a square's length are padded to it.
_SIMILAR = 0.85


class SquareAttention:
    """Attention over a packed batch with a causal mask. All layers share one instance."""

    def __init__(self, packed: PackedBatch) -> None:
        self._packed = packed
        prompts = packed.lengths[: packed.prompts][packed.prompt_of_row]
        completions = packed.lengths[packed.prompts :]
        lengths, starts, owners = torch.stack([prompts + completions, prompts, packed.prompt_of_row]).tolist()
        self._squares = _squares(lengths)
        attended = sum(length * (length + 1) // 2 for length in lengths)
        prompt_pairs = dict(zip(owners, (start * (start + 1) // 2 for start in starts), strict=True))
        repeated = sum(prompt_pairs[owner] for owner in owners) - sum(prompt_pairs.values())
        computed = sum(len(rows) * length * (length + 1) // 2 for rows, length in self._squares)
        self.waste = computed / (attended - repeated)
        """Pairs of tokens that are computed, by those that are needed."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """The attention output, [N, heads, Dv].

        Args:
            queries: [N, heads, D].
            keys: [N, kv_heads, D].
            values: [N, kv_heads, Dv].
            scaling: factor of the scores.
        """
        found = []
        for tokens in self._tokens:  # [R, L]
            query, key, value = (
                part.index_select(0, tokens.flatten()).unflatten(0, tokens.shape).transpose(1, 2)
                for part in (queries, keys, values)
            )  # [R, heads, L, D]
            square = scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
            )
            found.append(square.transpose(1, 2).flatten(0, 1))
        gathered = torch.cat(found).index_select(0, self._slots)
        return pad(gathered, (0, 0, 0, 0, 0, self._packed.filling))

    @cached_property
    def _tokens(self) -> list[Tensor]:
        """The packed index of each token of each square [R, L]."""
        columns = max(length for _, length in self._squares)
        places = self._packed.places(columns)  # [B, columns]
        return [places[rows, :length] for rows, length in self._squares]

    @cached_property
    def _slots(self) -> Tensor:
        """Where the squares, one after another, hold each packed token [N]: a prompt's in its first rollout's row."""
        bases = torch.zeros_like(self._packed.prompt_of_row)
        start = 0
        for rows, length in self._squares:
            bases[rows] = start + length * torch.arange(len(rows), device=bases.device)
            start += len(rows) * length
        return bases[self._packed.rows] + self._packed.positions[: self._packed.tokens]


def _squares(lengths: list[int]) -> list[tuple[list[int], int]]:
    """Rows of similar length, each group with the length of its longest row."""
    squares: list[tuple[list[int], int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not squares or lengths[row] < _SIMILAR * squares[-1][1]:
            squares.append(([], lengths[row]))
        squares[-1][0].append(row)
    return squares
