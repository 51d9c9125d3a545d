"""The comparison of runs: arms by settings, intervals over seeds, paired differences and their verdicts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from reported import training_rows, with_seed, write_run

from rloop_lightning.evaluation.statistics import difference, interval
from rloop_lightning.run.report.compared import ComparedArms, ComparedRun, in_arms
from rloop_lightning.run.report.comparison_page import comparison_page, write_comparison_page
from rloop_lightning.run.report.comparison_pictures import mean_curves
from rloop_lightning.run.report.page import Page
from rloop_lightning.run.report.pictures import Lines, Series
from rloop_lightning.run.report.stored import ReportedRun, read_run
from rloop_lightning.run.report.tables import Table
from rloop_lightning.run.timeline import END, Curve, Timeline

LOW = [[1] * 20, [1] * 19 + [2], [1] * 20]  # successes of 8 rollouts, three seeds
HIGH = [[4] * 20, [4] * 19 + [5], [4] * 20]


def make(out: Path, successes: Sequence[int], seed: int, consolidation: str = "none", **settings: dict) -> ReportedRun:
    last = "round 1 explored" if consolidation == "none" else "round 1 consolidated"
    counts = {"base": [1] * 20, "round 1 explored": [2] * 20, last: successes}
    rows = training_rows(rollout__reward_mean=np.linspace(0.1, 0.1 + seed, 10).tolist())
    write_run(out, successes=counts, rows=rows, consolidate={"name": consolidation}, **settings)
    return read_run(with_seed(out, seed))


@pytest.fixture
def runs(tmp_path: Path) -> list[ReportedRun]:
    plain = [make(tmp_path / f"plain-{seed}", LOW[seed], seed) for seed in (0, 1, 2)]
    return plain + [make(tmp_path / f"rloop-{seed}", HIGH[seed], seed, "rft") for seed in (0, 1, 2)]


def table(page: Page, id: str) -> Table:
    (found,) = [one for section in page.sections for one in section.tables if one.id == id]
    return found


def test_arms_are_runs_of_equal_settings_but_for_the_seed(runs: list[ReportedRun]) -> None:
    arms = in_arms([runs[3], runs[0], runs[4], runs[1]]).arms
    assert [(arm.name, list(arm.runs)) for arm in arms] == [("dapo + rft", [0, 1]), ("dapo", [0, 1])]
    assert [policy.name for policy in arms[0].final.values()] == ["round 1 consolidated"] * 2
    assert [policy.name for policy in arms[0].explored.values()] == ["round 1 explored"] * 2


def test_arms_of_one_method_are_named_by_the_settings_that_differ(tmp_path: Path) -> None:
    runs = [make(tmp_path / f"{lr}", LOW[0], 0, algo={"lr": lr}) for lr in (0.1, 0.2)]
    comparison = in_arms(runs)
    assert [arm.name for arm in comparison.arms] == ["dapo, algo.lr 0.1", "dapo, algo.lr 0.2"]
    assert comparison.differing_settings() == {"algo.lr": ["0.1", "0.2"]}


def test_settings_that_differ_late_make_arms_and_are_shown_where_they_differ(tmp_path: Path) -> None:
    long = "Please reason step by step. " * 6
    runs = [make(tmp_path / end, LOW[0], 0, data={"instruction": f"{long}{end}"}) for end in "AB"]
    comparison = in_arms(runs)
    assert len(comparison.arms) == 2
    assert comparison.differing_settings() == {
        "data.instruction": ["... eason step by step. A", "... eason step by step. B"]
    }


def test_a_seed_twice_in_an_arm_is_refused(runs: list[ReportedRun]) -> None:
    with pytest.raises(ValueError, match="are both seed 0 of dapo; leave one out"):
        _ = in_arms([runs[0], runs[0]]).arms
    given = ComparedArms([ComparedRun(runs[0], "a", 0), ComparedRun(runs[0], "b", 0)])
    assert [arm.name for arm in given.arms] == ["a", "b"]


def test_intervals_are_over_seeds_and_problems_and_differences_paired(runs: list[ReportedRun], tmp_path: Path) -> None:
    page = comparison_page(in_arms(runs), tmp_path / "page.html")
    low, high = np.array(LOW) / 8, np.array(HIGH) / 8
    for line, values in zip(table(page, "final").lines, (low, high), strict=True):
        found = interval(values)
        assert found.over == "seeds and problems"
        assert (line.cells[0].text, line.cells[1].text) == ("0, 1, 2", f"{found.estimate:.3f}")
        assert line.cells[1].remark == f"[{found.low:.3f}, {found.high:.3f}]"
    (line,) = table(page, "final-differences").lines
    found = difference(high, low).interval
    assert (line.name, line.cells[0].text) == ("dapo + rft", "problems and seeds")
    assert line.cells[1].text == f"{found.estimate:+.3f}"
    assert line.cells[1].remark == f"[{found.low:+.3f}, {found.high:+.3f}]\nbetter"
    (line,) = table(page, "explored-differences").lines
    assert line.cells[1].remark.endswith("better")
    assert "2 arms with 3 seeds each, countdown on countdown problems: dapo + rft is better than dapo" in page.sentence


def test_a_difference_is_over_the_seeds_of_both_arms(runs: list[ReportedRun], tmp_path: Path) -> None:
    """As in results.md."""
    page = comparison_page(in_arms([*runs[:2], *runs[3:]]), tmp_path / "page.html")
    (line,) = table(page, "final-differences").lines
    told = difference(np.array(HIGH[:2]) / 8, np.array(LOW[:2]) / 8).interval
    assert (line.cells[0].text, line.cells[0].remark) == ("problems and seeds", "2 seeds")
    assert line.cells[1].remark.startswith(f"[{told.low:+.3f}, {told.high:+.3f}]")
    assert f"[{told.low:+.3f}, {told.high:+.3f}]" in page.sentence
    page = comparison_page(in_arms([runs[0], *runs[4:]]), tmp_path / "page.html")
    (line,) = table(page, "final-differences").lines
    assert (line.cells[0].text, line.cells[0].remark) == ("problems", "2 seeds against 1 seed")


def test_a_difference_whose_interval_contains_zero_is_no_verdict(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a", [1, 2, 3, 4] * 5, 0), make(tmp_path / "b", [2, 1, 4, 3] * 5, 0, "rft")]
    page = comparison_page(in_arms(runs), tmp_path / "page.html")
    (line,) = table(page, "final-differences").lines
    assert line.cells[0].text == "problems"
    assert line.cells[1].remark.endswith("\ninconclusive")
    assert (line.cells[1].text, line.cells[1].kind) == ("+0.000", "")
    assert "dapo + rft is not distinguishable from dapo in test pass@1" in page.sentence
    assert "better" not in page.sentence


def test_runs_on_other_problems_are_told_to_be_not_comparable(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a", [1] * 20, 0), make(tmp_path / "b", [1] * 19, 0, "rft")]
    page = comparison_page(in_arms(runs), tmp_path / "page.html")
    (line,) = table(page, "final-differences").lines
    assert [cell.remark for cell in line.cells[1:]] == ["not comparable"] * 2
    assert any("set test: 1 problems are in one of" in note for note in page.notes)


def test_a_page_names_runs_that_are_not_complete_and_given_failures(runs: list[ReportedRun], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    write_comparison_page(in_arms(runs), out, ["dapo seed 2 failed: exit code 1 <b>"])
    text = out.read_text(encoding="utf-8")
    assert "dapo seed 2 failed: exit code 1 &lt;b&gt;" in text
    assert "<td>plain-0</td>" in text
    assert re.search(r"<h1>dapo against dapo \+ rft</h1>", text)
    assert len(text) < 700_000


def test_one_arm_alone_has_no_differences(runs: list[ReportedRun], tmp_path: Path) -> None:
    page = comparison_page(in_arms(runs[:3]), tmp_path / "page.html")
    assert [one.id for section in page.sections for one in section.tables if "differences" in one.id] == []
    assert page.sentence == "1 arm with 3 seeds each, countdown on countdown problems."


def curve(number: int, start: int, steps: Sequence[float], values: Sequence[float]) -> Curve:
    return Curve(number, np.array(steps, float), start + np.array(steps, float), np.array(values, float))


def test_curves_are_averaged_where_all_seeds_have_them() -> None:
    first = [curve(0, 0, [1, 2, 3], [2, 4, 6]), curve(1, 3, [1], [1])]
    second = [curve(0, 0, [2, 3], [0, 2]), curve(1, 3, [1], [2])]
    assert [found.tolist() for found in mean_curves([first, second])] == [[[2, 2], [3, 4]], [[4, 1.5]]]
    assert mean_curves([]) == []


def test_curves_of_rounds_of_different_length_are_averaged_by_round_and_step() -> None:
    """A budget of tokens ends the rounds of the seeds at different steps; a seed may lack a round's metric."""
    first = [curve(0, 0, [1, 2, 3], [1, 2, 3]), curve(2, 5, [1], [1])]
    second = [curve(0, 0, [1, 2], [3, 4]), curve(1, 2, [1, 2], [9, 9]), curve(2, 4, [1, 2], [3, 9])]
    assert [found.tolist() for found in mean_curves([first, second])] == [[[1, 2], [2, 3]], [[5.5, 2]]]


