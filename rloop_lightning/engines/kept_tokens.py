"""The tokens that top-k and top-p kept, which the trainer renormalises over as well.

    record = KeptTokensRecord()
    record.add(rows, kept)              # after each sampling step
    record.of_rows(lengths)             # per row, on the host: token ids [K] and their counts [T]

Each kept token takes four bytes. At top-p 0.95, a peaked distribution keeps a few tokens, a flat one most of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rloop_lightning.engines.sampling import Kept


class KeptTokensRecord:
    """The kept tokens of all sampling steps, on the device until `of_rows`: a copy to the host would wait for it."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._token_ids: list[Tensor] = []

    def add(self, rows: Tensor, kept: Kept) -> None:
        """Add one token to each of these rows [R]."""
        self._rows.append(rows)
        self._counts.append(kept.counts)
        self._token_ids.append(kept.token_ids)

    def of_rows(self, lengths: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each row, the ids that each of its first `length` tokens was sampled from [K], and their counts [T]."""
        rows, counts, token_ids = (
            torch.cat(steps).cpu().numpy() for steps in (self._rows, self._counts, self._token_ids)
        )
        order = np.argsort(rows, kind="stable")  # row by row, each in the order of its steps
        starts = (np.cumsum(counts) - counts)[order]
        counts = counts[order]
        ends = np.cumsum(counts)
        token_ids = token_ids[np.repeat(starts - (ends - counts), counts) + np.arange(len(token_ids))]
        firsts = np.searchsorted(rows[order], np.arange(len(lengths)))
        spans = [slice(first, first + length) for first, length in zip(firsts.tolist(), lengths, strict=True)]
        # Copies, so that a stored rollout does not keep its whole part in memory.
        return [
            (token_ids[ends[span.start] - counts[span.start] : ends[span.stop - 1]].copy(), counts[span].copy())
            for span in spans
        ]
