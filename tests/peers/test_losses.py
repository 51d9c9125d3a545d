"""Our advantages, losses and gradients are TRL's, but for what test_differences.py shows to differ.

Two updates on each generation, TRL's in two micro-batches of equally many rows, ours in as many as a token budget asks
for; generations are on-policy and off-policy, rows ragged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peers.comparing import CLIP, TRL_CLIP, assert_equal, ours_beside
from peers.our_side import batch_of, our_run
from peers.tables import Tables, random_tables
from peers.trl_side import trl_runs

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.cispo import CISPO
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.dr_grpo import DrGRPO
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.gspo import GSPO
from rloop_lightning.algorithms.importance import capped, importance_ratios
from rloop_lightning.algorithms.losses import clipped, ratio, sequence_ratio
from rloop_lightning.algorithms.minirl import MiniRL

UPDATES = 2
TABLES = (random_tables(1), random_tables(2), random_tables(3, on_policy=True))
FROM_THE_ENGINE = tuple(replace(tables, sampling=tables.old) for tables in TABLES)
"""Whose probabilities are the trainer's."""


@dataclass(frozen=True)
class Case:
    """An algorithm of ours, and the settings under which TRL's loss is the same.

    Args:
        ours: takes `updates_per_step`.
        theirs: fields of GRPOConfig, without the clip range.
        engine: as though vLLM had generated.
        pieces: micro-batches of TRL.
    """

    ours: Callable[..., Algorithm]
    theirs: dict[str, Any]
    engine: bool = False
    pieces: int = 2
    tables: tuple[Tables, ...] = TABLES
    clip: dict[str, float] = field(default_factory=lambda: TRL_CLIP)


def corrected(mode: str, level: str, cap: float, ours: Callable[..., Algorithm], **theirs: Any) -> Case:
    return Case(
        partial(ours, importance_correction=mode, importance_level=level, importance_cap=cap),
        {
            **theirs,
            "vllm_importance_sampling_mode": f"{level}_{mode}",
            "vllm_importance_sampling_clip_max": cap,
        },
        engine=True,
    )


KL = {"beta": 0.3, "use_bias_correction_kl": False}
GSPO_CLIP = {"clip_eps_low": 0.03, "clip_eps_high": 0.04}
TRL_GSPO = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
TRL_GSPO_CLIP = {"epsilon": 0.03, "epsilon_high": 0.04}
dapo = partial(DAPO, **CLIP)
CASES = {
    "grpo": Case(partial(GRPO, **CLIP), {"loss_type": "grpo"}),
    "grpo, dual clip": Case(partial(GRPO, **CLIP, dual_clip=1.25), {"loss_type": "grpo", "delta": 1.25}),
    "grpo, KL k3": Case(partial(GRPO, **CLIP, kl_beta=0.3), {"loss_type": "grpo", **KL}),
    "dr_grpo": Case(partial(DrGRPO, **CLIP), {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": Case(dapo, {"loss_type": "dapo"}),
    "dapo, truncated rollouts masked": Case(
        partial(dapo, mask_truncated=True), {"loss_type": "dapo", "mask_truncated_completions": True}
    ),
    "bnpo, whole mini-batches": Case(dapo, {"loss_type": "bnpo"}, pieces=1),
    "gspo": Case(partial(GSPO, **GSPO_CLIP), TRL_GSPO, clip=TRL_GSPO_CLIP),
    "cispo": Case(partial(CISPO, clip_eps_high=0.1), {"loss_type": "cispo"}, clip={"epsilon_high": 1.1}),
    "minirl without its clip": Case(
        partial(MiniRL, clip=False, importance_cap=1.1),
        {"loss_type": "cispo", "scale_rewards": "none"},
        tables=FROM_THE_ENGINE,
        clip={"epsilon_high": 1.1},
    ),
    "token weights, truncated": corrected("truncate", "token", 1.3, dapo, loss_type="dapo"),
    "token weights, masked": corrected("mask", "token", 1.3, dapo, loss_type="dapo"),
    "sequence weights, truncated": corrected("truncate", "sequence", 1.3, dapo, loss_type="dapo"),
    "sequence weights, masked": corrected("mask", "sequence", 1.3, dapo, loss_type="dapo"),
    "weights and KL": corrected("truncate", "token", 1.3, partial(GRPO, **CLIP, kl_beta=0.3), loss_type="grpo", **KL),
    "weights of tokens, ratios of sequences": replace(
        corrected("mask", "token", 1.3, partial(GSPO, **GSPO_CLIP), **TRL_GSPO), clip=TRL_GSPO_CLIP
    ),
}


def factors(case: Case, tables: Tables, rows: list[list[int]]) -> list[float]:
    """What we divide a mini-batch's loss by, over what TRL does; differs only where TRL counts tokens."""
    if case.theirs["loss_type"] not in ("dapo", "cispo"):
        return [1.0] * UPDATES
    in_loss = ~tables.truncated if case.theirs.get("mask_truncated_completions") else torch.ones_like(tables.truncated)
    tokens = tables.lengths * in_loss
    of_trl = float(tokens.sum()) / UPDATES
    return [len(own) / of_trl if case.ours.func is MiniRL else float(tokens[own].sum()) / of_trl for own in rows]


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_equal(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    runs = trl_runs(
        case.tables, tmp_path, engine=case.engine, updates=UPDATES, pieces=case.pieces, **case.clip, **case.theirs
    )
    for tables, theirs in zip(case.tables, runs, strict=True):
        scaled = case.theirs.get("scale_rewards") != "none"
        ours = ours_beside(theirs, case.ours(updates_per_step=UPDATES), tables, scaled=scaled)
        assert_equal(ours, theirs, factors(case, tables, theirs.rows))


def test_one_update_without_old_logprobs(tmp_path: Path) -> None:
    """Both sides then take the current ones: the tables' old logprobs, which differ, are read by neither."""
    (theirs,) = trl_runs(TABLES[:1], tmp_path, pieces=2, loss_type="dr_grpo", scale_rewards="none")
    ours = our_run(DrGRPO(), TABLES[0], theirs.rows[0], old_logprobs=None)
    assert_equal(ours, theirs, [1.0])


@pytest.mark.parametrize("tables", TABLES[:2], ids=["1", "2"])
def test_the_tables_reach_every_branch(tables: Tables) -> None:
    """Of tokens in the loss some are clipped below, some above, some not; so for the dual clip and all weights."""
    mask, advantages = tables.mask, batch_of(GRPO(), tables).advantages
    rho = ratio(tables.logprobs, tables.old)
    sequence_rho = sequence_ratio(tables.logprobs, tables.old, mask)
    for found, eps in ((rho, CLIP), (sequence_rho, GSPO_CLIP)):
        out = clipped(found, advantages, **eps) & mask
        assert (out & (found > 1)).any()
        assert (out & (found < 1)).any()
        assert (mask & ~out).any()
    assert (mask & (rho > 1.25) & (advantages < 0)[:, None]).any()
    for level in ("token", "sequence"):
        ratios = importance_ratios(tables.old, tables.sampling, mask, level=level)
        weights = capped(ratios, cap=1.3, mode="mask") + 0 * rho
        assert 0 < (weights[mask] == 0).sum() < mask.sum()
    assert 0 < tables.truncated.sum() < len(mask)
    assert len(set(tables.lengths.tolist())) > 4
