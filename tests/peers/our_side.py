"""Our side: a `Trainer.fit` of an algorithm, on a policy whose logprobs are parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
import torch
from builders import fit, make_group, make_rollout
from peers.tables import Computed, Tables
from torch import Tensor, nn

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import RolloutBatch, RolloutStep, SamplingParams, TokenScores


class TablePolicy(Policy):
    """A policy without a model: the logprobs of a batch are rows of a table, and the table is what is trained."""

    def __init__(self, table: Tensor, max_tokens_per_micro_batch: int = 40) -> None:
        nn.Module.__init__(self)
        self.model = None
        self.packs = False
        self.routing = None
        self.adapter = None
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.table = nn.Parameter(table.clone())  # [B, T]

    def logprobs(self, batch: RolloutBatch, *, entropy_gradient: bool = False) -> TokenScores:
        scores = self.table[batch.rows, : batch.loss_mask.shape[1]] * batch.completion_mask
        return TokenScores(scores, torch.zeros_like(scores.detach()))


class _Collect(L.Callback):
    """Moves the policy from the reference, which a round begins with, to the tables' logprobs; notes each update."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.computed = Computed.nothing_of(tables)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.policy.table.data.copy_(self.tables.logprobs)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        batch, computed = pl_module.pending.batch, self.computed
        computed.advantages[batch.rows] = batch.advantages.double()
        computed.losses.append(float(pl_module.pending.loss))
        computed.gradients.append(pl_module.policy.table.grad.clone())
        computed.rows.append(batch.rows.tolist())


def batch_of(algorithm: Algorithm, tables: Tables) -> RolloutBatch:
    """The batch that the algorithm makes of the rollouts, with advantages of its own."""
    rollouts = [
        make_rollout(
            completion=[6] * length,
            reward=reward,
            finish_reason="length" if truncated else "stop",
            sampling_logprobs=tables.sampling[row, :length].tolist(),
        )
        for row, (length, reward, truncated) in enumerate(
            zip(tables.lengths.tolist(), tables.rewards.tolist(), tables.truncated.tolist(), strict=True)
        )
    ]
    starts = range(0, len(rollouts), tables.group)
    groups = [make_group(*rollouts[start : start + tables.group]) for start in starts]
    batch = algorithm.make_batch(groups, SamplingParams(max_new_tokens=tables.limit))
    return replace(batch, sampling_logprobs=tables.sampling * batch.completion_mask)  # in float64


def our_run(algorithm: Algorithm, tables: Tables, rows: list[int], **changes: Any) -> Computed:
    """One rollout step.

    Args:
        rows: the rows in the order that the updates share them out.
        changes: fields of the batch that are not to be what the algorithm made them, of all rows.
    """
    batch = batch_of(algorithm, tables)
    batch = replace(batch, **{"old_logprobs": tables.old * batch.completion_mask, **changes})
    collect = _Collect(tables)
    algorithm.lr = 1e-30  # so that the second update meets the same policy, as it does on TRL's side
    fit(algorithm, TablePolicy(tables.reference), [RolloutStep(0, (), batch.select(torch.tensor(rows)), {})], [collect])
    return collect.computed
