"""The estimate of a run's time after the first rollout step."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from rloop_lightning.callbacks import run_estimate
from rloop_lightning.callbacks.run_estimate import RunEstimate, duration


# 201 steps left of two explorations of 150, the first of which began its step 100, so that it has 51 left; or of
# explorations that their tokens end after 110 steps.
@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (150, "time left: about 1 h 41 min by the first rollout step: 200 rollout steps of 30.0 s, "),
        (None, "time left: about 1 h 41 min by the first rollout step: 200 rollout steps of 30.0 s, "),
        (110, "time left: about 1 h 1 min by the first rollout step: 120 rollout steps of 30.0 s, "),
    ],
)
def test_the_estimate_is_the_steps_left_and_the_evaluations_left(
    expected: int | None, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rloop_lightning")
    clock = iter([100.0, 130.0])
    monkeypatch.setattr(run_estimate, "perf_counter", lambda: next(clock))
    callback = RunEstimate(rollout_steps=201, evaluation_rollouts=8_000)
    module = SimpleNamespace(
        step_metrics={"time/generate_s": 18.0, "time/reward_s": 2.0, "rollout/generated_rollouts": 2_000.0}
    )
    trainer = SimpleNamespace(num_training_batches=150)
    callback.on_train_start(trainer, module)
    for step in range(99, 102):
        callback.on_train_batch_end(trainer, module, None, SimpleNamespace(phase_steps=expected), step)
    # 200 steps of 30 s, and 8,000 rollouts at 100 a second
    (message,) = [record.message for record in caplog.records]
    assert message.startswith(said)
    assert "evaluations of 1 min 20 s in all" in message


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (7200, "2 h 0 min"),
        (1e6, "11 d 14 h"),
    ],
)
def test_durations_have_their_two_largest_units(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
