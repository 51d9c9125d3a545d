"""How the ranks of a job share the work on a mini-batch. Each rank has the whole mini-batch and computes its share.

    for rows, micro in micro_batches(policy, batch): ...        # of this rank's share
    scores = scores_no_grad(policy, batch)                      # of all rows, on every rank

With one process, the share is the whole mini-batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rloop_lightning.algorithms.ranks import largest_over_ranks, rank_and_world, sum_over_ranks
from rloop_lightning.model.packing import MicroBatches
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import is_sharded
from rloop_lightning.types import RolloutBatch, TokenScores


def share(batch: RolloutBatch, rank: int, world: int) -> Tensor:
    """The rows of one rank, ascending [B_rank] int64; every row is one rank's.

    Shares have about equally many tokens, so that ranks finish together: they differ from the mean by less than the
    longest row. Rows that share a prompt stay together, but for those at a border between ranks. A share may be empty.

    Args:
        rank: from 0.
        world: the number of ranks.
    """
    order = batch.prompts.argsort(stable=True)
    prompts = batch.prompts[order]
    first = torch.cat([prompts.new_ones(1, dtype=torch.bool), prompts[1:] != prompts[:-1]])
    tokens = batch.completion_lengths[order] + batch.prompt_lengths[order] * first  # a prompt is computed once
    twice_middle = 2 * tokens.cumsum(0) - tokens
    owner = twice_middle * world // (2 * tokens.sum())
    return order[owner == rank].sort().values


def micro_batches(policy: Policy, batch: RolloutBatch) -> MicroBatches:
    """The micro-batches of this rank's share, each with its row numbers in the batch.

    A sharded policy computes with all ranks together, so that a rank with fewer micro-batches than another gets further
    ones: a row without loss tokens, with no row numbers. A rank with an empty share gets one in any case.
    """
    rank, world = rank_and_world()
    if world == 1:
        yield from policy.micro_batches(batch)
        return
    rows = share(batch, rank, world)
    own = batch.select(rows) if len(rows) else None
    missing = 0 if own is not None else 1
    if is_sharded(policy):
        count = 0 if own is None else sum(1 for _ in policy.micro_batches(own))
        missing = int(largest_over_ranks(torch.tensor(count, device=rows.device))) - count
    for places, micro in policy.micro_batches(own) if own is not None else ():
        yield rows[places], micro
    for _ in range(missing):
        shortest = batch.select(batch.lengths.argmin()[None])
        yield rows[:0], replace(shortest, loss_mask=torch.zeros_like(shortest.loss_mask))


def scores_no_grad(policy: Policy, batch: RolloutBatch) -> TokenScores:
    """`Policy.scores_no_grad` of a batch that every rank has; each rank computes its share, and gets all."""
    if rank_and_world()[1] == 1:
        return policy.scores_no_grad(batch)
    scores = policy.scores_no_grad(batch, micro_batches(policy, batch))  # 0 in the rows of others
    experts = scores.routed_experts
    if experts is not None:  # as bytes, since no backend sums 16-bit integers; one summand of each is not 0
        experts = sum_over_ranks(experts.view(torch.uint8)).view(experts.dtype)
    return TokenScores(sum_over_ranks(scores.logprobs), sum_over_ranks(scores.entropy), experts)
