"""What every algorithm shares: the gradient of an update, how a rollout step is cut, and the learning rate.

That no gradient hangs on how a mini-batch is cut is for test_invariance.py to show.
"""

import copy

import pytest
import torch
from builders import (
    GradientRecorder,
    StepMetrics,
    fit,
    make_policy,
    random_batch,
    relative_difference,
    slow_entropies,
    slow_logprobs,
    weights,
)
from slow_updates import slow_gradient, step_of, update_gradient

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.losses import negative_log_likelihood
from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.types import LossOutput, RolloutBatch

SEVERAL = ((3, 5), (1, 9), (6, 1), (4, 12), (2, 2), (5, 7), (3, 3), (7, 4), (2, 6), (3, 1), (1, 1))


def test_every_update_begins_with_no_gradient():
    """The same mini-batch twice, at a learning rate that moves nothing, has the same gradient twice."""
    recorder = GradientRecorder()
    fit(RFT(lr=1e-30), make_policy(), [random_batch()] * 2, [recorder])
    first, second = recorder.gradients
    assert torch.equal(first, second)


class SumOfWeights(RFT):
    """Divided by the weights instead of the tokens."""

    def loss_count(self, batch):
        return (batch.loss_mask * batch.advantages[:, None]).sum()


def test_an_algorithm_may_count_otherwise():
    policy = make_policy(max_tokens=20)
    batch = random_batch(SEVERAL)
    batch = RolloutBatch(**{**batch.__dict__, "advantages": torch.arange(1.0, 12.0)})
    count = sum((i + 1) * completion for i, (_, completion) in enumerate(SEVERAL))
    expected = slow_gradient(policy, batch, lambda i, t, logprob: -(i + 1), count)
    assert relative_difference(update_gradient(SumOfWeights(), policy, batch), expected) < 1e-5


# --- rollout steps ----------------------------------------------------------------------------------------------------


class Spy(DAPO):
    """Notes the old logprobs of every row that comes to the loss, by its tokens, one dictionary an update."""

    def on_fit_start(self):
        self.updates, self.current = [], {}

    def loss(self, scores, batch):
        for i in range(len(batch)):
            tokens, completion = int(batch.lengths[i]), int(batch.completion_lengths[i])
            key = tuple(batch.input_ids[i, :tokens].tolist())
            self.current[key] = (batch.old_logprobs[i, :completion], scores.logprobs[i, :completion].detach())
        return super().loss(scores, batch)

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        self.updates.append(self.current)
        self.current = {}


@pytest.mark.parametrize("max_tokens", [16, 1000])
def test_every_update_of_a_rollout_step_is_against_the_policy_that_generated(max_tokens):
    policy, batch = make_policy(max_tokens=max_tokens), random_batch(SEVERAL[:8])
    before = [row.detach() for row in slow_logprobs(policy, batch)]
    module = Spy(updates_per_step=4, lr=0.05, warmup_steps=0)
    trainer = fit(module, policy, [step_of(batch)])
    assert trainer.global_step == 4
    assert len(module.updates) == 4
    rows = [tuple(batch.input_ids[i, : int(batch.lengths[i])].tolist()) for i in range(8)]
    for update, mine in enumerate(module.updates):
        assert sorted(mine) == sorted(rows[2 * update : 2 * update + 2])  # equal shares, in order
        for i in (2 * update, 2 * update + 1):
            old, current = mine[rows[i]]
            torch.testing.assert_close(old.double(), before[i], rtol=1e-5, atol=1e-5)
            if update == 0:
                assert torch.equal(old, current)
            else:
                assert float((old - current).abs().max()) > 0.01  # the policy has moved on since


def test_uneven_shares_hold_every_row_once():
    module = Spy(updates_per_step=3, warmup_steps=0)
    batch = random_batch(SEVERAL)
    fit(module, make_policy(), [step_of(batch)])
    assert [len(update) for update in module.updates] == [4, 4, 3]
    assert len(set().union(*module.updates)) == len(SEVERAL)


