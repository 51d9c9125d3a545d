"""The routed experts of the rows of a wave, token by token (routing replay R3).

    record = RoutedExpertsRecord(prompt_lengths, experts)      # after the prefill
    record.add(rows, experts)                                  # after each decode step
    record.of_rows(prompt_of_row, lengths)                     # [S + T - 1, layers, top_k] per row, on the host

A row's last token has none: no forward pass computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class RoutedExpertsRecord:
    """The experts of all forward passes of a wave, layers x top_k indices per token.

    Args:
        prompt_lengths: P lengths, tokens.
        experts: [P, S, layers, top_k], the experts of the left-padded prompts.
    """

    def __init__(self, prompt_lengths: Sequence[int], experts: Tensor) -> None:
        padded = experts.cpu().numpy()
        self._prompts = [own[len(own) - length :] for own, length in zip(padded, prompt_lengths, strict=True)]
        self._rows: list[Tensor] = []
        self._steps: list[Tensor] = []

    def add(self, rows: Tensor, experts: Tensor) -> None:
        """Add one token to each of these rows [R], with its experts [R, 1, layers, top_k]."""
        self._rows.append(rows)
        self._steps.append(experts[:, 0])

    def of_rows(self, prompt_of_row: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
        """For each row, the experts of its prompt and of its `length` completion tokens except the last."""
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
