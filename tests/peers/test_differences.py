"""What differs between TRL and us, each with its exact amount; docs/peers.md is the list of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peers.comparing import CLIP, TOLERANCE, TRL_CLIP, assert_equal, ours_beside, with_eps_of_trl
from peers.our_side import batch_of
from peers.tables import random_tables
from peers.trl_side import trl_runs
from trl import GRPOConfig

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.dr_grpo import DrGRPO
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.gspo import GSPO
from rloop_lightning.algorithms.importance import ImportanceCorrection

ROOT = Path(__file__).parents[2]
TABLES = random_tables(3)
SCALED_NONE = {"scale_rewards": "none"}


def test_the_standard_deviation_has_a_larger_eps_there(tmp_path: Path) -> None:
    (theirs,) = trl_runs([TABLES], tmp_path)
    ours = batch_of(GRPO(), TABLES).advantages.double()
    assert torch.allclose(ours * with_eps_of_trl(TABLES), theirs.advantages, rtol=0, atol=TOLERANCE)
    assert (ours - theirs.advantages).abs().max() > 10 * TOLERANCE
    (unscaled,) = trl_runs([TABLES], tmp_path, **SCALED_NONE)
    assert torch.allclose(batch_of(DrGRPO(), TABLES).advantages.double(), unscaled.advantages, rtol=0, atol=TOLERANCE)


def test_equal_rewards_leave_a_rounding_residue_there(tmp_path: Path) -> None:
    # In float32 the mean of eight rewards of 0.7 is not 0.7, and what is left of r - mean is divided by about 1e-4.
    tables = random_tables(0, problems=2, group=8)
    tables = replace(tables, rewards=torch.full_like(tables.rewards, 0.7))
    (theirs,) = trl_runs([tables], tmp_path)
    assert (theirs.advantages.abs() > 1e-4).all()
    assert batch_of(GRPO(), tables).advantages.tolist() == [0.0] * 16


def test_dr_grpo_divides_by_the_standard_deviation_there_unless_told_not_to(tmp_path: Path) -> None:
    (theirs,) = trl_runs([TABLES], tmp_path, loss_type="dr_grpo")
    divided_by = (TABLES.grouped.std(dim=1) + 1e-4).repeat_interleave(TABLES.group)
    ours = batch_of(DrGRPO(), TABLES).advantages.double()
    assert torch.allclose(ours / divided_by, theirs.advantages, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("updates", [2, 4])
def test_dapo_divides_each_mini_batch_by_their_mean_number_of_tokens_there(tmp_path: Path, updates: int) -> None:
    (theirs,) = trl_runs([TABLES], tmp_path, updates=updates, loss_type="dapo", **TRL_CLIP)
    ours = ours_beside(theirs, DAPO(updates_per_step=updates, **CLIP), TABLES)
    tokens = [float(TABLES.lengths[rows].sum()) for rows in theirs.rows]
    factors = [own / (sum(tokens) / updates) for own in tokens]
    assert max(factors) > 1.02
    assert_equal(ours, theirs, factors)


def test_bnpo_divides_each_micro_batch_by_its_own_tokens_there(tmp_path: Path) -> None:
    (theirs,) = trl_runs([TABLES], tmp_path, pieces=2, loss_type="bnpo", **TRL_CLIP)
    (rows,) = theirs.rows
    on_policy = replace(TABLES, old=TABLES.logprobs)
    ours = ours_beside(theirs, DAPO(updates_per_step=1, **CLIP), on_policy)
    tokens = float(TABLES.lengths.sum())
    half = len(rows) // 2
    for piece in (rows[:half], rows[half:]):
        factor = tokens / (2 * float(TABLES.lengths[piece].sum()))
        assert abs(factor - 1) > 0.01
        expected = ours.gradients[0][piece] * factor
        assert torch.allclose(expected, theirs.gradients[0][piece], rtol=TOLERANCE, atol=TOLERANCE**2)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_rollouts_without_a_token_in_the_loss_are_counted_there(tmp_path: Path, loss_type: str) -> None:
    settings = {"loss_type": loss_type, "mask_truncated_completions": True, **TRL_CLIP}
    (theirs,) = trl_runs([TABLES], tmp_path, updates=2, pieces=2, **SCALED_NONE, **settings)

    count = "sequence-mean" if loss_type == "grpo" else "constant"
    masking = DrGRPO(mask_truncated=True, aggregation=count, updates_per_step=2, **CLIP)
    ours = ours_beside(theirs, masking, TABLES, scaled=False)
    factors = [float((~TABLES.truncated[rows]).sum()) / len(rows) for rows in theirs.rows]
    assert max(factors) < 1
    assert_equal(ours, theirs, factors)


def test_log_ratios_are_not_clamped_there(tmp_path: Path) -> None:
    # One token of the worst of a group with rho = e^25, which ours takes for e^20 without a gradient. Beside it nothing
    # else counts, in the loss as in the gradient of the mini-batch.
    row = int(TABLES.rewards[:4].argmin())
    logprobs = TABLES.logprobs.clone()
    logprobs[row, 0] = TABLES.old[row, 0] + 25
    tables = replace(TABLES, logprobs=logprobs)
    (theirs,) = trl_runs([tables], tmp_path, updates=2, loss_type="grpo")
    ours = ours_beside(theirs, GRPO(updates_per_step=2, dual_clip=None), tables)
    (update,) = [number for number, rows in enumerate(theirs.rows) if row in rows]
    assert theirs.losses[update] / ours.losses[update] == pytest.approx(math.exp(5), rel=TOLERANCE)
    assert theirs.gradients[update][row, 0] == pytest.approx(theirs.losses[update], rel=TOLERANCE)
    assert ours.gradients[update][row, 0] == 0


def test_k3_is_not_bounded_there(tmp_path: Path) -> None:
    # d = lp_ref - lp = 25 at one token. k3 there: e^25 - 26, with slope 1 - e^25. Here the tangent at ln 10.
    reference = TABLES.reference.clone()
    reference[0, 0] = TABLES.logprobs[0, 0] + 25
    tables = replace(TABLES, reference=reference)
    (theirs,) = trl_runs([tables], tmp_path, updates=2, loss_type="grpo", beta=0.3, use_bias_correction_kl=False)
    ours = ours_beside(theirs, GRPO(updates_per_step=2, kl_beta=0.3), tables)
    (update,) = [number for number, rows in enumerate(theirs.rows) if 0 in rows]
    share = 0.3 / float(TABLES.lengths[0]) / len(theirs.rows[update])
    of_policy = float(ours.gradients[update][0, 0]) + 9 * share
    assert float(theirs.gradients[update][0, 0]) == pytest.approx(share * (1 - math.exp(25)), rel=TOLERANCE)
    assert abs(of_policy) < 1
    tangent = 10 * (1 + 25 - math.log(10)) - 26
    assert theirs.losses[update] - ours.losses[update] == pytest.approx(
        share * (math.exp(25) - 26 - tangent), rel=TOLERANCE
    )


def test_the_kl_term_is_multiplied_by_the_ratio_there_unless_told_not_to(tmp_path: Path) -> None:
    # With equal rewards nothing but the KL term is left: sum_t rho_t k3_t there, sum_t k3_t here.
    tables = replace(TABLES, rewards=torch.full_like(TABLES.rewards, 0.5))
    settings = {"updates": 2, "loss_type": "grpo", "beta": 0.3}
    (theirs,) = trl_runs([tables], tmp_path, **settings)
    d = TABLES.reference - TABLES.logprobs
    rho = (TABLES.logprobs - TABLES.old).exp()
    k3 = d.exp() - d - 1
    means = ((rho * k3) * TABLES.mask).sum(1) / TABLES.lengths
    slopes = rho * k3 + rho * (1 - d.exp())  # d/dlogp of rho k3
    for rows, loss, gradient in zip(theirs.rows, theirs.losses, theirs.gradients, strict=True):
        assert loss == pytest.approx(0.3 * float(means[rows].mean()), abs=TOLERANCE)
        expected = (0.3 * slopes * TABLES.mask / TABLES.lengths[:, None] / len(rows))[rows]
        assert torch.allclose(gradient[rows], expected, rtol=TOLERANCE, atol=TOLERANCE**2)
    (told,) = trl_runs([tables], tmp_path, use_bias_correction_kl=False, **settings)
    assert_equal(ours_beside(told, GRPO(updates_per_step=2, kl_beta=0.3), tables), told, [1.0, 1.0])
    assert abs(told.losses[0] - theirs.losses[0]) > 10 * TOLERANCE


def test_a_dual_clip_below_the_clip_range_cuts_the_other_sign_there(tmp_path: Path) -> None:
    # rho = 1.12 everywhere, the clip at 1.15, the dual clip at 1.05. There the ratio itself is cut: no gradient where
    # A > 0, and -min(1.05 A, 1.12 A) = 1.12 |A| where A < 0. Here losses are cut: at 1.05 |A| where A < 0.
    tables = replace(TABLES, old=TABLES.logprobs - math.log(1.12))
    (theirs,) = trl_runs([tables], tmp_path, updates=2, loss_type="grpo", delta=1.05, **TRL_CLIP)
    ours = ours_beside(theirs, GRPO(updates_per_step=2, dual_clip=1.05, **CLIP), tables)
    advantages = theirs.advantages
    for rows, loss, gradient, our_loss, our_gradient in zip(
        theirs.rows, theirs.losses, theirs.gradients, ours.losses, ours.gradients, strict=True
    ):
        better = [row for row in rows if advantages[row] > 0]
        worse = [row for row in rows if advantages[row] < 0]
        gained, lost = float(advantages[better].sum()), -float(advantages[worse].sum())
        assert loss == pytest.approx((-1.05 * gained + 1.12 * lost) / len(rows), abs=TOLERANCE)
        assert our_loss == pytest.approx((-1.12 * gained + 1.05 * lost) / len(rows), abs=TOLERANCE)
        assert not gradient[better].any()
        assert gradient[worse].any()
        assert our_gradient[better].any()
        assert not our_gradient[worse].any()


def test_rows_are_shuffled_over_mini_batches_there(tmp_path: Path) -> None:
    (theirs,) = trl_runs([TABLES], tmp_path, updates=2)
    (first, second), half = theirs.rows, len(TABLES.rewards) // 2
    assert sorted(first + second) == list(range(2 * half))
    assert set(first) != set(range(half))  # which is what ours are


def test_defaults(tmp_path: Path) -> None:
    theirs = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    assert (theirs.loss_type, theirs.scale_rewards, theirs.beta) == ("dapo", "group", 0.0)
    assert (theirs.epsilon, theirs.epsilon_high, theirs.importance_sampling_level) == (0.2, None, "token")
    assert (DAPO().clip_eps_low, DAPO().clip_eps_high) == (0.2, 0.28)
    assert (GSPO().clip_eps_low, GSPO().clip_eps_high) == (3e-4, 4e-4)
    assert (theirs.delta, GRPO().dual_clip) == (None, 10.0)
    assert theirs.vllm_importance_sampling_correction
    assert theirs.vllm_importance_sampling_mode == "sequence_mask"
    assert theirs.vllm_importance_sampling_clip_max == 3.0
    assert DAPO().importance == ImportanceCorrection(mode="auto", level="token", cap=2.0)
    assert theirs.use_bias_correction_kl


def test_every_line_of_the_list_names_its_proof() -> None:
    _, differences = (ROOT / "docs" / "peers.md").read_text().split("## What differs")
    lines = [line for line in differences.splitlines() if line.startswith("|")]
    tests = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), flags=re.MULTILINE))
    named = [re.findall(r"`(test_\w+)`", line) for line in lines[2:]]
    assert all(named)
    assert {name for names in named for name in names} == tests - {"test_every_line_of_the_list_names_its_proof"}
