"""`train`: a run from Python is the run that the command line makes of the same settings, and resumes there."""

from __future__ import annotations

import json
import os
import re
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import reward_functions
import torch
import yaml
from same_run import assert_same_run
from transformers import AutoModelForCausalLM

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.main import main
from rloop_lightning.cli.train import TrainResult, train
from rloop_lightning.errors import RunFault
from rloop_lightning.model.config import PolicyConfig, embedded_model_path
from rloop_lightning.model.lora import LoraSettings
from rloop_lightning.run.state import LoopConfig, LoopState
from rloop_lightning.types import Problem

# Problems as the embedded policy knows them: "3 4=7:".
ROWS = [{"problem": f"{a} {b}={a + b}:", "answer": str(a + b)} for a in range(1, 4) for b in range(1, 4)]
DATA = {"name": {"train": ROWS[:8], "test": ROWS[8:]}, "template": "{problem}", "instruction": ""}
TINY: dict[str, Any] = {
    "engine": {"max_new_tokens": 24},
    "algo": {"lr": 1e-4, "warmup_steps": 1, "dynamic_sampling": False},
    "consolidate": {"name": "rft", "epochs": 1, "rollouts_per_update": 8},
    "loop": {
        "rounds": 1,
        "explore_steps": 2,
        "problems_per_step": 4,
        "rollouts_per_problem": 4,
        "checkpoint_every_n_steps": 1,
    },
    "filter": {"enabled": False},
    "eval": {"samples": 2, "k": (1, 2), "sets": None, "sets_inside": None, "every_n_steps": 0},
    "trainer": {"enable_progress_bar": False},
}


def tiny(out: Path, **changes: Any) -> TrainResult:
    return train(**{"data": DATA, "reward": reward_functions.boxed, "out": out, **TINY, **changes})


