"""The reference policy: what it is, in a checkpoint and after a reset; the adaptive weight; adapters."""

import lightning as L
import pytest
import torch
from builders import (
    GradientRecorder,
    StepMetrics,
    Stream,
    fit,
    make_model,
    make_policy,
    make_tokenizer,
    random_batch,
    relative_difference,
    slow_logprobs,
    weights,
)
from peft import LoraConfig, get_peft_model
from slow_algorithms import SAMPLING, off_policy, random_groups, slow_kl
from slow_updates import MoveTo, moved_policy, slow_update, step_of

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.kl import KLConstrained
from rloop_lightning.algorithms.kl_term import adapted
from rloop_lightning.algorithms.reference import Reference
from rloop_lightning.callbacks.checkpoint import PhaseCheckpoint, checkpoints
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import RolloutStep

FAST = {"updates_per_step": 2, "lr": 0.02, "warmup_steps": 0}


def steps(count=5):
    return [step_of(random_batch(seed=seed), seed) for seed in range(count)]


class ResumableSteps(Stream):
    """Rollout steps that know where they stand, as the loop's stream does."""

    position = 0

    def __iter__(self):
        while self.position < len(self):
            self.position += 1
            yield self.items[self.position - 1]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Watch(StepMetrics):
    """Notes weights of policy and reference, and the steps that the optimizer's moments know of."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *rest):
        state = trainer.optimizers[0].state
        moments = {int(of_parameter["step"]) for of_parameter in state.values()}
        reference = None if pl_module.kl.reference is None else weights(pl_module.kl.reference)
        self.seen.append((weights(pl_module.policy), reference, moments))
        super().on_train_batch_end(trainer, pl_module, *rest)


def train(module, data, folder=None, *, resume_from=None, policy=None):
    watch = Watch()
    callbacks = [watch] if folder is None else [PhaseCheckpoint(folder, 1), watch]
    fit_kwargs = {} if resume_from is None else {"ckpt_path": resume_from, "weights_only": True}
    saves = folder is not None
    fit(module, policy or make_policy(), ResumableSteps(data), callbacks, fit_kwargs, enable_checkpointing=saves)
    return watch


# --- what the reference is --------------------------------------------------------------------------------------------


def test_the_reference_is_the_policy_that_the_phase_began_with():
    watch = train(KLConstrained(**FAST), steps(3))
    initial = weights(make_policy())
    assert all(torch.equal(reference, initial) for _, reference, _ in watch.seen)
    assert not torch.equal(watch.seen[-1][0], initial)
    # In the first step the second of two updates is off the reference; then all are.
    kl = [step["policy/kl_nats"] for step in watch.steps]
    assert 0 < kl[0] < min(kl[1:])


def test_nothing_of_the_reference_is_trained():
    module, policy = KLConstrained(**FAST), make_policy()
    trainer = fit(module, policy, steps(1))
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in policy.parameters()}
    assert module.kl.reference is not None
    assert not any(p.requires_grad for p in module.kl.reference.parameters())
    assert {id(p) for p in module.kl.reference.parameters()}.isdisjoint(trained)


@pytest.mark.parametrize("make", [lambda: KLConstrained(kl_target=0.01, **FAST), lambda: GRPO(kl_beta=0.1, lr=0.02)])
def test_a_phase_that_is_resumed_goes_on_with_the_same_reference(make, tmp_path):
    """Bit for bit as if it had not stopped, though the policy that it resumes with is not the one it began with."""
    whole = train(make(), steps(), tmp_path)
    (_, newest) = checkpoints(tmp_path)
    assert newest.name == "step-000004.ckpt"
    again = train(make(), steps(), resume_from=newest, policy=make_policy(seed=9))
    assert len(again.seen) == 1
    assert torch.equal(again.seen[0][1], weights(make_policy()))
    assert torch.equal(again.seen[0][0], whole.seen[-1][0])
    timeless = [{k: v for k, v in run.steps[-1].items() if not k.startswith("time/")} for run in (again, whole)]
    assert timeless[0] == timeless[1]


def test_the_metric_of_a_term_in_the_reward_is_its_mean_over_tokens():
    groups, moved, module = random_groups(), moved_policy(), GRPO(kl_beta=0.5, kl_estimator="k1", kl_in="reward")
    batch = off_policy(module.make_batch(groups, SAMPLING), moved)
    reference = slow_logprobs(make_policy(), batch)
    estimates = [
        slow_kl(float(batch.old_logprobs[i, t]), float(row[t]), "k1")[0]
        for i, row in enumerate(reference)
        for t in range(len(row))
    ]
    metrics = StepMetrics()
    fit(module, make_policy(), [RolloutStep(0, tuple(groups), batch, {})], [MoveTo(moved), metrics])
    assert metrics.steps[0]["policy/kl_nats"] == pytest.approx(sum(estimates) / len(estimates), rel=1e-5)


# --- adaptive weight --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        # beta 0.1, target 0.02, rate 0.1. Relative error 0: stays. 0.1: a hundredth more. -0.1: a hundredth less.
        (0.02, 0.1),
        (0.022, 0.101),
        (0.018, 0.099),
        # 0.5 and 49 count as 0.2; -0.75 as -0.2.
        (0.03, 0.102),
        (1.0, 0.102),
        (0.005, 0.098),
    ],
)
def test_the_weight_adapts_by_hand(measured, expected):
    assert adapted(0.1, measured, target=0.02, rate=0.1) == pytest.approx(expected)


def test_each_step_is_weighed_by_what_the_steps_before_made_of_beta():
    """Without advantages the loss is beta times the divergence."""
    module = KLConstrained(kl_beta=0.5, kl_target=0.1, kl_adaptation=0.5, updates_per_step=1, lr=0.02, warmup_steps=0)
    data = [step_of(random_batch(seed=s), s) for s in range(4)]
    for step in data:
        step.batch.advantages.zero_()
    metrics = StepMetrics()
    fit(module, make_policy(), data, [MoveTo(moved_policy()), metrics])
    beta, betas = 0.5, []
    for step in metrics.steps:
        assert step["train/loss"] == pytest.approx(beta * step["policy/kl_nats"], rel=1e-5)
        beta *= 1 + 0.5 * min(max(step["policy/kl_nats"] / 0.1 - 1, -0.2), 0.2)
        betas.append(step["train/kl_beta"])
        assert betas[-1] == pytest.approx(beta)
    assert float(module.kl.beta) == betas[-1]
    assert len(set(betas)) == 4


def test_without_a_target_beta_stays():
    module = KLConstrained(kl_beta=0.25, **FAST)
    watch = train(module, steps(3))
    assert float(module.kl.beta) == 0.25
    assert all("train/kl_beta" not in step for step in watch.steps)


def test_a_target_in_the_reward_adapts_too():
    module = KLConstrained(kl_beta=0.5, kl_target=1e-4, kl_in="reward", kl_estimator="k3", updates_per_step=1)
    groups = random_groups()
    batch = off_policy(module.make_batch(groups, SAMPLING), moved_policy())
    metrics = StepMetrics()
    fit(module, make_policy(), [RolloutStep(0, tuple(groups), batch, {})], [metrics])
    assert metrics.steps[0]["train/kl_beta"] == pytest.approx(0.5 * 1.02)


# --- resets -----------------------------------------------------------------------------------------------------------


def test_a_reset_takes_the_policys_weights_and_begins_the_optimizer_anew():
    watch = train(KLConstrained(reference_reset_steps=2, **FAST), steps(5))
    policies, references, moments = zip(*watch.seen, strict=True)
    initial = weights(make_policy())
    for index, expected in enumerate([initial, policies[1], policies[1], policies[3], policies[3]]):
        assert torch.equal(references[index], expected), index
    # Two updates a step; the moments know of those since the reset.
    assert moments == ({2}, set(), {2}, set(), {2})


@pytest.mark.parametrize("stopped_after", [2, 3])
def test_a_reset_survives_a_resume(stopped_after, tmp_path):
    make = lambda: KLConstrained(reference_reset_steps=2, kl_target=0.01, **FAST)  # noqa: E731 -- it is the run
    whole = train(make(), steps(), tmp_path / "whole")
    train(make(), steps()[: stopped_after + 1], tmp_path / "cut")
    newest = checkpoints(tmp_path / "cut")[-1]
    assert newest.name == f"step-00000{stopped_after}.ckpt"
    again = train(make(), steps(), resume_from=newest)
    assert len(again.seen) == 5 - stopped_after
    for ours, theirs in zip(again.seen, whole.seen[stopped_after:], strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert ours[2] == theirs[2]


# --- adapters ---------------------------------------------------------------------------------------------------------


def lora_policy(**changes):
    """The tiny policy with an adapter that is not the identity."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Policy(get_peft_model(make_model(**changes), config), make_tokenizer())


