"""The optimizer of a phase: its step, what decays, its learning rate, and those of others."""

import math

import pytest
import torch
from builders import GradientRecorder, StepMetrics, fit, make_policy, random_batch, weights
from slow_updates import step_of

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.optimizer import learning_rate_factor
from rloop_lightning.algorithms.rft import RFT

SEVERAL = ((3, 5), (1, 9), (6, 1), (4, 12))

# --- learning rate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [(0, [0.8] * 5), (1, [0.8] * 5), (4, [0.2, 0.4, 0.6, 0.8, 0.8]), (8, [0.1, 0.2, 0.3, 0.4, 0.5])],
)
def test_the_learning_rate_rises_a_rollout_step_at_a_time(warmup, expected):
    metrics = StepMetrics()
    steps = [step_of(random_batch(SEVERAL), index) for index in range(5)]
    fit(DAPO(updates_per_step=2, lr=0.8, warmup_steps=warmup), make_policy(), steps, [metrics])
    assert [step["train/lr"] for step in metrics.steps] == pytest.approx(expected)


def slow_adamw(gradient, start, *, lr, decay, beta1, beta2, max_norm):
    """The first step of AdamW after clipping to a norm: bias correction makes the moments g and g^2."""
    clipped = gradient * min(1.0, max_norm / (float(gradient.norm()) + 1e-6)) if max_norm else gradient
    first = (1 - beta1) * clipped / (1 - beta1)
    second = (1 - beta2) * clipped**2 / (1 - beta2)
    return start * (1 - lr * decay) - lr * first / (second.sqrt() + 1e-8)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e-7, 1.0])
def test_an_update_is_a_clipped_step_of_adamw(max_grad_norm):
    """Adam's first step hardly depends on the gradient's scale, so the smallest clip goes near its epsilon of 1e-8."""
    policy, recorder = make_policy(), GradientRecorder()
    start = weights(policy)
    module = DAPO(updates_per_step=1, lr=0.01, warmup_steps=0, weight_decay=0.5, max_grad_norm=max_grad_norm)
    fit(module, policy, [step_of(random_batch())], [recorder])
    assert float(recorder.gradients[0].norm()) > 0.1  # seen before clipping
    decay = torch.cat([torch.full((p.numel(),), 0.5 if p.dim() > 1 else 0.0) for p in policy.parameters()])
    expected = slow_adamw(
        recorder.gradients[0], start, lr=0.01, decay=decay, beta1=0.9, beta2=0.999, max_norm=max_grad_norm
    )
    torch.testing.assert_close(weights(policy), expected, rtol=1e-6, atol=1e-8)


def test_betas_reach_the_optimizer():
    trainer = fit(DAPO(updates_per_step=1, beta1=0.8, beta2=0.95), make_policy(), [step_of(random_batch())])
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.8, 0.95)


def test_frozen_parameters_stay_out_of_the_optimizer():
    policy = make_policy()
    embedding = policy.model.get_input_embeddings().weight.requires_grad_(False)
    before = embedding.clone()
    trainer = fit(DAPO(lr=0.1, updates_per_step=1), policy, [step_of(random_batch())])
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in policy.parameters()} - {id(embedding)}
    assert torch.equal(embedding, before)


COS = [math.cos(math.pi * share) for share in (0.25, 0.5, 0.75)]


