"""The experts that the rows of a wave were computed with, token by token (routing replay R3).

    record = RoutedExpertsRecord(prompt_lengths, experts)      # of the prompts' forward pass
    record.add(rows, experts)                           # of each decode step
    record.of_rows(prompt_of_row, lengths)              # [S + T - 1, layers, top_k] a row, on the host

A row's last token has none: no forward pass computed it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class RoutedExpertsRecord:
    """What every forward pass of a wave computed with; holds no more than layers x top_k indices a token.

    Args:
        prompt_lengths: P, tokens.
        experts: [P, S, layers, top_k] of the prompts, which end in the same column.
    """

    def __init__(self, prompt_lengths: Sequence[int], experts: Tensor) -> None:
        padded = experts.cpu().numpy()
        self._prompts = [own[len(own) - length :] for own, length in zip(padded, prompt_lengths, strict=True)]
        self._rows: list[Tensor] = []
        self._steps: list[Tensor] = []

    def add(self, rows: Tensor, experts: Tensor) -> None:
        """One token more of these rows [R], which was computed with `experts` [R, 1, layers, top_k]."""
        self._rows.append(rows)
        self._steps.append(experts[:, 0])

    def of_rows(self, prompt_of_row: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
        """For each row the experts of its prompt, and of its `length` completion tokens but the last."""
        if not self._steps:
            return [self._prompts[prompt].copy() for prompt in prompt_of_row]
        rows = torch.cat(self._rows).cpu().numpy()
        order = np.argsort(rows, kind="stable")  # row by row, each in the order of its steps
        experts = torch.cat(self._steps).cpu().numpy()[order]
        starts = np.searchsorted(rows[order], np.arange(len(prompt_of_row)))
        return [
            np.concatenate([self._prompts[prompt], experts[start : start + length - 1]])
            for prompt, start, length in zip(prompt_of_row, starts, lengths, strict=True)
        ]