def moved(policy):
    """The same policy after an update of its adapter."""
    with torch.no_grad():
        for weight in policy.adapter.parameters.values():
            weight.add_(0.1)
    return policy


def test_with_an_adapter_the_reference_is_the_round_s_initial_policy():
    policy, batch = lora_policy(), random_batch()
    reference = Reference(policy)
    initial = policy.scores_no_grad(batch).logprobs
    copied = sum(weight.numel() for weight in policy.adapter.parameters.values())
    assert sum(weight.numel() for weight in reference.parameters()) == copied
    moved(policy)
    now = policy.scores_no_grad(batch).logprobs
    assert torch.equal(reference.logprobs(batch), initial)
    # Outside, the adapter is the policy's again.
    assert torch.equal(policy.scores_no_grad(batch).logprobs, now)
    assert float((now - initial).abs().max()) > 0.01
    reference.reset()
    assert torch.equal(reference.logprobs(batch), now)


def test_the_reference_base_is_the_policy_with_its_adapter_off():
    policy, batch = lora_policy(), random_batch()
    reference = Reference(policy, "base")
    assert list(reference.parameters()) == []
    assert reference.state_dict() == {}
    base = make_policy().scores_no_grad(batch).logprobs
    torch.testing.assert_close(reference.logprobs(batch), base)
    assert float((policy.scores_no_grad(batch).logprobs - base).abs().max()) > 0.01


