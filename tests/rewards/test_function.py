"""A plain function as a reward: what it gets, what it gives, and what is said of one that gives something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reward_functions
import torch
from tiny_run import TinyRun

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.data import main as rloop_data
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.main import main
from rloop_lightning.errors import RunFault
from rloop_lightning.rewards.function import FunctionReward
from rloop_lightning.types import Problem, Scored

PROBLEMS = [Problem("a", "1+1=", "2"), Problem("b", "1+2=", "3", {"hint": "odd"})]


def test_the_function_gets_problems_and_completions_and_its_numbers_are_the_rewards() -> None:
    seen = []

    def function(problems, completions):
        seen.append((problems, completions))
        return [0.25, 2]

    assert FunctionReward(function)(PROBLEMS, ("x", "y")) == [Scored(0.25, False), Scored(2.0, True)]
    assert seen == [(PROBLEMS, ["x", "y"])]


def test_success_begins_at_a_reward_of_1_unless_the_threshold_says_otherwise() -> None:
    by_default, lower = (
        FunctionReward(reward_functions.matches),
        FunctionReward("reward_functions.matches", success_threshold=0.02),
    )
    texts = ["2", "12"]
    assert [scored.success for scored in by_default(PROBLEMS, texts)] == [True, False]
    assert lower(PROBLEMS, texts) == [Scored(1.0, True), Scored(0.02, True)]


@pytest.mark.parametrize(
    "returned",
    [
        [True, 0],
        (1.0, 0.0),
        np.array([1.0, 0.0], dtype=np.float32),
        [np.float64(1), np.bool_(False)],
        torch.tensor([1.0, 0.0]),
        [torch.tensor(1.0), torch.tensor(0)],
    ],
    ids=repr,
)
def test_numbers_of_any_kind_are_taken(returned: object) -> None:
    rewards = FunctionReward(lambda problems, completions: returned).rewards(PROBLEMS, ["x", "y"])
    assert rewards == [1.0, 0.0]
    assert [type(reward) for reward in rewards] == [float, float]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_few", "the function must return one number for each of 2 completions, got 1"),
        ("nothing", "the function must return a list with one number for each completion, got NoneType"),
        ("words", "the function must return finite numbers, got '1.0' for a completion of a"),
        ("not_a_number", "the function must return finite numbers, got nan for a completion of b"),
    ],
)
def test_what_is_no_list_of_finite_numbers_is_a_fault_that_names_the_function(name: str, message: str) -> None:
    with pytest.raises(RunFault) as caught:
        FunctionReward(f"reward_functions.{name}").rewards(PROBLEMS, ["x", "y"])
    assert str(caught.value) == f"--reward reward_functions.{name}: {message}"


def test_an_error_inside_the_function_is_told_with_its_line_and_keeps_its_traceback() -> None:
    def divides(problems: object, completions: object) -> list[float]:
        return [1 / 0]

    line = divides.__code__.co_firstlineno + 1
    with pytest.raises(
        RunFault, match=rf"it raised ZeroDivisionError: division by zero \(.*test_function.py:{line}\)"
    ) as told:
        FunctionReward(divides).rewards(PROBLEMS, ["x", "y"])
    assert isinstance(told.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("reward", "raised"),
    [
        ("reward_functions.raises", "--reward reward_functions.raises: it raised ValueError: substring not found"),
        ("reward_functions.Raises", "--reward Raises: it raised ValueError: "),
    ],
)
def test_a_reward_that_raises_ends_the_command_with_one_message(
    tiny: TinyRun, reward: str, raised: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert tiny.fit(out, "--reward", reward) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith(f"rloop-fit: error: {raised}")]
    assert "reward_functions.py:" in line
    assert f"rloop-fit: error: fix the cause, then resume with: rloop-fit --resume {out}" in said


def test_the_command_line_takes_the_path_of_a_function_and_its_threshold() -> None:
    given = RLoopCLI(["--reward", "reward_functions.matches", "--reward.success_threshold", "0.5"])
    assert isinstance(given.parts.reward, FunctionReward)
    assert given.parts.reward.function is reward_functions.matches
    assert given.parts.reward.success_threshold == 0.5
    assert (given.config.reward.name, given.config.reward.function) == ("function", "reward_functions.matches")


def test_a_configuration_file_takes_it_too(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("reward: {name: reward_functions.boxed, success_threshold: 0.75}\n")
    reward = RLoopCLI(["--config", str(config)]).parts.reward
    assert isinstance(reward, FunctionReward)
    assert (reward.function, reward.success_threshold) == (reward_functions.boxed, 0.75)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("reward_functions.missing", "--reward: can't import 'reward_functions.missing'"),
        ("reward_functions.NOT_A_FUNCTION", "is not a subclass of rloop_lightning.rewards.base.Reward"),
        ("no_such_module.f", "--reward: can't import 'no_such_module.f'"),
    ],
)
def test_a_path_that_leads_to_no_function_is_refused(path: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        RLoopCLI(["--reward", path])
    assert message in str(caught.value)


def test_a_bad_return_ends_the_command_with_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--eval.samples=2", "--eval.k=[1]", "--eval.sets=[test]", "--eval.sets_inside=[test]"]
    out = tmp_path / "run"
    assert main(["--reward", "reward_functions.too_few", *sizes, "--eval.max_problems=2", "--out", str(out)]) == 1
    said = capsys.readouterr().err.splitlines()
    expected = "--reward reward_functions.too_few: the function must return one number for each of 4 completions, got 3"
    assert f"rloop-fit: error: {expected}" in said
    assert f"rloop-fit: error: fix the cause, then resume with: rloop-fit --resume {out}" in said


def test_rloop_data_takes_a_function_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "1+1", "gold": "anything"}\n')
    assert rloop_data(["check", str(tmp_path / "train.jsonl"), "--reward", "reward_functions.boxed"]) == 0
    assert "train: 1 problems" in capsys.readouterr().out
