"""`rloop-reward check`: the verdicts of a reward on a problem set, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from problem_files import ROWS, write_rows

from rloop_lightning.cli.reward import main


def check(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["check", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_good_reward_exits_with_0_and_shows_its_verdicts_on_every_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = write_rows(tmp_path / "train.jsonl"), write_rows(tmp_path / "test.jsonl", ROWS[:2])
    code, out, err = check(capsys, train, "--data.eval", test)
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        "train: 3 problems",
        "  gold in a box     3 of 3 are successes, mean reward 1 (should pay)",
        "  gold after ####   3 of 3 are successes, mean reward 1 (should pay)",
    ]
    assert "test: 2 problems\n  gold in a box     2 of 2" in out


def test_the_rewards_options_and_settings_files_are_those_of_rloop_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, config = write_rows(tmp_path / "train.jsonl"), tmp_path / "c.yaml"
    config.write_text("reward: {name: math, extract: box}\n")
    for arguments in (["--reward", "math", "--reward.extract", "box"], ["--config", config]):
        code, out, _ = check(capsys, data, *arguments)
        assert code == 0
        assert "bare gold         0 of 3 are successes" in out


def test_a_reward_that_never_pays_always_pays_or_raises_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "train.jsonl")
    code, out, _ = check(capsys, data, "--reward", "cli.test_data.AnyAnswer")
    assert code == 1
    assert "no right completion is a success: 3 (a, b, c)" in out
    assert "WARNING: the reward never pays: no right completion of 3 problems is a success" in out
    code, out, _ = check(capsys, data, "--reward", "cli.test_data.AnyAnswer", "--reward.success_threshold=0")
    assert code == 1
    assert "WARNING: the reward pays wrong answers: an empty completion is a success for 3 of 3 problems" in out
    code, out, _ = check(capsys, data, "--reward", "reward_functions.too_few")
    assert code == 1
    assert "the function must return one number for each of 3 completions" in out


def test_a_limit_takes_problems_evenly_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": n, "problem": f"{n}?", "answer": n} for n in range(20)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    code, out, _ = check(capsys, data, "--limit", "4", "--reward", "cli.test_data.AnyAnswer")
    assert code == 1
    assert "train: 4 problems of 20, evenly spread" in out
    assert "4 (0, 5, 10, 15)" in out


def test_the_built_in_problems_pay(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, "countdown", "--data.train_size=5")
    assert code == 0
    assert "expression in a box  5 of 5 are successes" in out


def test_wrong_input_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "train.jsonl")
    for limit in ("0", "x", "-1"):
        code, _, err = check(capsys, data, f"--limit={limit}")
        assert (code, err) == (2, f"rloop-reward: error: --limit: expected an integer > 0, got {limit}\n")
    code, _, err = check(capsys, tmp_path / "nope.jsonl", "--reward.extract=bax")
    assert code == 2
    assert "rloop-reward: error: --reward.extract: expected auto, box or last, got 'bax'" in err
    assert "no such file or folder" in err
    code, _, err = check(capsys, data, "--reward", "countdown")
    assert code == 2
    assert "--reward CountdownReward: train: a: metadata `numbers` must list" in err
    assert main(["check"]) == main(["chekc", "x"]) == 2
    capsys.readouterr()
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: rloop-reward check PATH_OR_NAME")


def test_it_tells_what_was_extracted_how_it_was_read_and_why_it_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": "h", "problem": "1?", "answer": "1/2"}, {"id": "k", "problem": "2?", "answer": "7 cm"}]
    code, out, _ = check(capsys, write_rows(tmp_path / "train.jsonl", rows), "--reward", "math", "--reward.extract=box")
    assert code == 0
    reasons = out[out.index("  h: gold answer") :].splitlines()
    assert reasons == [
        "  h: gold answer '1/2', read as 1/2",
        "    gold in a box     right: extracted '1/2', read as 1/2; the same text",
        "    gold after ####   wrong: the response has no answer in the places of this mode",
        "    bare gold         wrong: the response has no answer in the places of this mode",
        "    empty             wrong: the response has no answer in the places of this mode",
        "    problem repeated  wrong: the response has no answer in the places of this mode",
        "    truncated gold    wrong: the response has no answer in the places of this mode",
        "    another gold      wrong: extracted '7 cm', read as 7 cm; not equal",
        "  k: gold answer '7 cm', read as 7 cm",
        "    gold in a box     right: extracted '7 cm', read as 7 cm; the same text",
        "    gold after ####   wrong: the response has no answer in the places of this mode",
        "    bare gold         wrong: the response has no answer in the places of this mode",
        "    empty             wrong: the response has no answer in the places of this mode",
        "    problem repeated  wrong: the response has no answer in the places of this mode",
        "    truncated gold    wrong: the response has no answer in the places of this mode",
        "    another gold      wrong: extracted '1/2', read as 1/2; not equal",
    ]


def test_a_problem_with_a_wrong_verdict_is_explained_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": n, "problem": f"{n}?", "answer": str(n)} for n in range(20)]
    rows[13]["answer"] = "x" * 500  # longer than an answer may be
    data = write_rows(tmp_path / "train.jsonl", rows)
    code, out, _ = check(capsys, data, "--reward", "math", "--reward.max_characters", "100", "--data.validation_size=0")
    assert "no right completion is a success: 1 (13)" in out
    assert "  13: gold answer 'xxx" in out
    assert "wrong: the answer is longer than 100 characters" in out
    assert out.index("  13: gold answer") < out.index("  0: gold answer")
    assert code == 0
