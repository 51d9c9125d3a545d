"""`rloop-data check`, and problem sets on the command line of `rloop-fit`, up to a round on a tiny random model."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from bad_models import make_good_model
from problem_files import ROWS, byte_tokenizer, write_rows
from shared_data import shared
from tiny_run import TinyRun

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.data import main
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.main import main as rloop_fit
from rloop_lightning.data.files import ProblemFiles
from rloop_lightning.data.hub import HubProblems
from rloop_lightning.data.presets import PRESETS
from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import Problem


class AnyAnswer(Reward):
    """0 for every completion; reads every gold answer."""

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [0.0] * len(texts)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers with a byte-level tokenizer that has a chat template."""
    folder = tmp_path_factory.mktemp("model")
    make_good_model(folder)
    return folder


def check(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["check", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_check_takes_the_reward_of_the_set_or_a_reward_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(capsys, "countdown", "--data.train_size=4")[0] == 0
    data = write_rows(tmp_path / "golds.jsonl", [{"id": "a", "problem": "1+1?", "answer": "2"}])
    code, _, err = check(capsys, data, "--reward", "countdown")
    assert code == 2
    assert "metadata `numbers`" in err
    for flags, told in (
        (["--reward", "weighted"], "--reward weighted: "),
        (["--reward.extract", "box"], "--reward.extract: give --reward NAME alone"),
    ):
        code, _, err = check(capsys, data, *flags)
        assert code == 2
        assert told in err
        assert "rloop-reward check takes its fields" in err


def test_check_prints_counts_lengths_duplicates_overlap_and_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ROWS, {"id": "d", "problem": "what is 1+1", "answer": "2"}, {"id": "e", "problem": "12345", "answer": "3"}]
    rows += [{"id": "f", "problem": "never shown", "answer": "1"}]
    train, test = write_rows(tmp_path / "train.jsonl", rows), write_rows(tmp_path / "test.csv", ROWS[1:])
    code, out, err = check(capsys, train, "--data.eval", test)
    assert (code, err) == (0, "")
    assert "train: 6 problems of 6 rows" in out
    assert "repeated problems: 1\n" in out
    assert "test: 2 problems of 2 rows\n" in out
    assert "prompt length, characters: min 5, median 11, p95 28, max 28" in out
    assert "also in train: 2" in out
    assert "--- b, answer: 6\nWas ist 2 · 3, größer als 5?" in out
    assert "12345" in out
    assert "never shown" not in out


def test_check_counts_tokens_and_renders_with_a_models_tokenizer(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_rows(tmp_path / "train.jsonl", [{"problem": "1+1?<|im_end|>", "answer": "2"}])
    flags = ["--data.instruction", "", "--data.system_prompt", "S", "--data.max_prompt_tokens", "5"]
    code, out, _ = check(capsys, train, "--policy.model", tiny_model, *flags)
    prompt = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1+1?<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert code == 0
    assert prompt in out
    tokens = len(byte_tokenizer().encode(prompt, add_special_tokens=False)) - 1 + len("<|im_end|>")  # one is text
    assert (
        f"tokens: min {tokens}, median {tokens}, p95 {tokens}, max {tokens}; 1 over --data.max_prompt_tokens 5" in out
    )


def test_check_names_unreadable_golds_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "x", "question": "1?", "answer": "none"}, {"id": "y", "question": "2?", "answer": "#### 2"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    code, out, err = check(capsys, path, "--data.preset", "gsm8k")
    assert code == 2
    assert "unreadable gold answers: 1 (x)" in out
    assert "--- y, answer: 2" in out
    assert f"rloop-data: error: --data {path}: no gold answer can be read for x;" in err
    assert check(capsys, path, "--data.preset", "gsm8k", "--data.skip_unreadable", "true")[0] == 0


def test_check_asks_the_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "a.jsonl")
    code, _, err = check(capsys, path, "--reward", "countdown")
    assert code == 2
    assert "rloop-data: error: --reward CountdownReward: train: a: metadata `numbers` must list" in err
    assert "or skip them with --data.skip_unreadable true" in err
    code, out, err = check(capsys, path, "--reward", "countdown", "--data.skip_unreadable", "true")
    assert (code, err) == (0, "")
    assert "the reward can't read the gold answer of: 3 (a, b, c)" in out


def test_check_of_wrong_input_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file or folder: nope.jsonl" in check(capsys, "nope.jsonl")[2]
    assert "or a file, a folder or organisation/name" in check(capsys, "nope")[2]
    (tmp_path / "a.jsonl").write_text('{"problem"\n')
    code, _, err = check(capsys, tmp_path / "a.jsonl")
    assert code == 2
    assert "a.jsonl:1: not valid JSON" in err
    assert main(["check"]) == main(["chekc", "x"]) == 2
    capsys.readouterr()
    code, _, err = check(
        capsys, tmp_path / "a.jsonl", "--data.prest", "x", "--data.validation_size=a", "--data.max_prompt_tokens=0"
    )
    assert code == 2
    assert err.splitlines() == [
        "rloop-data: error: --data.prest: no such option; did you mean --data.preset?",
        "rloop-data: error: --data.validation_size: expected an integer >= 0 or null, got 'a'",
        "rloop-data: error: --data.max_prompt_tokens: expected an integer > 0 or null, got 0",
    ]


def test_check_lets_no_control_character_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x07\u202e"
    rows = [{"id": f"i{evil}", "problem": f"p{evil}", "answer": f"a{evil}"}, {"id": evil, "problem": "q", "answer": ""}]
    _, out, err = check(capsys, write_rows(tmp_path / "a.jsonl", rows))
    assert not set("\x1b\x07\u202e") & set(out + err)
    assert "p\\x1b[2J" in out


def test_check_shows_what_a_run_would_hold_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": n, "problem": f"{n}?", "answer": n} for n in range(50)]
    code, out, _ = check(capsys, write_rows(tmp_path / "a.jsonl", rows))
    assert code == 0
    assert "train: 42 problems of 50 rows\n" in out
    assert "validation: 8 problems, held out of train (--data.validation_size)\n" in out


def test_check_of_a_built_in_set(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, "countdown", "--data.train_size", "5")
    assert code == 0
    assert "train: 5 problems" in out


def test_check_of_the_shared_sets(capsys: pytest.CaptureFixture[str]) -> None:
    files = [shared("math_train.jsonl"), "--data.preset", "math", "--data.eval", shared("math500.jsonl")]
    code, out, err = check(capsys, *files, "--reward", "cli.test_data.AnyAnswer")
    assert (code, err) == (0, "")
    assert "train: 7,500 problems of 7,500 rows" in out
    assert "also in train: 0" in out


def parse(*arguments: str | Path) -> RLoopCLI:
    return RLoopCLI([str(argument) for argument in arguments])


def test_a_file_a_folder_and_a_hub_name_are_problem_sets(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl")
    for name in (path, tmp_path):
        data = parse("--data", name, "--data.preset=math").parts.data
        assert isinstance(data, ProblemFiles)
        assert len(data.train()) == 3
    data = parse("--data=openai/gsm8k", "--data.config=main", "--data.revision", "v1").parts.data
    assert isinstance(data, HubProblems)
    assert str(data.name) == "openai/gsm8k@v1:main"
    assert str(parse("--data", "openai/gsm8k:main:test").parts.data.name) == "openai/gsm8k:main:test"
    assert isinstance(parse("--data", "files", "--data.path", path).parts.data, ProblemFiles)


@pytest.mark.parametrize("form", ["{path}", "{{name: {path}}}", "{{name: files, path: {path}}}"])
def test_a_settings_file_names_a_problem_file(tmp_path: Path, form: str) -> None:
    path, config = write_rows(tmp_path / "train.jsonl"), tmp_path / "c.yaml"
    config.write_text("data: " + form.format(path=path))
    assert parse("--config", config).parts.data.path == str(path)
    other = write_rows(tmp_path / "other.csv")
    assert parse("--config", config, "--data", other).parts.data.path == str(other)


def test_print_config_keeps_the_problem_file_and_its_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "train.jsonl")
    flags = ["--data.eval", f"{{held: {path}}}", "--data.max_prompt_tokens", "300", "--data.template", "{problem}"]
    with pytest.raises(SystemExit):
        parse("--data", path, *flags, "--print_config")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    data = parse("--config", tmp_path / "printed.yaml").parts.data
    assert (data.path, data.max_prompt_tokens, data.template) == (str(path), 300, "{problem}")
    assert list(data.evaluation()) == ["held"]


def test_wrong_sets_are_named_with_all_other_faults_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        parse("--data", tmp_path / "nope.jsonl", "--data.preset", "gsm", "--loop.rounds", "0")
    for expected in ("--data: no such file", "did you mean gsm8k?", "--loop.rounds: expected an integer > 0"):
        assert expected in str(caught.value)
    (tmp_path / "a.jsonl").write_text('{"problem": "x"}\n{')
    settings = parse(
        "--data", tmp_path / "a.jsonl", "--policy.model", "is/not-there", "--reward", "cli.test_data.AnyAnswer"
    )
    with pytest.raises(UsageError) as caught:
        settings.prepare()
    for expected in ("without a field 'answer'", "a.jsonl:2: not valid JSON"):
        assert expected in str(caught.value)


def test_a_reward_that_reads_no_gold_of_a_set_names_a_few_only(tmp_path: Path) -> None:
    rows = [{"id": f"n{n}", "problem": f"{n}?", "answer": "x"} for n in range(100)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    settings = parse("--data", data, "--data.validation_size=0", "--reward", "countdown", "--out", tmp_path / "run")
    with pytest.raises(UsageError) as caught:
        settings.prepare()
    assert "--reward CountdownReward: train: n0: the answer must be an integer" in str(caught.value)
    assert "95 more messages like these" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 12


def fit(tmp_path: Path, model: Path, *arguments: str | Path) -> int:
    tiny = TinyRun.written(
        tmp_path,
        data={"name": "countdown"},
        engine={"max_new_tokens": 8},
        reward={"name": "cli.test_data.AnyAnswer"},
        loop={"explore_steps": 2, "problems_per_step": 2, "rollouts_per_problem": 2},
        eval={"sets": None},
    )
    fixed = ["--config", tiny.config, "--policy.model", model, "--trainer.accelerator=cpu"]
    return rloop_fit([str(argument) for argument in [*fixed, *arguments]])


@pytest.mark.parametrize(("name", "preset"), [("gsm8k_train.jsonl", "gsm8k"), ("math_train.jsonl", "math")])
def test_a_round_on_a_shared_set_with_prompts_rendered_right_in_the_log(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture, name: str, preset: str
) -> None:
    held_out = {"gsm8k": "gsm8k_test.jsonl", "math": "math500.jsonl"}[preset]
    caplog.set_level(logging.INFO, logger="rloop_lightning")
    data = ["--data", shared(name), "--data.preset", preset, "--data.eval", shared(held_out)]
    limit = ["--data.max_prompt_tokens", "600", "--data.system_prompt", "You solve problems."]
    reward = ["--reward", "math", "--data.skip_unreadable", "true"]
    out = tmp_path / "run"
    assert fit(tmp_path, tiny_model, *data, *limit, *reward, "--out", out, "--debug") == 0
    left_out = [record.message for record in caplog.records if "the reward can't read" in record.message]
    assert left_out == []  # the reward reads every gold answer of both sets
    (prompt,) = [record.message for record in caplog.records if record.message.startswith("first prompt: ")]
    first = ProblemFiles(str(shared(name)), preset=preset).train()[0].prompt
    assert prompt == (
        "first prompt: <|im_start|>system\nYou solve problems.<|im_end|>\n<|im_start|>user\n"
        f"{first}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    (sets,) = [record.message for record in caplog.records if record.message.startswith("problems: ")]
    assert "left out, longer than --data.max_prompt_tokens" in sets
    assert "0 also in train" in sets
    assert (out / "final" / "config.json").is_file()


def test_a_resumed_run_reads_the_same_set_and_refuses_another(tmp_path: Path, tiny_model: Path) -> None:
    train, other = write_rows(tmp_path / "train.jsonl"), write_rows(tmp_path / "other.jsonl")
    out = tmp_path / "run"
    assert fit(tmp_path, tiny_model, "--data", train, "--data.eval", other, "--out", out, "--debug") == 0
    saved = yaml.safe_load((out / "config.yaml").read_text())["data"]
    assert (saved["name"], saved["path"], saved["eval"]) == ("files", str(train), str(other))
    assert rloop_fit(["--resume", str(out), "--debug"]) == 0
    assert rloop_fit(["--resume", str(out), "--data", str(other)]) == 2


def test_a_limit_that_leaves_too_few_problems_is_an_error_that_names_it(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_rows(tmp_path / "train.jsonl")
    template = ["--data.template", "{problem}", "--data.instruction", "", "--out", tmp_path / "run"]
    assert fit(tmp_path, tiny_model, "--data", train, "--data.max_prompt_tokens=20", *template) == 2
    assert "--loop.problems_per_step 2 exceeds the 1 training problems" in capsys.readouterr().err
    assert fit(tmp_path, tiny_model, "--data", train, "--data.max_prompt_tokens=2", *template) == 2
    assert "none of the 3 problems of train is that short" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_example_of_docs_data_runs(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for name, rows in zip(("train", "test"), re.findall(r"```jsonl\n(.*?)```", page, re.DOTALL), strict=True):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    checked, trained = (shlex.split(command.replace("\\\n", " ")) for command in commands)
    assert checked.pop(0) == "rloop-data"
    assert main(checked) == 0
    out = capsys.readouterr().out
    assert "train: 3 problems of 3 rows" in out
    assert "also in train: 1" in out
    assert trained.pop(0) == "rloop-fit"
    values = {"MODEL": str(tiny_model), "512": "16"}
    assert fit(tmp_path, tiny_model, *(values.get(word, word) for word in trained), "--out", "run") == 0


def test_docs_data_has_a_row_for_every_preset() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [preset for preset in PRESETS if f"\n| `{preset}`" not in page] == []


def test_check_shows_how_every_gold_is_read_and_what_it_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golds = ["18 dollars", "1, 2", "x", "even", "3,5", "1 2", "1/2", "7", "[0,1)"]
    rows = [{"id": f"p{n}", "problem": f"{n}?", "answer": gold} for n, gold in enumerate(golds)]
    code, out, err = check(capsys, write_rows(tmp_path / "a.jsonl", rows))
    assert code == 2
    assert "--reward MathReward: train: p5: the reward can't read the gold answer '1 2'" in err
    for line in (
        "  gold answers as the reward reads them: 2 integer, 1 list, ",
        "    p0: '18 dollars' is read as 18 dollar (integer); the unit dollar is not required\n",
        "    p1: '1, 2' is read as the list 1, 2 (list); a list of several answers\n",
        "    p2: 'x' is read as x (expression); a single letter\n",
        "    p3: 'even' is read as the words 'even' (text); text, compared word for word\n",
        "    p4: '3,5' is read as 3.5 or the list 3, 5 (decimal); can be read in several ways\n",
        "    p5: '1 2' is read as unreadable; can't be read: numbers side by side\n",
        "    p6: '1/2' is read as 1/2 (fraction)\n",
        "    p7: '7' is read as 7 (integer)\n",
        "  suspicious gold answers: 6\n",
        "\nanswers that the reward accepts and refuses, for 5 of train:\n",
    ):
        assert line in out
    samples = out.partition("answers that the reward accepts")[2].splitlines()
    assert samples[1] == "  p0, gold answer '18 dollars'"
    assert samples[2].startswith("    accepted: '18 dollars', '18', '18.0'")
    assert "'19' (not equal), '-18' (not equal)" in samples[3]
    assert len(samples) == 1 + 3 * 5


def test_check_of_a_large_set_sums_up_and_shows_what_is_suspicious(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"p{n}", "problem": f"{n}?", "answer": f"{n} cm" if n % 2 else str(n)} for n in range(100)]
    rows[40]["answer"] = "no"
    path = write_rows(tmp_path / "a.jsonl", rows)
    code, out, _ = check(capsys, path, "--data.validation_size", "0")
    assert code == 0
    assert "gold answers as the reward reads them: 99 integer, 1 text\n" in out
    assert (
        "suspicious gold answers: 51\n"
        "    p40: 'no' is read as the words 'no' (text); text, compared word for word\n"
        "    p1: '1 cm' is read as 1 cm (integer); the unit cm is not required\n"
    ) in out
    assert out.count(" is read as ") == 20
    assert "    and 31 more; --limit N shows N gold answers\n" in out
    code, out, _ = check(capsys, path, "--data.validation_size", "0", "--limit", "4")
    assert re.findall(r"(p\d+): '[^']*' is read as", out)[:4] == ["p0", "p25", "p50", "p75"]


def test_check_tells_of_alternatives_conversations_and_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
    ]
    rows = [{"id": "c", "prompt": turns, "answer": ["1", "2"]}, {"id": "d", "prompt": "e?", "answer": ["3"]}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    code, out, err = check(capsys, path)
    assert code == 2
    assert "unreadable gold answers: 1 (c: a list of 2)" in out
    assert "c: set --data.answer_lists alternatives if each answer of a list is right, or parts if all of" in err
    code, out, err = check(capsys, path, "--data.answer_lists", "alternatives")
    assert (code, err) == (0, "")
    assert "gold answers that are lists: 1, read as alternatives (--data.answer_lists)" in out
    assert "conversations that go on after the problem, replies left out: 1" in out
    assert "problems with alternatives, each of which is right: 1" in out
    assert "--- c, answer: 1 or 2\n[system] S\na?\n" in out
    assert "  c, gold answer '1' or '2'\n    accepted: '1', " in out
    code, out, _ = check(capsys, path, "--data.answer_lists", "parts")
    assert code == 0
    assert "    c: '1, 2' is read as the list 1, 2 (list); a list of several answers" in out


def test_check_of_a_reward_that_reads_no_golds_shows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, write_rows(tmp_path / "a.jsonl"), "--reward", "cli.test_data.AnyAnswer")
    assert code == 0
    assert "gold answers as" not in out
    assert "answers that the reward accepts" not in out
