"""A rollout step of each algorithm with PPO's clip against its slow implementation: gradient and loss."""

import pytest
from slow_algorithms import Slow, SlowCISPO, assert_update_is, random_groups

from rloop_lightning.algorithms.cispo import CISPO
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.dr_grpo import DrGRPO
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.gspo import GSPO
from rloop_lightning.algorithms.kl import KLConstrained
from rloop_lightning.algorithms.maxrl import MaxRL

ONE = {"updates_per_step": 1}


def corrected(correction, level, cap):
    ours = {"importance_correction": correction, "importance_level": level, "importance_cap": cap}
    return ours, {"correction": correction, "level": level, "cap": cap}


@pytest.mark.parametrize("high", [0.2, 0.5])
def test_grpo(high):
    metrics = assert_update_is(GRPO(clip_eps_high=high), Slow(aggregation="sequence-mean", high=high))
    assert 0.1 < metrics["policy/clip_fraction"] < 0.9


@pytest.mark.parametrize(
    ("estimator", "kl_in"), [("k2", "loss"), ("k3", "loss"), ("k1", "reward"), ("k2", "reward"), ("k3", "reward")]
)
def test_grpo_with_a_kl_term(estimator, kl_in):
    ours = GRPO(kl_beta=0.5, kl_estimator=estimator, kl_in=kl_in)
    slow = Slow(aggregation="sequence-mean", beta=0.5, estimator=estimator, kl_in=kl_in)
    metrics = assert_update_is(ours, slow)
    without = assert_update_is(GRPO(), Slow(aggregation="sequence-mean"))
    assert abs(metrics["train/loss"] - without["train/loss"]) > 1e-3  # the term is seen


def test_dr_grpo():
    assert_update_is(DrGRPO(), Slow(divisor="none", aggregation="constant"))


@pytest.mark.parametrize("high", [0.2, 0.5])
def test_maxrl(high):
    metrics = assert_update_is(MaxRL(clip_eps_high=high), Slow(divisor="mean", aggregation="constant", high=high))
    assert 0.1 < metrics["policy/clip_fraction"] < 0.9


@pytest.mark.parametrize("eps", [4.0, 0.05])
def test_cispo(eps):
    """A capped token keeps its gradient, with the cap as its weight."""
    metrics = assert_update_is(CISPO(clip_eps_high=eps), SlowCISPO(cap_of_ratio=1 + eps))
    assert 0 < metrics["policy/clip_fraction"] < 0.6


@pytest.mark.parametrize(("low", "high"), [(3e-4, 4e-4), (0.1, 0.2)])
def test_gspo(low, high):
    """One ratio for a rollout: its gradient reaches all of its tokens or, where it is clipped, none."""
    metrics = assert_update_is(
        GSPO(clip_eps_low=low, clip_eps_high=high, **ONE),
        Slow(aggregation="sequence-mean", low=low, high=high, of_rollout=True),
    )
    assert 0 < metrics["policy/clip_fraction"] < 1


def test_the_defaults_of_gspo_are_its_papers():
    module = GSPO()
    assert (module.clip_eps_low, module.clip_eps_high, module.updates_per_step) == (3e-4, 4e-4, 4)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl(estimator):
    ours = KLConstrained(kl_beta=0.3, kl_estimator=estimator, **ONE)
    metrics = assert_update_is(ours, Slow(high=0.28, beta=0.3, estimator=estimator))
    assert metrics["policy/kl_nats"] > 0.01


def test_kl_in_the_reward():
    ours = KLConstrained(kl_beta=0.3, kl_estimator="k1", kl_in="reward", **ONE)
    assert_update_is(ours, Slow(high=0.28, beta=0.3, estimator="k1", kl_in="reward"))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("correction", "cap"), [("truncate", 1.3), ("mask", 1.3), ("truncate", 1e9)])
def test_importance_correction(correction, level, cap):
    ours, slow = corrected(correction, level, cap)
    metrics = assert_update_is(DAPO(**ours, **ONE), Slow(high=0.28, **slow))
    assert metrics["policy/importance_weight"] != pytest.approx(1.0, abs=1e-3)
    if cap < 2:
        assert metrics["policy/importance_weight"] < cap
    assert_update_is(
        GSPO(clip_eps_low=0.2, clip_eps_high=0.2, **ours, **ONE),
        Slow(aggregation="sequence-mean", of_rollout=True, **slow),
    )


def test_a_kl_term_is_not_corrected_for_the_engine():
    """The reference's divergence has nothing to do with who drew the tokens."""
    ours, slow = corrected("truncate", "token", 1.3)
    assert_update_is(KLConstrained(kl_beta=0.3, **ours, **ONE), Slow(high=0.28, beta=0.3, **slow))


@pytest.mark.parametrize("name", ["token-mean", "sequence-mean", "constant"])
def test_rollouts_that_carry_no_loss_are_not_counted(name):
    """Overlong filtering, under each way to count."""
    module = DAPO(mask_truncated=True, aggregation=name, **ONE)
    groups = random_groups()
    assert {rollout.finish_reason for group in groups for rollout in group.rollouts} == {"stop", "length"}
    assert_update_is(module, Slow(high=0.28, aggregation=name), groups)
