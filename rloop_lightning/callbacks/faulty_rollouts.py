"""The rollouts of a skipped update, saved to disk to show which of them caused it.

faults/step-000012-update-3.parquet    the pool's columns, plus each rollout's advantage, loss and logprobs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from rloop_lightning.rollouts.pool import LOGPROBS, POOL_SCHEMA, list_array, rollout_table
from rloop_lightning.system.files import atomic_path
from rloop_lightning.types import Rollout, RolloutBatch


class FaultyRollouts:
    """Writes one file per skipped update.

    Args:
        folder: folder for the phase's files, created by the first.
        round: round of the run, from 0.
        run_id: id of the run.
    """

    def __init__(self, folder: Path, *, round: int, run_id: str) -> None:
        self.folder = folder
        self.round = round
        self.run_id = run_id

    def save(
        self, module: Any, batch: RolloutBatch, rollouts: Sequence[Rollout], *, step: int, update: int
    ) -> tuple[Path, int]:
        """Write the rollouts of a mini-batch. Returns the file and the number of rollouts whose loss is not finite.

        Args:
            module: the training module, which computes each rollout's loss and logprobs under the current policy.
            batch: the mini-batch; its `rows` index `rollouts`.
            rollouts: the rollouts of the training step.
            step: training step of the phase, from 1.
            update: update of the step, from 1.
        """
        losses, logprobs = module.row_losses(batch)
        chosen = [_with_text(module, rollouts[row]) for row in batch.rows.tolist()]
        # Until the first optimizer step, the policy is the old policy.
        old_logprobs = batch.old_logprobs
        if old_logprobs is None:
            old_logprobs = batch.recorded_or(logprobs)
        further = {
            "advantage": pa.array(batch.advantages.tolist(), pa.float32()),  # in a consolidation, the weight
            "in_loss": pa.array(batch.loss_mask.any(dim=1).tolist()),
            "loss": pa.array(losses.tolist(), pa.float64()),  # summed over the completion
            "old_logprobs": _completions(old_logprobs, batch),  # nats
            "logprobs": _completions(logprobs, batch),  # nats
        }
        table = rollout_table(chosen, POOL_SCHEMA, round=self.round, rollout_step=step - 1, run_id=self.run_id)
        for name, column in further.items():
            table = table.append_column(name, column)
        path = self.folder / f"step-{step:06d}-update-{update}.parquet"
        with atomic_path(path) as partial:
            pq.write_table(table, partial, compression="zstd")
        return path, int((~losses.isfinite()).sum())


def _with_text(module: Any, rollout: Rollout) -> Rollout:
    return rollout if rollout.text else replace(rollout, text=module.policy.decode([rollout.completion_ids])[0])


def _completions(values: Tensor, batch: RolloutBatch) -> pa.ListArray:
    """The rows of a [B, T] tensor as lists, truncated to the length of each completion."""
    rows = values.float().cpu().numpy()
    lengths = batch.completion_lengths.tolist()
    return list_array([row[:length] for row, length in zip(rows, lengths, strict=True)], LOGPROBS)