def test_evaluations_of_rounds_of_different_length_are_averaged_by_stage() -> None:
    rows = []
    for lengths, value in (((50, 45), 0.1), ((60, 50), 0.3)):
        of_run = [{"round": 0, "phase": "evaluate", "step": 0, "m": value}]
        for number, length in enumerate(lengths):
            of_run += [{"round": number, "phase": "explore", "step": step} for step in range(1, length + 1)]
            of_run[-length + 49 if length == 60 else -1]["m"] = (
                9.0  # step 50 is inside of one round, the end of another
            )
            of_run.append({"round": number, "phase": "evaluate", "step": 1, "m": value})
        rows.append(of_run)
    curves = [Timeline(of_run).evaluations("m") for of_run in rows]
    assert [curves[0][0].step.tolist(), curves[1][0].step.tolist()] == [[0, END], [0, 50, END]]
    found = np.concatenate(mean_curves(curves))
    np.testing.assert_allclose(found, [[0, 0.2], [55, 0.2], [102.5, 0.2]])


def test_arms_are_overlaid_in_every_picture(runs: list[ReportedRun], tmp_path: Path) -> None:
    page = comparison_page(in_arms(runs), tmp_path / "page.html")
    pictures = {one.id: one for section in page.sections for one in section.pictures}
    assert {"reward", "pass-0-1", "pass-0-8"} <= pictures.keys()
    for picture in pictures.values():
        if isinstance(picture, Lines):
            assert [name for name, _ in picture.legend] == ["dapo", "dapo + rft"]