@pytest.mark.parametrize(
    ("schedule", "warmup", "min_lr", "expected"),
    [
        # Peak 0.8 in the second of five steps; a sixth would be at the end: quarters of the way.
        ("constant", 2, 0.0, [0.4, 0.8, 0.8, 0.8, 0.8]),
        ("linear", 2, 0.0, [0.4, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 2, 0.4, [0.4, 0.8, 0.7, 0.6, 0.5]),
        ("cosine", 2, 0.0, [0.4, 0.8, *[0.4 * (1 + c) for c in COS]]),
        ("cosine", 2, 0.4, [0.4, 0.8, *[0.4 + 0.2 * (1 + c) for c in COS]]),
        # Peak in the first step: fifths.
        ("linear", 0, 0.0, [0.8, 0.64, 0.48, 0.32, 0.16]),
        # The phase ends in warm-up.
        ("cosine", 8, 0.0, [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
@pytest.mark.parametrize("kind", ["algo", "consolidate"])
def test_the_learning_rate_falls_until_the_phase_ends(kind, schedule, warmup, min_lr, expected):
    settings = {"lr": 0.8, "lr_schedule": schedule, "warmup_steps": warmup, "min_lr": min_lr}
    metrics, batch = StepMetrics(), random_batch(SEVERAL)
    if kind == "algo":
        fit(DAPO(updates_per_step=2, **settings), make_policy(), [step_of(batch, i) for i in range(5)], [metrics])
    else:
        fit(RFT(**settings), make_policy(), [batch] * 5, [metrics])
    assert [step["train/lr"] for step in metrics.steps] == pytest.approx(expected)


def test_a_schedule_past_its_end_stays_at_the_floor():
    for schedule in ("linear", "cosine"):
        settings = {"schedule": schedule, "warmup_steps": 2, "floor": 0.25}
        assert learning_rate_factor(5, 5, **settings) == pytest.approx(0.25)
        assert learning_rate_factor(50, 5, **settings) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0.1, "lr_schedule": "linear", "min_lr": 0.2}, "--algo.min_lr must be at most --algo.lr 0.1, got 0.2"),
        ({"lr": 0.1, "min_lr": 0.05}, "--algo.min_lr needs --algo.lr_schedule linear or cosine, got 0.05"),
    ],
)
def test_a_floor_that_can_not_be_is_refused(settings, said):
    assert DAPO(**settings).invalid() == [said]


class Halves(DAPO):
    """Another schedule, as Lightning's documentation has it."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.policy.parameters(), lr=0.8)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)}


class Plateau(DAPO):
    """A schedule that looks at a metric."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.policy.parameters(), lr=0.8)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return [optimizer], [schedule]

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(self.step_metrics["rollout/reward_mean"])  # the same in every step of these tests


class Alone(DAPO):
    """No schedule at all."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.policy.parameters(), lr=0.8)


@pytest.mark.parametrize(("cls", "expected"), [(Halves, [0.8, 0.4, 0.2]), (Alone, [0.8, 0.8, 0.8])])
def test_a_subclass_may_take_another_schedule(cls, expected):
    metrics = StepMetrics()
    fit(cls(updates_per_step=2), make_policy(), [step_of(random_batch(SEVERAL), i) for i in range(3)], [metrics])
    assert [step["train/lr"] for step in metrics.steps] == pytest.approx(expected)


def test_a_schedule_may_monitor_a_metric_of_the_step():
    metrics = StepMetrics()
    fit(Plateau(updates_per_step=1), make_policy(), [step_of(random_batch(), i) for i in range(4)], [metrics])
    assert [step["train/lr"] for step in metrics.steps] == [0.8, 0.8, 0.4, 0.2]


# --- which optimizer --------------------------------------------------------------------------------------------------


def test_norms_and_biases_do_not_decay():
    policy = make_policy()
    trainer = fit(DAPO(updates_per_step=1, weight_decay=0.5), policy, [step_of(random_batch())])
    decays = {id(p): group["weight_decay"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    by_name = {name: decays[id(p)] for name, p in policy.model.named_parameters()}
    flat = [name for name in by_name if name.endswith("norm.weight") or name.endswith(".bias")]
    assert len(flat) == 5 + 6
    assert {name for name, decay in by_name.items() if decay == 0} == set(flat)
    assert {decay for name, decay in by_name.items() if name not in flat} == {0.5}


def test_an_optimizer_by_its_class_path_makes_its_own_step():
    """Plain SGD: each weight less lr times the gradient and the decay of matrices."""
    policy, recorder = make_policy(), GradientRecorder()
    start = weights(policy)
    module = DAPO(
        updates_per_step=1, lr=0.01, warmup_steps=0, weight_decay=0.5, max_grad_norm=0.0, optimizer="torch.optim.SGD"
    )
    assert module.invalid() == []
    fit(module, policy, [step_of(random_batch())], [recorder])
    decay = torch.cat([torch.full((p.numel(),), 0.5 if p.dim() > 1 else 0.0) for p in policy.parameters()])
    torch.testing.assert_close(weights(policy), start - 0.01 * (recorder.gradients[0] + decay * start))


def test_options_reach_the_optimizer():
    trainer = fit(
        DAPO(updates_per_step=1, optimizer_options={"amsgrad": True, "betas": [0.5, 0.6]}),
        make_policy(),
        [step_of(random_batch())],
    )
    for group in trainer.optimizers[0].param_groups:
        assert group["amsgrad"]
        assert tuple(group["betas"]) == (0.5, 0.6)


def test_betas_go_to_whatever_optimizer_takes_them():
    module = DAPO(updates_per_step=1, optimizer="torch.optim.NAdam", beta1=0.8, beta2=0.9)
    trainer = fit(module, make_policy(), [step_of(random_batch())])
    assert type(trainer.optimizers[0]) is torch.optim.NAdam
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.8, 0.9)


class KeepsCopies(torch.optim.SGD):
    """An optimizer with a state of its own, in the dtype of the weights that it was made with."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, lr, weight_decay=weight_decay)
        self.copies = [weight.detach().clone() for group in self.param_groups for weight in group["params"]]

    def step(self, closure=None):
        if self.copies[0].dtype != self.param_groups[0]["params"][0].dtype:
            raise TypeError("another dtype")
        super().step(closure)


def test_an_optimizer_is_tried_on_bfloat16_weights_too():
    name = f"{__name__}.KeepsCopies"
    assert DAPO(optimizer=name).invalid() == [
        f"--algo.optimizer can't be used: {name} raises TypeError: another dtype in a step on two small tensors of "
        f"bfloat16, got {name}"
    ]
    assert DAPO(optimizer="torch.optim.Adagrad").invalid() == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "AdamW"}, "optimizer is not known; take adamw, adamw8bit, "),
        ({"optimizer": "torch.optim.AdamX"}, "optimizer can't be imported ("),
        ({"optimizer": "torch.nn.Linear"}, "optimizer is not a subclass of torch.optim.Optimizer, got torch.nn.Linear"),
        ({"optimizer_options": {"lr": 0.1}}, "optimizer_options must not hold lr, which the field lr sets, got {"),
        (
            {"optimizer_options": {"momentum": 0.9}},
            "optimizer_options must hold arguments of adamw, which has no momentum, got {",
        ),
        (
            {"optimizer": "torch.optim.SGD", "beta1": 0.8},
            "beta1 and beta2 must keep their defaults with torch.optim.SGD, which takes no betas, got (0.8, 0.999)",
        ),
        (
            {"optimizer": "torch.optim.SparseAdam", "weight_decay": 0.1},
            "weight_decay must be 0 with torch.optim.SparseAdam, which takes none, got 0.1",
        ),
    ],
)
def test_what_an_optimizer_can_not_take_is_refused(settings, said):
    (message,) = DAPO(**settings).invalid()
    assert message.startswith(f"--algo.{said}")
    assert RFT(weight_decay=0.1, **{k: v for k, v in settings.items() if k != "weight_decay"}).invalid() == [
        message.replace("--algo.", "--consolidate.")
    ]
