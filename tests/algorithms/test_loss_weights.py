"""What weighs and counts in a loss: ratios of rollouts, importance weights, row weights, counts.

Values and gradients against numbers worked out by hand and against loops in plain Python.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rloop_lightning.algorithms.aggregation import loss_count, row_weights
from rloop_lightning.algorithms.importance import capped, importance_ratios, weight_metrics
from rloop_lightning.algorithms.losses import policy_gradient, sequence_ratio

LN2 = math.log(2)
# Two rollouts: three tokens, of which the second carries no loss; and one token.
MASK = torch.tensor([[True, False, True], [True, False, False]])


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- ratio of a rollout -----------------------------------------------------------------------------------------------


def test_the_ratio_of_a_rollout_is_the_geometric_mean_of_its_tokens():
    # Log-ratios ln 2, 9 (masked), 3 ln 2: mean 2 ln 2, s = 4. Of the second rollout -ln 2: s = 1/2.
    logprobs = rows([LN2, 9.0, 3 * LN2], [-LN2, 9.0, 9.0]).requires_grad_()
    ratios = sequence_ratio(logprobs, torch.zeros(2, 3, dtype=torch.float64), MASK)
    assert ratios.tolist() == [[pytest.approx(4.0)], [pytest.approx(0.5)]]
    # d s / d logp = s / n on each of the n tokens: 4 / 2 and 0.5 / 1.
    (slope,) = torch.autograd.grad(ratios.sum(), logprobs)
    torch.testing.assert_close(slope, rows([2.0, 0.0, 2.0], [0.5, 0.0, 0.0]))


def test_the_ratio_of_a_rollout_without_tokens_is_one():
    assert sequence_ratio(rows([5.0]), rows([0.0]), torch.tensor([[False]])).tolist() == [[1.0]]


def test_the_log_ratio_of_a_rollout_is_clamped_to_20():
    ratios = sequence_ratio(rows([90.0, 10.0], [-90.0, 0.0]), rows([0.0, 0.0], [0.0, 0.0]), torch.ones(2, 2).bool())
    assert ratios.flatten().tolist() == pytest.approx([math.exp(20), math.exp(-20)])


# --- REINFORCE with weights -------------------------------------------------------------------------------------------


def test_policy_gradient_by_hand():
    # -w A logp: -0.5 * 2 * -3 = 3, -2 * 2 * -1 = 4; -1 * -1 * -4 = -4, 0. By logp: -w A.
    logprobs = rows([-3.0, -1.0], [-4.0, -2.0]).requires_grad_()
    weights = rows([0.5, 2.0], [1.0, 0.0]).requires_grad_()
    loss = policy_gradient(logprobs, torch.tensor([2.0, -1.0], dtype=torch.float64), weights)
    assert loss.tolist() == [[3.0, 4.0], [-4.0, 0.0]]
    slope, of_weights = torch.autograd.grad(loss.sum(), [logprobs, weights], allow_unused=True)
    assert slope.tolist() == [[-1.0, -4.0], [1.0, 0.0]]
    assert of_weights is None


# --- importance weights -----------------------------------------------------------------------------------------------


def importance_weights(old, engine, mask, *, cap, level, mode):
    return capped(importance_ratios(old, engine, mask, level=level), cap=cap, mode=mode)


@pytest.mark.parametrize(
    ("level", "mode", "expected"),
    [
        # Ratios old / mu of the tokens: 2, 4 (the second, which carries no loss, counts here: it is the rollout's),
        # 1/4; and 1/2. Of whole rollouts: 2 * 4 / 4 = 2, and 1/2. Cap 3, then 1.5 for the rollouts.
        ("token", "truncate", [[2.0, 3.0, 0.25], [0.5, 1.0, 1.0]]),
        ("token", "mask", [[2.0, 0.0, 0.25], [0.5, 1.0, 1.0]]),
        ("sequence", "truncate", [[1.5], [0.5]]),
        ("sequence", "mask", [[0.0], [0.5]]),
        # The cube root of 2, and 1/2.
        ("geometric", "truncate", [[2 ** (1 / 3)], [0.5]]),
        ("geometric", "mask", [[2 ** (1 / 3)], [0.5]]),
    ],
)
def test_importance_weights_by_hand(level, mode, expected):
    old = rows([LN2, 2 * LN2, -2 * LN2], [-LN2, 7.0, 7.0])
    completions = torch.tensor([[True, True, True], [True, False, False]])
    cap = 3.0 if level == "token" else 1.5
    weights = importance_weights(old, torch.zeros_like(old), completions, cap=cap, level=level, mode=mode)
    torch.testing.assert_close(weights, rows(*expected))


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_a_weight_at_the_cap_stays(mode):
    old = rows([LN2, 0.0])
    weights = importance_weights(old, rows([0.0, 0.0]), old > -1, cap=float(old.exp().max()), level="token", mode=mode)
    assert weights.tolist() == [[pytest.approx(2.0), 1.0]]


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_equal_logprobs_weigh_exactly_one(level):
    old = torch.randn(3, 4)
    weights = importance_weights(old, old, old > -9, cap=1.0, level=level, mode="mask")
    assert weights.flatten().tolist() == [1.0] * weights.numel()


def test_shares_of_weights_by_hand():
    # Ratios 4, 1, 0.05 and 0.1 under a cap of 2: the first is above the cap, the third below 0.1.
    ratios = torch.tensor([[4.0, 1.0], [0.05, 0.1]])
    metrics = weight_metrics(ratios, capped(ratios, cap=2.0, mode="truncate"), cap=2.0)
    assert metrics["policy/importance_weight"].tolist() == [[2.0, 1.0], [pytest.approx(0.05), pytest.approx(0.1)]]
    assert metrics["policy/importance_capped_share"].tolist() == [[True, False], [False, False]]
    assert metrics["policy/importance_vanished_share"].tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(("spread", "vanished", "mean"), [(0.03, (0.3, 0.5), 0.6), (0.1, (0.99, 1.0), 0.01)])
def test_the_weights_of_4000_tokens_vanish_by_sequence_and_not_by_their_geometric_mean(spread, vanished, mean):
    """Log-ratios with a standard deviation of 0.03 or 0.1 nats, the engine's bfloat16 say, and E[w] = 1 for a token."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(2000, 4000, generator=generator) * spread - spread**2 / 2
    mask = torch.ones(2000, 4000, dtype=torch.bool)
    engine = torch.zeros_like(old)
    by_sequence = importance_ratios(old, engine, mask, level="sequence")
    assert float(by_sequence.median().log()) == pytest.approx(-4000 * spread**2 / 2, rel=0.05)
    share = float((by_sequence < 0.1).float().mean())
    assert vanished[0] < share <= vanished[1]
    assert float(capped(by_sequence, cap=2.0, mode="truncate").mean()) < mean
    for level in ("token", "geometric"):
        weights = capped(importance_ratios(old, engine, mask, level=level), cap=2.0, mode="truncate")
        assert float(weights.mean()) == pytest.approx(1.0, abs=0.01)