def test_policies_are_placed_by_pass_at_1_and_pass_at_k(runs: list[ReportedRun], tmp_path: Path) -> None:
    page = comparison_page(in_arms(runs), tmp_path / "page.html")
    assert page.sections[0].id == "trade-off"
    (picture,) = page.sections[0].pictures
    header, rows = picture.table()
    assert header == ["policy", "pass@1", "pass@1, low", "pass@1, high", "pass@8", "pass@8, low", "pass@8, high"]
    assert [row[0] for row in rows] == ["base", "dapo", "dapo + rft, last explored", "dapo + rft"]
    found = interval(np.array(HIGH) / 8)
    assert rows[3][1:4] == pytest.approx([found.estimate, found.low, found.high], rel=1e-3)
    assert [row[4] for row in rows] == [1, 1, 1, 1]  # every problem is solved in 8 tries
    points = picture.data()["points"]
    assert [point["hollow"] for point in points] == [False, False, True, False]
    assert [point["colour"] for point in points] == [-1, 0, 1, 1]
    assert "A hollow mark is the last explored policy" in picture.caption


def test_the_table_of_curves_ends_where_the_last_curve_ends() -> None:
    """A round's end and the next one's beginning are at the same rollout step."""
    first, second = np.array([[0.0, 1.0], [10.0, 2.0]]), np.array([[10.0, 3.0], [20.0, 4.0], [20.0, 5.0]])
    lines = Lines("id", "title", "", "steps", "y", [Series("a", 0, [first, second])])
    assert lines.table()[1] == [[0, 1], [10, 3], [20, 5]]


def test_what_can_not_be_compared_is_not_placed(tmp_path: Path) -> None:
    other = make(tmp_path / "b-1", [1] * 19, 1, "rft")  # on other problems than seed 0
    runs = [make(tmp_path / "a", [1] * 20, 0), make(tmp_path / "b", [1] * 20, 0, "rft"), other]
    page = comparison_page(in_arms(runs), tmp_path / "page.html")
    (picture,) = page.sections[0].pictures
    assert [point.name for point in picture.points if not point.hollow] == ["base", "dapo"]


def test_runs_whose_rewards_judge_differently_are_not_compared(tmp_path: Path) -> None:
    strict, generous = (tmp_path / name for name in ("strict", "generous"))
    write_run(strict, successes={"base": [1] * 20, "round 1 explored": [2] * 20})
    write_run(generous, successes={"base": [7] * 20, "round 1 explored": [8] * 20})
    runs = [read_run(with_seed(out, 0)) for out in (strict, generous)]
    page = comparison_page(in_arms(runs, ["strict", "generous"]), tmp_path / "page.html")
    told = "generous (here) and strict (there): of the same rollouts of the base policy, 140 are successes here and 20"
    assert any(note.startswith(told) for note in page.notes)
    (line,) = table(page, "final-differences").lines
    assert [cell.remark for cell in line.cells[1:]] == ["not comparable"] * 2
    assert "better" not in page.sentence
    (picture,) = page.sections[0].pictures
    assert [point.name for point in picture.points] == ["base", "strict"]


def test_many_arms_are_told_by_their_verdicts(tmp_path: Path) -> None:
    first = make(tmp_path / "first", [3] * 20, 0)
    others = {"high": [6] * 20, "higher": [7] * 20, "same": [3] * 20, "low": [0] * 20}
    runs = [first, *(make(tmp_path / name, counts, 0) for name, counts in others.items())]
    page = comparison_page(in_arms(runs, ["first", *others]), tmp_path / "page.html")
    assert page.sentence == (
        "5 arms with 1 seed each, countdown on countdown problems: better than first in test pass@1: high, higher; "
        "worse than first in test pass@1: low; not distinguishable from first in test pass@1: 1 of 4 arms; "
        "worse than first in test pass@8: low; not distinguishable from first in test pass@8: 3 of 4 arms."
    )