def settings(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


class StopHereError(Exception):
    """Raised in the midst of a run."""


def stop_at_update(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """AdamW raises instead of making that update; undone by `monkeypatch.undo()`."""
    step, calls = torch.optim.AdamW.step, []

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise StopHereError
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run from Python, never interrupted."""
    return tiny(tmp_path_factory.mktemp("train") / "run")


def test_a_run_gives_its_folder_its_policy_and_its_results(finished: TrainResult) -> None:
    state = LoopState.load(finished.folder / "state.json")
    assert finished.handed_over == state.selected == "round 1 consolidated"
    assert finished.results == state.results
    assert list(finished.results) == ["base", "round 1 explored", "round 1 consolidated"]
    assert finished.budget == state.budget
    assert (finished.budget.rollout_steps, finished.budget.rollouts) == (2, 32)
    assert finished.table == (finished.folder / "results.md").read_text()
    assert "**round 1 consolidated** (handed over)" in finished.table
    assert finished.final == finished.folder / "final"
    assert AutoModelForCausalLM.from_pretrained(finished.final).num_parameters() > 100_000


def test_it_is_the_run_of_the_command_line(finished: TrainResult, tmp_path: Path) -> None:
    sets = {name: str(finished.folder / "data" / f"{name}.jsonl") for name in ("train", "test")}
    flags = [f"--data={sets['train']}", f"--data.eval={json.dumps({'test': sets['test']})}"]
    flags += ["--data.template={problem}", "--data.instruction=", "--reward=reward_functions.boxed"]
    flags += ["--consolidate=rft"]
    flags += [
        f"--{group}.{key}={json.dumps(value)}"
        for group, fields in TINY.items()
        for key, value in fields.items()
        if key != "name"
    ]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", finished.folder)


@pytest.mark.parametrize("update", [3, 6], ids=["explore, after a checkpoint", "consolidate, after a checkpoint"])
def test_a_run_that_was_stopped_and_moved_resumes_from_the_command_line(
    update: int, finished: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at_update(monkeypatch, update)
    with pytest.raises(StopHereError):
        tiny(tmp_path / "run")
    monkeypatch.undo()
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    (tmp_path / "run").rename(moved)
    monkeypatch.chdir(tmp_path)
    assert main(["--resume", "elsewhere/moved", "--trust"]) == 0  # a run that was moved is unknown
    assert_same_run(moved, finished.folder)


def test_a_function_without_a_path_runs_and_a_resume_needs_it_or_another(
    finished: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tmp_path / "first", tmp_path / "second"]
    anonymous = lambda problems, completions: reward_functions.boxed(problems, completions)  # noqa: E731 -- the point
    for run in runs:
        stop_at_update(monkeypatch, 3)
        with pytest.warns(UserWarning, match=r"--reward MODULE\.NAME"), pytest.raises(StopHereError):
            tiny(run, reward=anonymous)
        monkeypatch.undo()
        assert settings(run)["reward"] == {"name": f"<function {__name__}.{anonymous.__qualname__}>"}

    assert main(["--resume", str(runs[0])]) == 2
    said = capsys.readouterr().err
    assert "--reward: the run began with a Python object that config.yaml can't name, <function " in said
    assert "give --reward MODULE.NAME, or resume from Python: train(resume=..., reward=...)" in said
    with pytest.raises(UsageError, match="--reward: the run began with a Python object"):
        train(resume=runs[0])

    assert main(["--resume", str(runs[0]), "--reward", "reward_functions.boxed"]) == 0
    with pytest.warns(UserWarning, match="has no import path"):
        train(resume=runs[1], reward=anonymous)
    for run in runs:
        assert_same_run(run, finished.folder)


def test_a_class_and_an_object_are_what_their_name_and_fields_are(finished: TrainResult, tmp_path: Path) -> None:
    """And a run of importable parts alone begins without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*import path")
        by_class = tiny(tmp_path / "class", algo={"name": DAPO, **TINY["algo"]}, loop=LoopConfig(**TINY["loop"]))
    assert settings(by_class.folder)["algo"]["name"] == "rloop_lightning.algorithms.dapo.DAPO"
    preset = {"weight_decay": 0.01, "updates_per_step": 2}
    with pytest.warns(UserWarning, match=r"algo: <object of \S+\.DAPO> has no import path"):
        by_object = tiny(tmp_path / "object", algo=DAPO(**{**TINY["algo"], **preset}))
    for result in (by_class, by_object):
        assert_same_run(result.folder, finished.folder)


def test_a_class_that_a_function_defines_takes_fields(tmp_path: Path) -> None:
    class Halved(GRPO):
        """Half of GRPO's advantages."""

        def __init__(self, *, part: float = 1.0, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.part = part

        def advantages(self, rewards: torch.Tensor) -> torch.Tensor:
            seen.append(self.part)
            return self.part * super().advantages(rewards)

    seen: list[float] = []
    with pytest.warns(UserWarning, match="algo: <object of "):
        tiny(tmp_path / "run", algo={"name": Halved, "part": 0.5, "updates_per_step": 1}, consolidate=None)
    assert set(seen) == {0.5}
    assert settings(tmp_path / "run")["consolidate"]["name"] == "none"


def test_the_preset_applies_without_a_policy_and_the_defaults_of_the_classes_with_one(tmp_path: Path) -> None:
    algo = {"name": "dapo", "updates_per_step": 200}
    for policy, expected in (
        (None, "--loop.problems_per_step 32 exceeds the 9 training problems; give at most 9, or leave it out"),
        ("countdown", "--algo.updates_per_step 200 exceeds the 144 rollouts"),  # all 9 problems x 16 rollouts
    ):
        with pytest.raises(UsageError) as caught:
            train(algo=algo, policy=policy, data=ROWS, reward=reward_functions.boxed, out=tmp_path / "run")
        assert expected in str(caught.value)


def test_a_model_a_dataset_and_a_function_are_enough(tmp_path: Path) -> None:
    """The short call of the README, with a small model and few steps."""
    result = train(
        algo="dapo",
        consolidate="rft",
        policy=str(embedded_model_path()),
        data={"name": datasets.Dataset.from_list(ROWS), "template": "{problem}", "instruction": ""},
        reward=reward_functions.boxed,
        loop={"rounds": 2, "explore_steps": 1, "problems_per_step": 4, "rollouts_per_problem": 4},
        filter={"enabled": False},
        out=tmp_path / "run",
    )
    assert list(result.results)[-1] == result.handed_over == "round 2 consolidated"
    assert settings(result.folder)["algo"]["lr"] == DAPO().lr
    assert settings(result.folder)["data"]["eval"] is None


def test_rows_that_are_made_one_by_one_are_no_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data: can't take <generator object .*; expected .* rows \(a list of dicts"):
        train(data=(row for row in ROWS), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        train(
            algo={"name": "dapo", "lr": -1.0, "clip": 3},
            engine=3,
            data=[],
            reward={"name": "reward_functions.boxed", "success_threshold": "high"},
            consolidate={"name": RFT(), "lr": 1e-4},
            loop={"rounds": 0},
            filter=["enabled"],
            trainer={"callbacks": [object()], "max_epochs": 3},
            eval={"samples": 2},
            out=tmp_path / "a" / "run",
        )
    said = str(caught.value)
    assert "engine: can't take 3; expected a short name, an import path, or a RolloutEngine or its class" in said
    assert "data: can't take []; expected a short name, an import path, rows (a list of dicts, or a" in said
    assert "consolidate: give lr to RFT where you make it" in said
    assert "filter: expected a dict of its fields, got ['enabled']" in said
    assert "trainer.callbacks: config.yaml can't hold [<object object" in said
    assert "--trainer.max_epochs: the loop sets this itself; leave it out" in said
    assert "--algo.clip: the chosen --algo has no such option; take one that has it: --algo minirl" in said
    for flag, value in (("algo.lr", "-1.0"), ("reward.success_threshold", "high"), ("loop.rounds", "0")):
        assert re.search(rf"^--{re.escape(flag)}\b.* got '?{value}'?$", said, flags=re.MULTILINE)
    assert "--eval.k must lie between 1 and --eval.samples (2)" in said
    assert list(tmp_path.iterdir()) == []


def test_rows_that_a_run_would_refuse_leave_nothing_behind(tmp_path: Path) -> None:
    for rows, message in (
        ([{"problem": "?", "answer": ""}], "data/train.jsonl: no gold answer can be read for train.jsonl:1"),
        ([{"text": "?"}], "without a field 'problem'"),
        ([{"problem": "?", "answer": {1}}], "data: train[0] can't be written as JSON"),
    ):
        with pytest.raises(UsageError) as caught:
            tiny(tmp_path / "run", data=rows)
        assert message in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def test_rows_never_replace_what_is_there(finished: TrainResult, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("mine")
    with pytest.raises(UsageError, match=f"--out {tmp_path} is not empty, it contains data; "):
        tiny(tmp_path)
    assert (tmp_path / "data" / "train.jsonl").read_text() == "mine"
    with pytest.raises(UsageError, match="already contains a run"):
        tiny(finished.folder)
    with pytest.raises(UsageError, match="leave data out"):
        train(resume=finished.folder, data=ROWS)
    with pytest.raises(UsageError, match=f"--out: the run of --resume {finished.folder} goes on where it is"):
        train(resume=finished.folder, out=tmp_path)
    assert len((finished.folder / "data" / "train.jsonl").read_text().splitlines()) == 8


def test_a_changed_setting_is_refused_on_resume_and_a_complete_run_is_read_again(finished: TrainResult) -> None:
    with pytest.raises(UsageError, match=r"--eval\.samples was 2 when the run started and is 3 now"):
        train(resume=finished.folder, eval={"samples": 3})
    again = train(resume=finished.folder, loop={"select": "explored"}, trainer=TINY["trainer"])
    assert again.handed_over == "round 1 explored"
    assert again.budget == finished.budget
    train(resume=finished.folder, loop={"select": "last"})  # as the other tests know it


def test_a_fault_of_the_reward_is_an_exception(tmp_path: Path) -> None:
    with pytest.raises(RunFault, match=r"--reward reward_functions.too_few: the function must return one number"):
        tiny(tmp_path / "run", reward="reward_functions.too_few")


def test_ctrl_c_saves_the_step_and_raises_keyboard_interrupt(finished: TrainResult, tmp_path: Path) -> None:
    calls = []

    def interrupting(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
        if (tmp_path / "run" / "round-0" / "explore").exists() and not calls:  # the first rollout step
            calls.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return reward_functions.boxed(problems, completions)

    with (
        pytest.warns(UserWarning, match="path"),
        pytest.raises(KeyboardInterrupt, match=r"; resume with train\(resume='"),
    ):
        tiny(tmp_path / "run", reward=interrupting)
    assert len(list((tmp_path / "run" / "round-0" / "explore" / "checkpoints").glob("*.ckpt"))) == 1
    assert main(["--resume", str(tmp_path / "run"), "--reward", "reward_functions.boxed"]) == 0
    assert_same_run(tmp_path / "run", finished.folder)


@pytest.mark.parametrize("policy", [{"lora": {"rank": 3}}, PolicyConfig(lora=LoraSettings(rank=3))])
def test_a_group_of_settings_inside_of_a_group(policy: Any, tmp_path: Path) -> None:
    tiny(tmp_path / "run", policy=policy, consolidate=None)
    assert json.loads((tmp_path / "run/final/adapter_config.json").read_text())["r"] == 3


def test_every_error_of_a_group_inside_of_a_group_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        tiny(tmp_path / "run", policy={"lora": {"rank": -3, "rnk": 3, "dropout": 0.1}})
    said = str(error.value)
    assert "--policy.lora.rank: expected an integer >= 0, got -3" in said
    assert "--policy.lora.rnk: no such option; did you mean --policy.lora.rank?" in said
    assert "--policy.lora.dropout 0.1: must be 0, because" in said