def test_metrics_are_means_over_the_tokens_in_the_loss():
    policy = make_policy(max_tokens=16)
    batch = random_batch(SEVERAL[:8], in_loss=[i != 3 for i in range(8)])
    batch.sampling_logprobs[3] = -50.0  # the row that is masked must not be the largest gap
    logprobs, entropies = slow_logprobs(policy, batch), slow_entropies(policy, batch)
    in_loss = [i for i in range(8) if i != 3]
    tokens = sum(len(logprobs[i]) for i in in_loss)
    # At ratio 1 a token's loss is -A.
    loss = sum(-float(batch.advantages[i]) * len(logprobs[i]) for i in in_loss) / tokens
    entropy = sum(float(entropies[i].sum()) for i in in_loss) / tokens
    sampled = [batch.sampling_logprobs[i, : len(logprobs[i])].double() for i in range(8)]
    d = torch.cat([logprobs[i].detach() - sampled[i] for i in in_loss])
    metrics = StepMetrics()
    fit(DAPO(updates_per_step=1, lr=0.125, warmup_steps=0), policy, [step_of(batch)], [metrics])
    (step,) = metrics.steps
    assert step["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert step["policy/entropy_nats"] == pytest.approx(entropy, rel=1e-5)
    assert step["policy/engine_kl_nats"] == pytest.approx(float((d.exp() - d - 1).mean()), rel=1e-4)
    assert step["policy/engine_gap_nats_max"] == pytest.approx(float(d.abs().max()), rel=1e-5)
    assert step["policy/clip_fraction"] == 0
    assert step["train/lr"] == 0.125
    assert step["rollout/reward_mean"] == 0.5
    assert step["time/update_s"] > 0


def test_metrics_of_several_updates_are_their_means_and_largest_values():
    """Two updates of one row each, tokens 4 and 2; a fixed policy, so that the two can be foretold."""
    policy, batch = make_policy(), random_batch(((3, 4), (3, 2)))
    entropies = [float(row.mean()) for row in slow_entropies(policy, batch)]
    metrics = StepMetrics()
    fit(DAPO(updates_per_step=2, lr=1e-12), policy, [step_of(batch)], [metrics])
    assert metrics.steps[0]["policy/entropy_nats"] == pytest.approx(sum(entropies) / 2, rel=1e-5)
    assert metrics.steps[0]["train/loss"] == pytest.approx(-float(batch.advantages.mean()), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_mini_batch_without_a_token_in_the_loss_is_no_step():
    policy, before = make_policy(), weights(make_policy())
    recorder, metrics = GradientRecorder(), StepMetrics()
    batch = random_batch(SEVERAL[:4], in_loss=[False] * 4)
    trainer = fit(DAPO(updates_per_step=2, lr=0.1), policy, [step_of(batch)], [recorder, metrics])
    assert trainer.global_step == 0
    assert recorder.gradients == []
    assert torch.equal(weights(policy), before)
    assert "train/loss" not in metrics.steps[0]
    assert metrics.steps[0]["rollout/reward_mean"] == 0.5


def test_one_empty_share_leaves_the_others_their_steps():
    batch = random_batch(SEVERAL[:4], in_loss=[True, True, False, False])
    policy = make_policy()
    recorder = GradientRecorder()
    trainer = fit(DAPO(updates_per_step=2), policy, [step_of(batch)], [recorder])
    assert trainer.global_step == len(recorder.gradients) == 1


# --- precision --------------------------------------------------------------------------------------------------------


def test_an_update_runs_under_mixed_precision():
    gradient = {}
    for precision in ("bf16-mixed", "32-true"):
        recorder = GradientRecorder()
        policy = make_policy(dtype=torch.float32)
        fit(DAPO(updates_per_step=1), policy, [step_of(random_batch())], [recorder], precision=precision)
        (gradient[precision],) = recorder.gradients
    assert 0 < relative_difference(gradient["bf16-mixed"], gradient["32-true"]) < 0.1


# --- hyper-parameters -------------------------------------------------------------------------------------------------


def test_every_wrong_hyper_parameter_is_named_at_once():
    algorithm = DAPO(
        clip_eps_low=1.0,
        clip_eps_high=-0.1,
        dual_clip=1.0,
        max_generation_batches=0,
        overlong_buffer_tokens=-1,
        updates_per_step=0,
        passes=1.5,
        entropy_coef=-0.1,
        importance_cap=float("inf"),
        importance_level="row",
        lr_schedule="step",
        lr=0.0,
        warmup_steps=-1,
        weight_decay=-0.5,
        beta1=1.0,
        beta2=-0.1,
        max_grad_norm=-1.0,
    )
    messages = dict(message.split(": ", 1) for message in algorithm.invalid())
    assert messages == {
        "--algo.lr": "expected a number > 0, got 0.0",
        "--algo.warmup_steps": "expected an integer >= 0, got -1",
        "--algo.lr_schedule": "expected constant, linear or cosine, got 'step'",
        "--algo.weight_decay": "expected a number >= 0, got -0.5",
        "--algo.beta1": "expected a number >= 0 and < 1, got 1.0",
        "--algo.beta2": "expected a number >= 0 and < 1, got -0.1",
        "--algo.max_grad_norm": "expected a number >= 0, got -1.0",
        "--algo.updates_per_step": "expected an integer > 0, got 0",
        "--algo.passes": "expected an integer > 0, got 1.5",
        "--algo.clip_eps_low": "expected a number > 0 and < 1, got 1.0",
        "--algo.clip_eps_high": "expected a number > 0, got -0.1",
        "--algo.dual_clip": "expected a number > 1 or null, got 1.0",
        "--algo.max_generation_batches": "expected an integer > 0, got 0",
        "--algo.overlong_buffer_tokens": "expected an integer >= 0, got -1",
        "--algo.entropy_coef": "expected a number >= 0, got -0.1",
        "--algo.importance_cap": "expected a number >= 1, got inf",
        "--algo.importance_level": "expected token, sequence or geometric, got 'row'",
    }
    with pytest.raises(ValueError, match=r"--algo.lr: expected a number > 0, got 0.0"):
        fit(algorithm, make_policy(), [step_of(random_batch())])


def test_a_consolidation_names_its_own_flags():
    messages = RFT(epochs=0, rollouts_per_update=0, lr=-1.0).invalid()
    assert sorted(message.split(":")[0] for message in messages) == [
        "--consolidate.epochs",
        "--consolidate.lr",
        "--consolidate.rollouts_per_update",
    ]


@pytest.mark.parametrize("module", [DAPO(), RFT(), DAPO(dynamic_sampling=False, dual_clip=3.0, max_grad_norm=0.0)])
def test_the_defaults_are_valid(module):
    assert module.invalid() == []


def test_a_copy_keeps_what_is_wrong():
    """The loop trains a copy in each round."""
    assert copy.deepcopy(DAPO(lr=-1.0)).invalid() == ["--algo.lr: expected a number > 0, got -1.0"]


# --- a new algorithm is two methods -----------------------------------------------------------------------------------


class Reinforce(Algorithm):
    def advantages(self, rewards):
        return rewards.float()

    def loss(self, scores, batch):
        token_loss = negative_log_likelihood(scores.logprobs, batch.advantages)
        lengths = batch.completion_lengths[:, None]
        return LossOutput(token_loss, {"reinforce/tokens": batch.loss_mask, "reinforce/length_max": lengths})


def test_a_new_algorithm_is_two_methods():
    policy, batch, recorder, metrics = make_policy(), random_batch(), GradientRecorder(), StepMetrics()
    expected = slow_gradient(policy, batch, lambda i, t, _: -float(batch.advantages[i]), int(batch.loss_mask.sum()))
    fit(Reinforce(), make_policy(), [step_of(batch)], [recorder, metrics])
    assert relative_difference(recorder.gradients[0], expected) < 1e-5
    assert metrics.steps[0]["reinforce/tokens"] == 1.0


def test_a_metric_named_max_is_the_largest_over_micro_batches_and_updates():
    """Completions of 5, 9, 1, 12 tokens and of 2, 7, 3, 4, one row a micro-batch, in two updates."""
    metrics = StepMetrics()
    fit(Reinforce(updates_per_step=2), make_policy(max_tokens=1), [step_of(random_batch())], [metrics])
    assert metrics.steps[0]["reinforce/length_max"] == 12
    assert metrics.steps[0]["reinforce/tokens"] == 1.0


def test_gradients_do_not_take_memory_while_the_next_step_generates():
    policy = make_policy()
    fit(DAPO(lr=1e-3, updates_per_step=2), policy, [step_of(random_batch())])
    assert all(parameter.grad is None for parameter in policy.parameters())
