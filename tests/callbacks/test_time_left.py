"""The time left in a phase: from steps, evaluations and captures, worked out by hand."""

from __future__ import annotations

from rloop_lightning.callbacks.time_left import Extra, TimeLeft


def test_it_is_unknown_before_the_first_step_and_zero_at_the_end() -> None:
    left = TimeLeft(2)
    assert left.text() == "?"
    left.step_done(30.0, {})
    assert left.text() == "00:30"
    left.step_done(30.0, {})
    assert left.text() == "00:00"


def test_it_falls_while_a_step_runs_but_not_below_the_later_steps() -> None:
    left = TimeLeft(10)
    left.step_done(60.0, {})
    assert left.text() == "09:00"
    assert left.text(elapsed=20.0) == "08:40"
    assert left.text(elapsed=600.0) == "08:00"


def test_a_step_that_needs_more_groups_takes_longer() -> None:
    left = TimeLeft(10)
    left.step_done(60.0, {})
    # A quarter of the groups after 50 s: the step takes 200 s, of which 150 s are left.
    assert left.text(elapsed=50.0, share=0.25) == "10:30"


def test_it_follows_the_last_ten_steps() -> None:
    left = TimeLeft(30)
    for seconds in [100.0] * 10 + [10.0] * 10:
        left.step_done(seconds, {})
    assert left.step_s == 10
    assert left.text() == "01:40"


def test_evaluations_and_captures_are_counted_and_left_out_of_the_steps() -> None:
    evaluation = Extra("evaluation", "time/evaluate_s", 2, after_last_step=False, seconds=50.0)
    capture = Extra("extra capture", "time/capture_s", 4, after_last_step=True, seconds=7.0)
    left = TimeLeft(8, extras=[evaluation, capture])
    left.step_done(10.0, {})
    assert left.step_s == 10
    # 7 steps, evaluations after steps 2, 4 and 6, captures after steps 4 and 8.
    assert left.text() == "03:54"
    assert left.due() == ["evaluation"]
    left.step_done(110.0, {"time/evaluate_s": 100.0})
    assert left.step_s == 10
    assert left.text() == "04:34"  # 6 steps, 2 evaluations of 100 s now, 2 captures
    left.step_done(10.0, {})
    assert left.due() == ["evaluation", "extra capture"]


def test_an_evaluation_that_was_never_measured_is_marked() -> None:
    left = TimeLeft(4, extras=[Extra("evaluation", "time/evaluate_s", 2, after_last_step=False)])
    left.step_done(10.0, {})
    assert left.text() == "00:30+"
    left.step_done(25.0, {"time/evaluate_s": 15.0})
    assert left.text() == "00:20"  # none is left: after the last step, the loop evaluates by itself
