"""Sample completions in the log, and what is said of the first step of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from builders import make_policy, make_rollout

from rloop_lightning.callbacks.completions import CompletionLog
from rloop_lightning.callbacks.findings import Phase
from rloop_lightning.types import Group, Problem

POLICY = make_policy()
PHASE = Phase(flag="--algo", lr=1e-4, max_new_tokens=64, rollouts_per_problem=2)
METRICS = {
    "rollout/success_rate": 0.5,
    "rollout/truncated_rate": 0.0,
    "rollout/generated_rollouts": 4.0,
    "rollout/length_tokens": 5.0,
}


def group(name: str, *rewards: float, text: str = "1+2=3", end: str = "stop", answer: str = "7") -> Group:
    """Rollouts of one problem, which differ in their first character."""
    rollouts = [
        make_rollout(
            name,
            [*POLICY.encode(f"{number}{text}"), *([1] if end == "stop" else [])],
            reward=reward,
            finish_reason=end,
        )
        for number, reward in enumerate(rewards)
    ]
    return Group(Problem(name, "3 4=", answer), tuple(rollouts))


def logged(
    caplog: pytest.LogCaptureFixture, groups: Sequence[Group], *, step: int = 0, every: int = 1, **metrics: float
) -> str:
    log = CompletionLog(POLICY, PHASE, "round 1/1 explore", every, checks_first_step=True)
    with caplog.at_level(logging.INFO):
        log.sampled(step, groups, {**METRICS, **{name.replace("__", "/"): value for name, value in metrics.items()}})
    return "\n".join(record.getMessage() for record in caplog.records)


def test_a_right_and_a_wrong_completion_of_one_problem(caplog: pytest.LogCaptureFixture) -> None:
    said = logged(caplog, [group("easy", 1.0, 1.0), group("mixed", 0.0, 1.0)])
    assert said.splitlines() == [
        "round 1/1 explore: completions of rollout step 1",
        "  problem mixed, gold answer 7",
        "    prompt: 3 4=",
        "    completion: 11+2=3<eos>",
        "    right, reward 1, 7 tokens, ended",
        "  problem mixed, gold answer 7",
        "    prompt: 3 4=",
        "    completion: 01+2=3<eos>",
        "    wrong, reward 0, 7 tokens, ended",
    ]


@pytest.mark.parametrize(
    ("every", "steps"), [(0, []), (1, [0, 1, 2, 3, 4, 5]), (2, [0, 1, 3, 5]), (5, [0, 4]), (50, [0])]
)
def test_they_come_at_the_first_step_and_every_n(
    every: int, steps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    log = CompletionLog(POLICY, PHASE, "round 2/3 explore", every)
    with caplog.at_level(logging.INFO):
        for step in range(6):
            log.sampled(step, [group("mixed", 0.0, 1.0)], METRICS)
    said = [record.getMessage().splitlines()[0] for record in caplog.records]
    assert said == [f"round 2/3 explore: completions of rollout step {step + 1}" for step in steps]


def test_long_texts_are_cut_in_the_middle(caplog: pytest.LogCaptureFixture) -> None:
    said = logged(caplog, [group("long", 1.0, text="1" * 500 + "2" * 500)])
    shown = next(line for line in said.splitlines() if "completion:" in line)
    assert shown.startswith("    completion: 0111")
    assert " ... (406 characters) ... 222" in shown  # 1,001 characters and <eos>, of which 400 and 200 are shown
    assert shown.endswith("2<eos>")


def test_no_text_can_pass_for_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    forged = "x\nrloop-fit: error: give up\r\x1b[2J\u2028\u202e"
    hostile = Group(Problem(forged, forged, forged), group("a", 1.0).rollouts)
    said = logged(caplog, [hostile])
    assert all(line.startswith("  ") for line in said.split("\n")[1:])
    assert not any(character in said for character in "\r\x1b\u2028\u202e")


def test_a_first_step_in_which_nothing_ends_is_loud_even_without_samples(caplog: pytest.LogCaptureFixture) -> None:
    groups = [group("a", 0.0, 0.0, end="length"), group("b", 0.0, 0.0, end="length")]
    said = logged(caplog, groups, every=0, rollout__truncated_rate=1.0, rollout__success_rate=0.0)
    lines = said.splitlines()
    assert lines[0] == "WARNING: the first rollout step gives nothing to learn from"
    assert lines[1] == "  nothing ends: every completion is cut at the limit of 64 tokens (4 rollouts)"
    assert any("--engine.max_new_tokens above 64" in line for line in lines)
    assert any("--engine.stop" in line for line in lines)
    assert lines[-1] == "    wrong, reward 0, 6 tokens, cut at the limit"
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_special_token_that_does_not_end_completions_is_named(caplog: pytest.LogCaptureFixture) -> None:
    (pad,) = {POLICY.tokenizer.pad_token_id}
    cut = make_rollout("a", [5, pad, 6], finish_reason="length")
    groups = [Group(Problem("a", "3 4=", "7"), (cut, cut))]
    said = logged(caplog, groups, rollout__truncated_rate=1.0, rollout__success_rate=0.0)
    assert "2 of 2 cut completions hold the special token <pad>, which does not end a completion" in said
    assert "--engine.stop '<pad>'" in said


def test_a_first_step_without_success_is_loud_and_a_later_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    groups = [group("a", 0.0, 0.0)]
    assert logged(caplog, groups, step=1, every=0, rollout__success_rate=0.0) == ""
    said = logged(caplog, groups, every=0, rollout__success_rate=0.0)
    assert "no success in 4 rollouts since the start" in said
    assert "problem a, gold answer 7" in said
