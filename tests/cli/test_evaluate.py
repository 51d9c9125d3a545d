"""`rloop-eval`: policies of runs and of folders, on sets of runs and on files, from arguments to files on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from tiny_run import TinyRun

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.eval_help import eval_help
from rloop_lightning.cli.evaluate import main
from rloop_lightning.cli.main import main as fit
from rloop_lightning.evaluation.record import read_record
from rloop_lightning.evaluation.record_values import pass_at_k_interval
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.run.state import LoopState

SUMS = "".join(
    f'{{"problem": "{a} {b}={a + b}:", "answer": "{a + b}", "id": "sum-{a}-{b}"}}\n' for a in (2, 3) for b in (4, 5)
)
SMALL = ["--eval.samples=2", "--eval.k=[1,2]", "--engine.max_new_tokens=12", "--data.template={problem}"]


@pytest.fixture(scope="module")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of every policy of the tiny run, with the settings of the run; it is only read."""
    out = tmp_path_factory.mktemp("evaluated") / "all"
    assert main([str(finished), "--policies", "all", "--out", str(out)]) == 0
    return out


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_text(SUMS)
    return path


def records(evaluation: Path) -> dict[str, Path]:
    """By name of the policy."""
    return {str(read_record(path)["policy"][0]): path for path in sorted(evaluation.glob("*/evaluation.parquet"))}


def test_the_policies_of_a_run_give_exactly_what_the_run_measured(finished: Path, evaluated: Path) -> None:
    ours = records(evaluated)
    assert list(ours) == ["base", "round 1 explored", "round 1 consolidated"]
    for which in ("base", "explored", "consolidated"):
        theirs = read_record(finished / "round-0" / "evaluations" / f"{which}.parquet")
        assert read_record(ours[str(theirs["policy"][0])]).equals(theirs)
    results = json.loads((evaluated / "results.json").read_text())
    rows = [row for row in read_metrics(finished / "metrics.csv") if row["phase"] == "evaluate"]
    for row, policy in zip(rows, results["policies"], strict=True):
        metrics = policy["sets"]["test"]["metrics"]
        for name, value in metrics.items():
            assert row[f"eval/test/{name}"] == value, name
        assert {"pass@1", "pass@2", "entropy_nats", "length_tokens"} <= metrics.keys()


def test_problems_that_are_left_out_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"r{n}", "problem": f"{n}+1=", "answer": str(n + 1) if n % 2 else None} for n in range(4)]
    rows.append({"id": "long", "problem": f"{'1+' * 40}1=", "answer": "41"})
    data, out = tmp_path / "mixed.jsonl", tmp_path / "out"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    skip = ["--data.skip_unreadable=true", "--data.max_prompt_tokens=40"]
    assert main(["countdown", "--data", str(data), *SMALL, *skip, "--out", str(out)]) == 0
    told = (
        "countdown: mixed: 2 problems left out, no gold answer can be read",
        "mixed 2, 1 left out, longer than --data.max_prompt_tokens",
    )
    results = (out / "results.md").read_text()
    for note in told:
        assert note in caplog.text
        assert note in results
    (policy,) = json.loads((out / "results.json").read_text())["policies"]
    assert len(policy["notes"]) == 2