# --- how tokens become one number -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregation", "weights", "count"),
    [
        # Three rollouts with 2, 1 and 0 tokens in the loss; at most 7 tokens.
        ("token-mean", [1.0, 1.0, 1.0], 3),
        ("sequence-mean", [0.5, 1.0, 1.0], 2),
        ("sequence-sum", [1.0, 1.0, 1.0], 2),
        ("constant", [1.0, 1.0, 1.0], 14),
    ],
)
def test_row_weights_and_counts_by_hand(aggregation, weights, count):
    mask = torch.cat([MASK, torch.zeros(1, 3).bool()])
    assert row_weights(mask, aggregation).tolist() == weights
    assert int(loss_count(mask, aggregation, max_new_tokens=7)) == count


@st.composite
def ragged(draw):
    """Rows of (logprob, old or engine's logprob, in the loss)."""
    number = st.floats(-3, 3).map(lambda value: round(value, 3))
    token = st.tuples(number, number, st.booleans())
    return draw(st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=4))


def tensors(case):
    width = max(map(len, case))
    padded = [[*row, *[(0.0, 0.0, False)] * (width - len(row))] for row in case]
    first, second = (rows(*[[token[k] for token in row] for row in padded]) for k in (0, 1))
    return first, second, torch.tensor([[token[2] for token in row] for row in padded])


@settings(max_examples=50)
@given(ragged())
def test_ratios_of_rollouts_equal_a_loop_over_tokens(case):
    logprobs, old, mask = tensors(case)
    logprobs.requires_grad_()
    ratios = sequence_ratio(logprobs, old, mask)
    (slopes,) = torch.autograd.grad(ratios.sum(), logprobs)
    for i, row in enumerate(case):
        own = [logprob - other for logprob, other, carries in row if carries]
        expected = math.exp(math.fsum(own) / len(own)) if own else 1.0
        assert ratios[i, 0].item() == pytest.approx(expected)
        expected_slopes = [expected / len(own) if carries else 0.0 for *_, carries in row]
        assert slopes[i, : len(row)].tolist() == pytest.approx(expected_slopes)
        assert not slopes[i, len(row) :].any()


@settings(max_examples=50)
@given(ragged(), st.sampled_from([1.0, 1.7003, 4.0009]))
def test_importance_weights_equal_a_loop_over_tokens(case, cap):
    old, engine, mask = tensors(case)
    for mode in ("truncate", "mask"):
        by_token = importance_weights(old, engine, mask, cap=cap, level="token", mode=mode)
        by_row = importance_weights(old, engine, mask, cap=cap, level="sequence", mode=mode)
        for i, row in enumerate(case):
            own = [a - b if carries else 0.0 for a, b, carries in row]

            def cut(weight, mode=mode):
                return weight if weight <= cap else cap if mode == "truncate" else 0.0

            assert by_token[i, : len(row)].tolist() == pytest.approx([cut(math.exp(d)) for d in own])
            total = 0.0
            for d in own:
                total += d
            assert float(by_row[i, 0]) == pytest.approx(cut(math.exp(total)))
            count = max(1, sum(carries for *_, carries in row))
            mean = importance_weights(old, engine, mask, cap=cap, level="geometric", mode=mode)
            assert float(mean[i, 0]) == pytest.approx(cut(math.exp(total / count)))


@settings(max_examples=50)
@given(ragged(), st.integers(1, 9))
def test_aggregations_equal_loops_over_rollouts(case, limit):
    values, _, mask = tensors(case)
    own = [[value for value, _, carries in row if carries] for row in case]
    counted = [row for row in own if row]
    tokens = sum(map(len, own))
    expected = {
        "token-mean": sum(map(sum, own)) / max(tokens, 1),
        "sequence-mean": sum(sum(row) / len(row) for row in counted) / max(len(counted), 1),
        "sequence-sum": sum(map(sum, own)) / max(len(counted), 1),
        "constant": sum(map(sum, own)) / max(len(counted) * limit, 1),
    }
    for aggregation, value in expected.items():
        total = (values * mask * row_weights(mask, aggregation)[:, None]).sum()
        count = loss_count(mask, aggregation, limit).clamp(min=1)
        assert float(total / count) == pytest.approx(value, rel=1e-6, abs=1e-9)
