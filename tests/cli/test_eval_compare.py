"""`rloop-eval compare`: paired differences, and problems gained and lost, between any two records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rloop_lightning.cli.evaluate import main
from rloop_lightning.evaluation.comparison import compare_records
from rloop_lightning.evaluation.record import EvaluatedPolicy, problem_table, write_record
from rloop_lightning.evaluation.statistics import difference, interval
from rloop_lightning.types import Group, Problem, Rollout, SamplingParams


def write(path: Path, policy: str, right: dict[str, Sequence[bool]], name: str = "test") -> Path:
    """A record with these successes by problem id."""
    ids = np.zeros(1, np.int64)

    def rollout(problem: str, success: bool) -> Rollout:
        return Rollout(problem, ids, ids, np.zeros(1, np.float32), "", "stop", float(success), success)

    groups = [
        Group(Problem(problem, "", ""), tuple(rollout(problem, one) for one in found))
        for problem, found in right.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, EvaluatedPolicy(policy, 0, "evaluate", 0), [problem_table(name, groups, SamplingParams(8))])
    return path


A = {"p0": [1, 0, 0, 0], "p1": [0, 0, 0, 0], "p2": [1, 1, 0, 0], "p3": [0, 0, 0, 0], "p4": [0, 0, 1, 0]}
B = {"p0": [0, 0, 0, 0], "p1": [1, 1, 0, 1], "p2": [1, 1, 1, 1], "p3": [0, 0, 0, 0], "p4": [0, 0, 0, 0]}
RIGHT = [{problem: [bool(one) for one in found] for problem, found in right.items()} for right in (A, B)]
RATES = [np.array([np.mean(found) for found in right.values()]) for right in RIGHT]


@pytest.fixture
def sides(tmp_path: Path) -> list[str]:
    return [
        str(write(tmp_path / name / f"{name}.parquet", name, right)) for name, right in zip("ab", RIGHT, strict=True)
    ]


def test_the_difference_is_second_minus_first_paired_by_problem(
    sides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "difference.json"
    assert main(["compare", *sides, "--k", "1,2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    expected = difference(RATES[1], RATES[0])
    assert said.startswith(f"A: a, {sides[0]}\nB: b, {sides[1]}\n")
    assert "**test**, 5 problems" in said
    low, high = expected.interval.low, expected.interval.high
    (line,) = [line for line in said.splitlines() if line.startswith("| pass@1 ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    signed = f"{expected.interval.estimate:+.3f} [{low:+.3f}, {high:+.3f}]"
    assert cells == ["pass@1", str(interval(RATES[0])), str(interval(RATES[1])), signed, "inconclusive"]
    assert "  gained (B only): 1: p1\n  lost (A only): 2: p0, p4\n  both: 1\n  neither: 1\n" in said
    values = json.loads(out.read_text())["sets"]["test"]
    assert [values[name] for name in ("gained", "lost", "both", "neither")] == [["p1"], ["p0", "p4"], ["p2"], ["p3"]]
    found = values["pass@k"]["pass@1"]["second minus first"]
    assert (found["estimate"], found["low"], found["high"], found["verdict"]) == (
        expected.interval.estimate,
        low,
        high,
        "inconclusive",
    )
    # pass@2 by counting pairs: of p0, 3 of the 6 pairs hold its success; of p2, 5 of 6; of p4, 3 of 6.
    assert values["pass@k"]["pass@2"]["first"]["estimate"] == pytest.approx((3 + 0 + 5 + 0 + 3) / 6 / 5)


def test_a_clear_difference_is_told_by_its_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"p{number}" for number in range(40)]
    low = write(tmp_path / "low.parquet", "low", {name: [number % 4 == 0] * 2 for number, name in enumerate(names)})
    high = write(tmp_path / "high.parquet", "high", {name: [number % 4 > 0] * 2 for number, name in enumerate(names)})
    assert main(["compare", str(low), str(high), "--shown", "3"]) == 0
    said = capsys.readouterr().out
    assert "| B is higher |" in said
    assert "  gained (B only): 30: p1, p2, p3 and 27 more\n" in said
    assert main(["compare", str(high), str(low), "--shown", "0"]) == 0
    said = capsys.readouterr().out
    assert "| B is lower |" in said
    assert f"  lost (A only): 30: {', '.join(name for number, name in enumerate(names) if number % 4)}\n" in said


def test_unequal_numbers_of_rollouts_are_compared_on_as_many_of_both(tmp_path: Path) -> None:
    few = write(tmp_path / "few.parquet", "few", {"p0": [False, True], "p1": [False, False]})
    many = write(tmp_path / "many.parquet", "many", {"p0": [False, False, True], "p1": [False, True, True]})
    found = compare_records(few, many, "test")
    assert found.samples == 2
    assert (found.gained, found.lost) == (("p1",), ("p0",))  # p0's third rollout does not count
    assert list(found.differences) == [1]
    assert found.differences[1].interval.estimate == pytest.approx((1 / 3 + 2 / 3) / 2 - 1 / 4)


def test_runs_and_evaluations_are_named_by_their_folders(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    policy = finished / "round-0" / "explore" / "policy"
    assert main([str(policy), "--config", str(finished / "config.yaml"), "--out", str(out)]) == 0
    explored = finished / "round-0" / "evaluations" / "explored.parquet"
    capsys.readouterr()
    assert main(["compare", str(out), str(explored)]) == 0
    said = capsys.readouterr().out
    assert f"A: {policy}, {out}/00-" in said
    assert f"B: round 1 explored, {explored}\n" in said
    assert "+0.000" in said
    assert "gained (B only): 0\n" in said
    assert main(["compare", str(next(out.glob("00-*"))), str(finished)]) == 0
    said = capsys.readouterr().out
    assert f"B: round 1 consolidated, {finished / 'round-0' / 'evaluations' / 'consolidated.parquet'}\n" in said


def test_ids_of_others_are_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "p\x1b[31m\n| x"
    sides = [
        write(tmp_path / f"{n}.parquet", "a\x1b[2J", {hostile: [bool(n)], "q": [True]}, "t\x07|st") for n in (0, 1)
    ]
    assert main(["compare", *map(str, sides)]) == 0
    said = capsys.readouterr().out
    assert "gained (B only): 1: p\\x1b[31m\\n| x\n" in said
    assert not {"\x1b", "\x07"} & set(said)


def test_bad_input_is_told_at_once(
    sides: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["compare", *arguments]) == 2
        said = capsys.readouterr().err
        assert all(line.startswith("rloop-eval: error: ") for line in said.splitlines())
        return said

    assert "give two evaluations, got 1: rloop-eval compare A B" in refused(sides[0])
    said = refused(str(tmp_path / "gone"), sides[0], "--kk=3", "--shown=-1")
    assert "--kk: no such option; did you mean --k?" in said
    assert "--shown: expected an integer >= 0, got -1" in said
    assert f"{tmp_path / 'gone'}: no evaluation there" in said
    assert "--sets: " + sides[0] + " has no set ood, it has test" in refused(*sides, "--sets=ood")
    assert "pass@9 needs 9 rollouts, but problem p0" in refused(*sides, "--k=9")
    assert "the file must end in .json" in refused(*sides, "--out=x.csv")
    other = write(tmp_path / "other.parquet", "c", {"p0": [True] * 4, "p9": [True] * 4})
    said = refused(sides[0], str(other))
    assert "set test: 5 problems are in one of" in said
    assert "evaluate both on the same problems (--data, --eval.max_problems)" in said
    named = write(tmp_path / "named.parquet", "d", RIGHT[0], "ood")
    assert f"no set is in both: {sides[0]} has test, and {named} has ood" in refused(sides[0], str(named))


def test_equal_ids_of_other_problems_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f'{{"problem": "{a}+1", "answer": "{a + 1}"}}\n' for a in range(3))
    small = ["--eval.samples=1", "--eval.k=[1]", "--engine.max_new_tokens=4", "--data.template={problem}"]
    for name, text in (("a", rows), ("b", rows.replace("2+1", "3+1"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sums.jsonl").write_text(text)
        arguments = ["countdown", "--data", str(tmp_path / name / "sums.jsonl"), *small]
        assert main([*arguments, "--out", str(tmp_path / name / "out")]) == 0
    sides = [str(tmp_path / name / "out") for name in "ab"]
    assert main(["compare", *sides]) == 2
    assert "1 problems have the same id in" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "b" / "out" / "00-countdown" / "rollouts")  # not needed to compare
    (tmp_path / "b" / "out" / "00-countdown" / "problems.parquet").unlink()
    assert main(["compare", *sides]) == 0


def test_no_file_of_another_is_overwritten(
    sides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.json"
    for content in ('[{"problem": "1?"}]', "{}", "no JSON", '{"first": 1, "second": 2}'):
        out.write_text(content)
        assert main(["compare", *sides, "--out", str(out)]) == 2
        assert (
            f"--out {out}: it exists and is no comparison of rloop-eval; give another name" in capsys.readouterr().err
        )
        assert out.read_text() == content
    out.unlink()
    assert main(["compare", *sides, "--out", str(out)]) == 0
    assert main(["compare", *sides, "--sets", "test", "--out", str(out)]) == 0  # its own file is renewed
