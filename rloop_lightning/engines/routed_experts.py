"""The routed experts of rows, token by token (routing replay R3).

    record = RoutedExpertsRecord()
    record.begin(prompt_lengths, prompt_of_row, experts)       # after the prefill of the rows that enter
    record.add(rows, experts)                                  # after each decode step
    record.of_rows(lengths)                                    # [S + T - 1, layers, top_k] per row, on the host

A row's last token has none: no forward pass computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class RoutedExpertsRecord:
    """The experts of all forward passes, layers x top_k indices per token."""

    def __init__(self) -> None:
        self._prompts: list[np.ndarray] = []  # of each row
        self._rows: list[Tensor] = []
        self._steps: list[Tensor] = []

    def begin(self, prompt_lengths: Sequence[int], prompt_of_row: Sequence[int], experts: Tensor) -> None:
        """Add the next rows.

        Args:
            prompt_lengths: P lengths, tokens.
            prompt_of_row: the prompt of each row.
            experts: [P or more, S, layers, top_k], the experts of the left-padded prompts.
        """
        padded = experts.cpu().numpy()
        prompts = [own[len(own) - length :] for own, length in zip(padded, prompt_lengths, strict=False)]
        self._prompts += [prompts[prompt] for prompt in prompt_of_row]

    def add(self, rows: Tensor, experts: Tensor) -> None:
        """Add one token to each of these rows [R], with its experts [R, 1, layers, top_k]."""
        self._rows.append(rows)
        self._steps.append(experts[:, 0])

    def of_rows(self, lengths: Sequence[int]) -> list[np.ndarray]:
        """For each row, the experts of its prompt and of its `length` completion tokens except the last."""
        if not self._steps:
            return [prompt.copy() for prompt in self._prompts]
        rows = torch.cat(self._rows).cpu().numpy()
        order = np.argsort(rows, kind="stable")  # row by row, each in the order of its steps
        experts = torch.cat(self._steps).cpu().numpy()[order]
        starts = np.searchsorted(rows[order], np.arange(len(lengths)))
        return [
            np.concatenate([prompt, experts[start : start + length - 1]])
            for prompt, start, length in zip(self._prompts, starts, lengths, strict=True)
        ]
