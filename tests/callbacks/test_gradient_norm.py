"""The gradient norm: what is measured, and what is done when it explodes."""

import warnings
from itertools import pairwise

import pytest
import torch
from builders import GradientRecorder, StepMetrics, fit, make_policy, random_batch, weights

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.callbacks.gradient_norm import GradientConfig, GradientNormMonitor
from rloop_lightning.types import RolloutStep


class Scaled(DAPO):
    """Multiplies the loss of its n-th update, from 0, by the n-th of `factors`."""

    def __init__(self, factors, **kwargs):
        super().__init__(warmup_steps=0, **{"updates_per_step": 1, "lr": 0.01, **kwargs})
        self.factors = list(factors)

    def micro_batch_loss(self, scores, batch):
        output = super().micro_batch_loss(scores, batch)
        return type(output)(output.loss * self.factors.pop(0), output.metrics)


def steps(count):
    return [RolloutStep(i, (), random_batch(), {}) for i in range(count)]


def run(factors, config=None, **kwargs):
    """Fits on as many rollout steps as the factors allow; recorder, metrics, weights after every step, warnings."""
    module = Scaled(factors, **kwargs)
    recorder, metrics, history = GradientRecorder(), StepMetrics(), []

    class Weights(StepMetrics):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            history.append(weights(pl_module.policy))

    policy = make_policy()
    start = weights(policy)
    callbacks = [recorder, GradientNormMonitor(config or GradientConfig()), Weights(), metrics]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, policy, steps(len(factors) // module.updates_per_step), callbacks)
    said = [str(warning.message) for warning in caught if str(warning.message).startswith("gradient norm")]
    return recorder, metrics.steps, [start, *history], said


def test_the_norm_is_the_one_before_clipping():
    recorder, metrics, _, said = run([4.0, 2.0], max_grad_norm=0.001)
    for gradient, step in zip(recorder.gradients, metrics, strict=True):
        norm = float((gradient**2).sum().sqrt())
        assert norm > 1
        assert step["grad/norm_preclip"] == pytest.approx(norm, rel=1e-6)
        assert step["grad/skipped_updates"] == 0
    assert said == []


def test_a_training_step_gives_the_mean_and_the_largest_of_its_updates():
    recorder, (metrics,), _, _ = run([1.0, 8.0, 2.0], updates_per_step=3)
    norms = [float(gradient.norm()) for gradient in recorder.gradients]
    assert metrics["grad/norm_preclip"] == pytest.approx(sum(norms) / 3)
    assert metrics["grad/norm_preclip_max"] == pytest.approx(max(norms))


def test_it_warns_once_a_phase():
    recorder, metrics, history, said = run([0.001, 40.0, 60.0], GradientConfig(warn_above=1.0))
    norms = [float(gradient.norm()) for gradient in recorder.gradients]
    assert norms[0] < 1 < min(norms[1:])
    (warning,) = said
    assert "exceeds --gradient.warn_above 1 in optimizer step 2" in warning
    assert all(not torch.equal(a, b) for a, b in pairwise(history))  # no step was skipped
    assert [step["grad/skipped_updates"] for step in metrics] == [0, 0, 0]


def test_null_never_warns():
    assert run([1e4], GradientConfig(warn_above=None))[3] == []


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_no_weight_and_ends_the_phase(factor):
    recorder, metrics, history, said = run([1.0, factor, 1.0])
    assert not torch.isfinite(recorder.gradients[1]).all()
    assert len(metrics) == 2  # the third step never came
    assert not torch.equal(history[0], history[1])
    assert torch.equal(history[1], history[2])
    assert [step["grad/skipped_updates"] for step in metrics] == [0, 1]
    assert "grad/norm_preclip" not in metrics[1]
    (warning,) = said
    assert "optimizer step 2" in warning
    assert "the step is skipped and the phase ends here" in warning


def test_a_phase_may_go_on_after_a_skipped_step():
    _, metrics, history, said = run([1.0, float("nan"), 1.0], GradientConfig(stop_on_nonfinite=False))
    assert len(metrics) == 3
    assert torch.equal(history[1], history[2])
    assert not torch.equal(history[2], history[3])
    assert torch.isfinite(history[3]).all()
    assert "grad/norm_preclip" in metrics[2]
    (warning,) = said
    assert warning.endswith("the step is skipped")


def test_a_norm_above_stop_above_changes_no_weight_and_ends_the_phase():
    recorder, metrics, history, said = run([0.001, 40.0, 0.001], GradientConfig(warn_above=None, stop_above=1.0))
    assert len(metrics) == 2
    assert torch.equal(history[1], history[2])
    assert metrics[1]["grad/skipped_updates"] == 1
    assert metrics[1]["grad/norm_preclip"] == pytest.approx(float(recorder.gradients[1].norm()))
    assert "the phase ends here" in said[0]


def test_a_skipped_step_leaves_no_trace_in_the_optimizer():
    """The step after it moves the weights as if the skipped one had never been."""
    config = GradientConfig(stop_on_nonfinite=False)
    with_skip = run([1.0, float("nan"), 3.0], config)[2][-1]
    without = run([1.0, 3.0], config)[2][-1]
    assert torch.equal(with_skip, without)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ValueError, match="expected a number > 0 or null") as raised:
        GradientConfig(warn_above=0.0, stop_above=float("nan"))
    assert str(raised.value).splitlines() == [
        "--gradient.warn_above: expected a number > 0 or null, got 0.0",
        "--gradient.stop_above: expected a number > 0 or null, got nan",
    ]