def test_problems_that_the_reward_of_a_run_can_not_judge_need_another(
    finished: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(finished), "--data", str(sums), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"the reward is that of the run {finished}; for other problems give another, such as --reward math" in said
    assert main([str(finished), "--data", str(sums), *SMALL, "--reward=math", "--out", str(tmp_path / "out")]) == 0


def test_every_rollout_is_on_disk_with_its_reward(evaluated: Path) -> None:
    for record in records(evaluated).values():
        rows = read_record(record).to_pylist()
        rollouts = pq.read_table(record.parent / "rollouts" / "00-test").to_pylist()
        assert [(one["problem_id"], one["sample"]) for one in rollouts] == [
            (row["problem_id"], sample) for row in rows for sample in range(2)
        ]
        for row in rows:
            own = [one for one in rollouts if one["problem_id"] == row["problem_id"]]
            assert [one["success"] for one in own] == row["right"]
            assert [one["reward"] for one in own] == [float(right) for right in row["right"]]
            assert [len(one["completion_ids"]) for one in own] == row["lengths"]
            assert {(one["policy"], one["set"]) for one in own} == {(row["policy"], "test")}
            assert all(one["text"] and len(one["sampling_logprobs"]) == one["length"] for one in own)


def test_tables_and_json_have_each_figure_with_its_interval(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((evaluated / "results.json").read_text())
    table = (evaluated / "results.md").read_text()
    for policy in results["policies"]:
        record = evaluated / policy["folder"] / "evaluation.parquet"
        expected = pass_at_k_interval([record], "test", k=1)
        found = policy["sets"]["test"]["intervals"]["pass@1"]
        assert (found["estimate"], found["low"], found["high"]) == (expected.estimate, expected.low, expected.high)
        assert found["over"] == "problems"
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {policy['name']} ")]
        assert str(expected) in line
        assert f"{np.mean(read_record(record)['length_mean'].to_numpy()):.1f} [" in line
    assert "2 rollouts per problem, temperature 1, at most 24 new tokens, seed 0." in table
    assert "95% intervals over the problems" in table


def test_by_default_a_run_gives_the_policy_that_it_handed_over(
    finished: Path, evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "final"
    assert main([str(finished), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert (out / "results.md").read_text() in said
    assert f"every rollout are in {out}" in said
    (name, record), *others = records(out).items()
    assert not others
    assert read_record(record).equals(read_record(records(evaluated)[name]))
    assert json.loads((out / "results.json").read_text())["policies"][0]["source"] == str(finished / "final")


def test_adapters_of_a_run_give_exactly_what_the_run_measured(tiny: TinyRun, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters need it")
    run, out = tiny.finished(tmp_path / "run", "--policy.lora.rank=4", "--algo.lr=1e-2"), tmp_path / "out"
    assert main([str(run), "--policies=all", "--out", str(out)]) == 0
    ours = records(out)
    for which in ("base", "explored", "consolidated"):
        theirs = read_record(run / "round-0" / "evaluations" / f"{which}.parquet")
        assert read_record(ours[str(theirs["policy"][0])]).equals(theirs)
    rights = [read_record(path)["right"].to_pylist() for path in ours.values()]
    assert rights[0] != rights[1]


def test_options_override_the_settings_of_the_run(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    changes = ["--eval.samples=3", "--eval.k=[3]", "--eval.sets=[ood]", "--eval.temperature=0.5", "--eval.top_p=0.9"]
    assert main([str(finished), "--out", str(out), *changes, "--eval.max_problems=1", "--seed_everything=5"]) == 0
    (record,) = records(out).values()
    (row,) = read_record(record).to_pylist()
    assert (row["set"], row["samples"], row["temperature"], row["top_p"]) == ("ood", 3, 0.5, 0.9)
    other = tmp_path / "other"
    assert main([str(finished), "--out", str(other), *changes, "--eval.max_problems=1", "--seed_everything=6"]) == 0
    (record,) = records(other).values()
    assert read_record(record)["seed"][0].as_py() != row["seed"]


def test_config_yaml_of_an_evaluation_repeats_it(evaluated: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    policy = finished / "round-0" / "explore" / "policy"
    assert main([str(policy), "--config", str(evaluated / "config.yaml"), "--out", str(out)]) == 0
    (found,) = (read_record(path) for path in records(out).values())
    expected = read_record(records(evaluated)["round 1 explored"])
    same = [name for name in found.column_names if name not in ("policy", "round", "phase", "step")]
    assert found.select(same).equals(expected.select(same))


def test_several_policies_on_several_files(sums: Path, finished: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(SUMS.splitlines()[0])
    out = tmp_path / "out"
    arguments = ["countdown", str(finished), "--data", str(sums), str(more), "--config", str(sums.with_suffix(".yaml"))]
    sums.with_suffix(".yaml").write_text(yaml.safe_dump({"eval": {"sets": ["test"]}, "loop": {"rounds": 7}}))
    assert main([*arguments, *SMALL, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [one["name"] for one in results["policies"]] == ["countdown", f"{finished}: round 1 consolidated"]
    assert [list(one["sets"]) for one in results["policies"]] == [["sums", "more"]] * 2
    table = (out / "results.md").read_text()
    assert "**sums**, 4 problems" in table
    assert "**more**, 1 problem\n" in table
    rollouts = pq.read_table(out / "00-countdown" / "rollouts" / "00-sums")
    assert sorted(set(rollouts["problem_id"].to_pylist())) == ["sum-2-4", "sum-2-5", "sum-3-4", "sum-3-5"]
    assert max(rollouts["length"].to_pylist()) == 12


def test_a_run_takes_other_sets_with_its_own_prompts(sums: Path, tmp_path: Path) -> None:
    data = {"name": "files", "path": str(sums), "template": "{problem}", "validation_size": 1}
    tiny = TinyRun.written(
        tmp_path, data=data, reward={"name": "math"}, eval={"sets": ["validation"]}, loop={"problems_per_step": 2}
    )
    run = tiny.finished(tmp_path / "run")
    other = tmp_path / "other.jsonl"
    other.write_text(SUMS)
    out = tmp_path / "out"
    assert main([str(run), "--data", str(other), "--out", str(out)]) == 0
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["data"]["template"] == "{problem}"
    assert settings["data"]["sets"] == [str(other)]
    assert settings["eval"]["sets"] is None
    assert json.loads((out / "results.json").read_text())["policies"][0]["sets"]["other"]["problems"] == 2


def test_without_an_out_the_evaluation_has_a_folder_of_its_own(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["countdown", "--data", "sums.jsonl", *SMALL]) == 0
    first, second = sorted(path.name for path in (tmp_path / "evaluations").iterdir())
    assert first.endswith("-countdown")
    assert second != first


BAD = {
    "nothing to evaluate on": (["countdown"], ["--data: give the problem sets"]),
    "no set named": (["countdown", "--data", "SUMS", "--eval.sets=[]"], ["--eval.sets: name a set, or leave it out"]),
    "resume of nothing": (["--resume", "nowhere"], ["--resume nowhere: there is no such folder"]),
    "no policy": (["--data", "SUMS"], ["give a policy: rloop-eval POLICY... --data SET..."]),
    "all at once": (
        [
            "nowhere/at/all",
            "countdown",
            "countdown",
            "--data",
            "SUMS",
            "gone.jsonl",
            "--eval.k=[4]",
            "--eval.samples=2",
        ],
        [
            "nowhere/at/all: no such folder",
            "countdown: it is there twice",
            "--data gone: no such file or folder: gone.jsonl",
            "--eval.k must lie between 1 and --eval.samples (2), got [4]",
        ],
    ),
    "options of a training": (
        ["countdown", "--data", "SUMS", "--loop.rounds=3", "--algo", "grpo", "--policy.model=x", "--data.eval=y"],
        [
            "--loop.rounds: no such option",
            "--algo: no such option",
            "--policy.model: give the policy itself",
            "--data.eval: give the sets to --data",
        ],
    ),
    "an adapter of another kind": (
        ["ADAPTER", "--data", "SUMS"],
        ["ADAPTER: adapter_config.json: peft_type must be LORA, the one kind of adapter that is supported, got None"],
    ),
    "an unknown set": (
        ["countdown", "--data", "countdown", "--eval.sets=[tset]"],
        ["--eval.sets: the data has no set 'tset', it has validation, test, ood"],
    ),
    "sets of two kinds": (
        ["countdown", "--data", "SUMS", "countdown"],
        ["--data countdown: it is neither a file nor a data set on the hub, so give it alone"],
    ),
    "two sets of one name": (
        ["countdown", "--data", "SUMS", "sub/sums.jsonl"],
        ["--data: two sets would be named sums; name them, as in --data.sets '{a: "],
    ),
    "a training set by name": (
        ["countdown", "--data", "train.jsonl"],
        ["give train.jsonl another, as in --data.sets '{other: train.jsonl}'"],
    ),
    "too long": (
        ["countdown", "--data", "SUMS", "--engine.max_new_tokens=250"],
        ["4 prompts don't fit countdown's 256 positions together with --engine.max_new_tokens 250"],
    ),
    "all of no run": (
        ["countdown", "--data", "SUMS", "--policies=all"],
        ["--policies all: none of the policies is a run folder"],
    ),
    "a gold answer that the reward can't read": (
        ["countdown", "--data", "SUMS", "--reward", "countdown"],
        ["--reward CountdownReward: sums: sum-2-4:"],
    ),
    "a folder with other files": (["countdown", "--data", "SUMS", "--out", "."], ["--out . is not empty"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_anything_is_loaded(
    case: str, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rloop_lightning.model.source.load_model", lambda *args, **kwargs: pytest.fail("it was loaded"))
    (tmp_path / "ADAPTER").mkdir()
    (tmp_path / "ADAPTER" / "adapter_config.json").write_text("{}")
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments, expected = BAD[case]
    assert main([str(sums) if word == "SUMS" else word for word in arguments]) == 2
    said = capsys.readouterr().err
    for message in expected:
        assert f"rloop-eval: error: {message}" in said or message in said
    assert all(line.startswith("rloop-eval: error: ") for line in said.splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "mine"], "--resume mine: mine/evaluation.json is missing"),
        (["countdown", "--data", "countdown", "--out", "mine"], "--out mine is not empty, it contains config.yaml; "),
        (
            ["countdown", "--config", "mine/config.yaml", "--out", "mine", "--typo", "1"],
            "--out mine is not empty, it contains config.yaml; ",
        ),
    ],
    ids=["resume", "out", "out that is refused"],
)
@pytest.mark.parametrize("locked_before", [False, True])
def test_settings_of_the_user_stay_in_a_folder_without_an_evaluation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    locked_before: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rloop_lightning.model.source.load_model", lambda *args, **kwargs: pytest.fail("it was loaded"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.yaml").write_text("eval: {samples: 2}\n")
    if locked_before:  # by a start that was killed
        (mine / "evaluation.lock").touch()
    before = sorted(mine.iterdir())
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(mine.iterdir()) == before
    assert (mine / "config.yaml").read_text() == "eval: {samples: 2}\n"


def test_a_run_without_a_policy_says_what_to_give(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    state = json.loads((run / "state.json").read_text())
    assert state["selected"]
    (run / "state.json").unlink()
    (run / "state.previous.json").unlink()  # left: the states before the phases, which handed over nothing
    assert main([str(run), "--out", str(tmp_path / "out")]) == 2
    assert "the run has handed over no policy yet; --policies all takes those that it saved" in capsys.readouterr().err
    weights = run / "round-0" / "policy" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert main([str(run), "--policies=all", "--out", str(tmp_path / "out")]) == 2
    assert f"{weights} is damaged (its checksum differs)" in capsys.readouterr().err


def test_code_that_a_run_of_somebody_else_names_is_not_imported(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "their_reward.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "def reward(problems, texts):\n    return [1.0 for _ in texts]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = shutil.copytree(finished, tmp_path / "run")
    state = LoopState.load(run / "state.json")
    settings = {**state.settings, "reward": {"name": "function", "function": "their_reward.reward"}}
    replace(state, settings=settings).save(run / "state.json")
    arguments = [str(run), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "reward.function names their_reward.reward" in said
    assert "an evaluation runs this code; if you trust it, add --trust" in said
    assert main([*arguments, "--reward", "function"]) == 2  # the same class, with the function that the run names
    assert "function names their_reward.reward" in capsys.readouterr().err
    assert (
        main([str(run), "--reward", "countdown", "--out", str(tmp_path / "judged")]) == 0
    )  # which needs no other code
    assert not (tmp_path / "ran").exists()
    assert main([*arguments, "--trust"]) == 0
    (record,) = records(tmp_path / "out").values()
    assert set(read_record(record)["successes"].to_pylist()) == {2}


def test_a_reward_of_the_users_own_is_resumed_and_that_of_others_needs_trust(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_reward.py").write_text("def reward(problems, texts):\n    return [1.0 for _ in texts]\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    arguments = ["countdown", "--data", str(sums), *SMALL, "--reward", "own_reward.reward", "--out", str(out)]
    assert main(arguments) == 0
    (record,) = records(out).values()
    before = record.read_bytes()
    record.unlink()
    assert main(["--resume", str(out)]) == 0
    assert record.read_bytes() == before
    theirs = shutil.copytree(out, tmp_path / "theirs")
    assert main(["--resume", str(theirs)]) == 2
    said = capsys.readouterr().err
    assert f"--resume {theirs}: reward.function names own_reward.reward" in said
    assert "an evaluation runs this code; if you trust it, add --trust" in said
    assert main(["--resume", str(theirs), "--trust"]) == 0


def test_an_evaluation_that_a_kill_left_at_its_start_is_resumed_without_a_question(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    out, left = tmp_path / "out", tmp_path / "left"

    def killed(*_: object) -> None:
        shutil.copytree(out, left)  # an error removes the folder, and a kill does not
        raise Killed

    (tmp_path / "my_reward.py").write_text("def reward(problems, texts):\n    return [1.0 for _ in texts]\n")
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("rloop_lightning.run.evaluation_folder.write_text", killed)  # right after it has its state
        with pytest.raises(Killed):
            main(["countdown", "--data", str(sums), *SMALL, "--reward", "my_reward.reward", "--out", str(out)])
    left.rename(out)
    assert main(["--resume", str(out)]) == 0
    assert records(out)


def test_the_help_lists_options_that_exist(sums: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, others in (("", ["countdown", "--data", str(sums)]), ("compare", ["compare", "a", "b"])):
        listed = re.findall(r"^  (--[\w.]+)", eval_help(command), re.MULTILINE)
        assert len(listed) > 3
        own = {"--data", "--config", "--trust", "--version", "--resume", "--reward"}
        assert main([*others, *(f"{flag}={{wrong" for flag in listed if flag not in own)]) == 2
        assert "no such option" not in capsys.readouterr().err


def test_debug_stands_alone(sums: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        main(["no/such/policy", "--data", str(sums), "--debug"])
    assert main(["countdown", "--data", str(sums), *SMALL, "--debug", "--out", str(tmp_path / "out")]) == 0


def test_sets_are_named_by_a_mapping(sums: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["countdown", "--data.sets", f"{{a: {sums}, b: {sums}}}", *SMALL, "--out", str(out)]) == 0
    assert list(json.loads((out / "results.json").read_text())["policies"][0]["sets"]) == ["a", "b"]


def test_a_base_policy_that_is_gone_or_changed_is_left_out(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    base = shutil.copytree(embedded_model_path(), tmp_path / "base")
    state = LoopState.load(run / "state.json")
    settings = {**state.settings, "policy": {**state.settings["policy"], "model": str(base)}}
    replace(state, settings=settings, base={"config.json": "0" * 64}).save(run / "state.json")
    small = ["--policies=all", "--eval.max_problems=1", "--engine.max_new_tokens=4"]
    assert main([str(run), *small, "--out", str(tmp_path / "changed")]) == 0
    assert f"{run}: the base policy is left out: {base / 'config.json'} is not what the run began with" in caplog.text
    assert list(records(tmp_path / "changed")) == ["round 1 explored", "round 1 consolidated"]
    shutil.rmtree(base)
    assert main([str(run), *small, "--out", str(tmp_path / "gone")]) == 0
    assert f"the base policy is left out: there is no folder {base}" in caplog.text


def test_evaluation_sets_are_no_training_set(sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "rloop_lightning.data.evaluation_sets.EvaluationSets", f"--data.sets={sums}"]
    assert fit(["--policy.model=countdown", *data, "--out", str(tmp_path / "run")]) == 2
    assert "rloop-fit: error: --data: there is no problem to train on" in capsys.readouterr().err