@pytest.mark.parametrize("kind", ["round", "base"])
def test_with_an_adapter_an_update_trains_it_against_the_reference(kind):
    policy, batch = lora_policy(), random_batch()
    batch.advantages.zero_()
    against = make_policy() if kind == "base" else policy
    reference = [row.tolist() for row in slow_logprobs(against, batch)]
    moved(policy)

    def row_loss(i, row):
        terms = [slow_kl(logprob, other, "k3") for logprob, other in zip(row, reference[i], strict=True)]
        return [(0.5 * value, 0.5 * slope) for value, slope in terms]

    expected, loss = slow_update(policy, batch, row_loss, int(batch.loss_mask.sum()))
    recorder, metrics = GradientRecorder(), StepMetrics()
    algorithm = KLConstrained(kl_beta=0.5, updates_per_step=1, kl_reference=kind)

    class Moving(L.Callback):
        def on_train_start(self, trainer, module):
            moved(module.policy)

    fit(algorithm, lora_policy(), [step_of(batch)], [Moving(), recorder, metrics])
    assert relative_difference(recorder.gradients[0], expected) < 1e-5
    assert metrics.steps[0]["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert loss > 0.01


def test_the_reference_base_needs_an_adapter_and_never_changes():
    with pytest.raises(ValueError, match=r"the base model, which does not change"):
        Reference(lora_policy(), "base").reset()
    assert "--algo.reference_reset_steps must be 0 with --algo.kl_reference base, which never changes, got 2" in (
        KLConstrained(kl_reference="base", reference_reset_steps=2).invalid()
    )
    kl = KLConstrained(kl_reference="base").kl
    assert kl.conflict(lora_policy(), "--algo") == ""
    assert kl.conflict(make_policy(), "--algo") == (
        "--algo.kl_reference base: only a policy with an adapter contains its base model; set --policy.lora.rank, or "
        "take round"
    )


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_every_wrong_setting_is_named():
    assert KLConstrained(kl_beta=-0.1, kl_target=-1.0, kl_adaptation=0.0, reference_reset_steps=-1).invalid() == [
        "--algo.kl_beta: expected a number >= 0, got -0.1",
        "--algo.kl_target: expected a number > 0 or null, got -1.0",
        "--algo.kl_adaptation: expected a number > 0, got 0.0",
        "--algo.reference_reset_steps: expected an integer >= 0, got -1",
        "--algo.kl_beta must be > 0 with --algo.kl_target: 0 stays 0, got -0.1",
    ]
    assert KLConstrained(kl_beta=0.0, reference_reset_steps=5).invalid() == [
        "--algo.reference_reset_steps must be 0 with --algo.kl_beta 0, which has no reference, got 5"
    ]


@pytest.mark.parametrize("cls", [GRPO, KLConstrained])
def test_k1_in_the_loss_is_refused(cls):
    (message,) = cls(kl_beta=0.1, kl_estimator="k1").invalid()
    assert message == (
        "--algo.kl_estimator must be k2 or k3 in the loss, where the gradient of k1 is zero in expectation "
        "(--algo.kl_in reward), got k1"
    )
    assert cls(kl_beta=0.1, kl_estimator="k1", kl_in="reward").invalid() == []


def test_a_constrained_dapo_is_dapo_but_for_the_term():
    module = KLConstrained()
    assert isinstance(module, DAPO)
    assert (module.kl.initial_beta, module.kl.estimator, module.kl.place, module.clip_eps_high) == (
        0.04,
        "k3",
        "loss",
        0.28,
    )
