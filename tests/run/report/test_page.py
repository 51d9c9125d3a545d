"""The report of a run: what it shows, from a command to the file on disk, and that it ends no run."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from killing import Kill
from reported import rollout, training_rows, write_pool, write_run
from tiny_run import TinyRun, resume

from rloop_lightning.evaluation.forgetting import forgetting_rates
from rloop_lightning.evaluation.record_values import pass_at_k_interval
from rloop_lightning.run.report.explorer import explorer
from rloop_lightning.run.report.pool_totals import pool_totals
from rloop_lightning.run.report.run_page import report_page, write_report
from rloop_lightning.run.report.samples import MOST_STEPS, chosen_problems, sample
from rloop_lightning.run.report.stored import read_run
from rloop_lightning.run.state import LoopState


def embedded(page: Path, id: str) -> Any:
    """Data of a page."""
    found = re.search(rf'<script type="application/json" id="{id}">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def headings(page: Path) -> list[str]:
    return re.findall(r"<h2 [^>]*>(.*?)</h2>", page.read_text(encoding="utf-8"))


def test_a_run_ends_with_its_report(finished: Path) -> None:
    page = finished / "report.html"
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 1_000_000
    assert headings(page) == [
        "Policies",
        "Reward and pass@k",
        "Gradient norm and entropy",
        "Similarity",
        "Forgetting",
        "Coverage",
        "Expert sets and pools",
        "Lengths and truncation",
        "Problems and rollouts",
        "Time and tokens",
        "Settings and versions",
        "Warnings",
    ]
    assert "dapo with rft consolidation trained countdown on countdown problems for 1 round of 4 rollout steps" in text
    interval = pass_at_k_interval([finished / "round-0" / "evaluations" / "explored.parquet"], "test", 2)
    assert f"{interval.estimate:.3f} " in text
    assert f"[{interval.low:.3f}, {interval.high:.3f}]" in text
    assert "round 1 consolidated (handed over)" in text
    assert LoopState.load(finished / "state.json").versions["Python"] in text
    assert not re.search(r'(src|href)="(?!#)', text)


def test_the_explorer_has_problems_prompts_and_rollouts_of_the_pool(finished: Path) -> None:
    problems = {one["id"]: one for one in embedded(finished / "report.html", "problem-data")}
    rows = [
        row for path in (finished / "round-0" / "pool").glob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    rollouts, successes = (
        Counter(row["problem_id"] for row in rows if kind or row["success"]) for kind in (True, False)
    )
    assert {name: (one["n"], one["s"]) for name, one in problems.items()} == {
        name: (rollouts[name], successes[name]) for name in rollouts
    }
    stored = {(row["problem_id"], row["rollout_step"] + 1, row["text"], row["length"]) for row in rows}
    for name, one in problems.items():
        numbers = name.removeprefix("countdown-").split("-")
        assert one["prompt"] == f"{' '.join(numbers[:-1])}={numbers[-1]}:"
        assert one["gold"] == numbers[-1]
        for round, step, count, right, shown in one["steps"]:
            assert round == 1
            of_step = [row for row in rows if row["problem_id"] == name and row["rollout_step"] == step - 1]
            assert (count, right) == (len(of_step), sum(row["success"] for row in of_step))
            assert {(name, step, text, length) for _, _, length, _, text in shown} <= stored


def test_a_killed_and_resumed_run_has_the_same_page(tiny: TinyRun, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert tiny.fit_apart(out, tmp_path / "log", Kill("rloop_lightning.run.loop:renew_report", 4)) == -9
    assert resume(out, tmp_path / "log") == 0
    for data in ("pictures", "problem-data"):
        assert embedded(out / "report.html", data) == embedded(finished / "report.html", data)
    assert headings(out / "report.html") == headings(finished / "report.html")


def test_a_failed_report_is_told_and_ends_no_run(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rloop_lightning.run.report.renewed.write_report", fail)
    assert tiny.fit(tmp_path / "run") == 0
    told = "report.html was not written: [Errno 28] No space left on device"
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING].count(told) == 6
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_page_of_a_damaged_run_tells_what_it_lacks(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    shard = next((out / "round-0" / "pool").glob("*.parquet"))
    shard.write_bytes(b"nothing")
    (out / "round-0" / "evaluations" / "explored.parquet").write_bytes(b"nothing")
    (out / "metrics.csv").write_text("round,phase,step,a\n0,explore,1,x\n")
    write_report(read_run(out), out / "report.html")
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "metrics.csv: line 2: &#39;x&#39; in the column a is not a number" in text
    assert f"{shard} is not a shard of a rollout pool, or damaged" in text
    assert "explored.parquet is not the record of an evaluation" in text
    assert "record not readable" in text
    assert headings(out / "report.html") == ["Policies", "Settings and versions", "Warnings"]


def test_a_run_without_anything_yet_has_a_page(tmp_path: Path) -> None:
    LoopState("r").save(tmp_path / "state.json")
    write_report(read_run(tmp_path), tmp_path / "report.html")
    assert "In progress: 0 of 3 phases are complete." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no state\.json there; give the folder of a run"):
        read_run(tmp_path)


def test_validation_is_shown_only_where_a_run_is_judged_by_it(tmp_path: Path) -> None:
    counts = {"base": [1, 2], "round 1 explored": [2, 3]}
    for select, shown in (("last", ["test"]), ("pass@1", ["validation", "test"])):
        out = write_run(tmp_path / select, successes=counts, names=("validation", "test"), loop={"select": select})
        assert read_run(out).sets == shown


def test_the_forgetting_matrix_is_that_of_the_records(finished: Path) -> None:
    values = embedded(finished / "report.html", "pictures")["forgetting-1"]["values"]
    records = [
        finished / "round-0" / "evaluations" / f"{name}.parquet" for name in ("base", "explored", "consolidated")
    ]
    for row, before in enumerate(records):
        for column, after in enumerate(records):
            rate = forgetting_rates(before, after)["test"]
            assert values[row][column] == (None if np.isnan(rate) else pytest.approx(rate, abs=1e-3))


def test_coverage_expert_origins_and_lengths_by_hand(tmp_path: Path) -> None:
    def step(round: int, number: int, **right: int) -> None:
        rollouts = [
            rollout(name, right=place < count, length=3 if place < count else 7)
            for name, count in right.items()
            for place in range(4)
        ]
        write_pool(tmp_path, round, number, rollouts)

    step(0, 1, a=1, b=0)
    step(0, 2, b=2, c=0)
    step(1, 1, a=0, b=0)
    totals = pool_totals(read_run(write_run(tmp_path, successes={"base": [1, 1]})))
    assert totals.coverage == [(1, 2, 1, 1), (2, 3, 2, 2), (3, 3, 2, 0)]  # place, sampled, ever solved, solved last
    assert [counts.tolist() for counts in totals.counts(range(2))] == [[8, 12, 4], [1, 2, 0]]
    assert [curve.tolist() for curve in totals.length_curves(True)] == [[[1, 3], [2, 3]]]
    assert [curve.tolist() for curve in totals.length_curves(False)] == [[[1, 7], [2, 7]], [[3, 7]]]


def test_expert_sets_are_counted_by_step_and_success_rate(finished: Path) -> None:
    picture = embedded(finished / "report.html", "pictures")["origin-1"]
    expert = pq.read_table(finished / "round-0" / "expert.parquet").to_pylist()
    by_step = Counter(row["rollout_step"] + 1 for row in expert)
    columns = np.sum(picture["values"], axis=0).tolist()
    assert picture["columns"] == ["1", "2", "3", "4"]
    assert columns == [by_step[step] for step in range(1, 5)]


def test_a_rare_success_is_among_the_shown_rollouts(tmp_path: Path) -> None:
    for step in range(1, 201):
        write_pool(
            tmp_path, 0, step, [rollout("hard", right=step == 77 and not place, step=step) for place in range(4)]
        )
    totals = pool_totals(read_run(write_run(tmp_path, successes={"base": [1, 1]})))
    (problem,) = explorer(totals, sample(totals), {}).problems
    assert len(problem["steps"]) == MOST_STEPS
    assert [step[:4] for step in problem["steps"] if step[3]] == [[1, 77, 4, 1]]
    assert (problem["n"], problem["s"]) == (800, 1)
    places = [step[1] for step in problem["steps"]]
    assert places == sorted(places)
    assert places[0] < 40
    assert places[-1] > 160


def test_texts_of_a_large_pool_are_read_from_some_of_its_steps(tmp_path: Path) -> None:
    for step in range(1, 21):
        write_pool(tmp_path, 0, step, [rollout(f"p{place}", right=True, step=step) for place in range(3)])
    totals = pool_totals(read_run(write_run(tmp_path, successes={"base": [1, 1]})))
    total = sum(shard.long_bytes for shard in totals.shards)
    samples = sample(totals, most_bytes=total * 11 // 40)
    assert samples.shards_read == 5
    assert {step for visits in samples.visits.values() for _, step in visits} == {1, 6, 11, 15, 20}
    found = explorer(totals, samples, {})
    assert "Rollouts were read from 5 of 20 rollout steps." in found.note
    assert found.problems[0]["n"] == 20


def test_the_explorer_keeps_its_budget_with_problems_of_all_success_rates(tmp_path: Path) -> None:
    rollouts = [
        rollout(f"p{number:02}", right=place < number, text="x" * 2000) for number in range(21) for place in range(20)
    ]
    write_pool(tmp_path, 0, 1, rollouts)
    totals = pool_totals(read_run(write_run(tmp_path, successes={"base": [1, 1]})))
    everything = explorer(totals, sample(totals), {})
    assert len(everything.problems) == 21
    found = explorer(totals, sample(totals), {}, budget=40_000)
    assert len(json.dumps(found.problems)) <= 40_000
    rates = [one["s"] / one["n"] for one in found.problems]
    assert 5 <= len(rates) < 21
    assert (rates[0], max(np.diff(rates)) <= 0.3) == (0.0, True)
    assert f"{len(rates)} of 21 problems" in found.note


def test_problems_are_chosen_over_all_success_rates(tmp_path: Path) -> None:
    write_pool(
        tmp_path, 0, 1, [rollout(f"p{n:03}", right=place < n, step=n) for n in range(101) for place in range(100)]
    )
    totals = pool_totals(read_run(write_run(tmp_path, successes={"base": [1, 1]})))
    assert chosen_problems(totals, most=5) == ["p000", "p020", "p040", "p060", "p080"]


def test_a_long_run_has_bounded_curves(tmp_path: Path) -> None:
    steps = 5000
    rows = training_rows(rollout__reward_mean=np.linspace(0, 1, 2 * steps).tolist())
    page = report_page(read_run(write_run(tmp_path, successes={"base": [1, 2]}, rows=rows)))
    (reward,) = [picture for section in page.sections for picture in section.pictures if picture.id == "reward"]
    curves = [curve for one in reward.data()["series"] for curve in one["curves"]]
    assert {len(curve) for curve in curves} == {1, 250}  # an evaluation, and steps
    assert max(point[0] for curve in curves for point in curve) == 2 * steps


def test_the_tables_show_every_metric_of_a_set_once_with_its_interval(tmp_path: Path) -> None:
    of_base = {
        **{"maj@4": 0.3, "maj@8": 0.5, "maj@8_low": 0.4, "maj@8_high": 0.6, "pass@1_low": 0.1, "pass@1_high": 0.2},
        **{"pass@1_stderr": 0.1, "entropy_nats": 0.25, "entropy_nats_low": 0.2, "entropy_nats_high": 0.3},
        **{"length_right_tokens": 12.34, "forgetting_base": 0.125},
    }
    metrics = {
        "base": {f"eval/test/{name}": value for name, value in of_base.items()},
        "round 1 explored": {"grad/norm_preclip_max": 1.5},
    }
    run = read_run(write_run(tmp_path, successes={"base": [1, 2], "round 1 explored": [2, 3]}, metrics=metrics))
    success, training, rest = report_page(run).sections[0].tables
    assert success.header == ["policy", "pass@1", "pass@8", "maj@8"]
    interval = pass_at_k_interval([tmp_path / "round-0" / "evaluations" / "base.parquet"], "test", 1)
    assert success.lines[0].cells[0].remark == f"[{interval.low:.3f}, {interval.high:.3f}]"
    assert (success.lines[0].cells[2].text, success.lines[0].cells[2].remark) == ("0.500", "[0.400, 0.600]")
    assert [line.name for line in success.lines] == ["base", "round 1 explored (handed over)"]
    assert [(line.name, line.cells[0].text) for line in training.lines] == [("round 1 explored (handed over)", "1.5")]
    assert [(line.name, line.cells[0].text, line.cells[0].remark) for line in rest.lines] == [
        ("entropy, nats per token", "0.250", "[0.200, 0.300]"),
        ("length right, tokens", "12.3", ""),
        ("forgetting base", "0.125", ""),
    ]


def test_of_a_sample_of_steps_only_problems_with_rollouts_are_shown(tmp_path: Path) -> None:
    for step in range(1, 21):
        names = [f"only {step}", f"every other {step % 2}"]
        write_pool(tmp_path, 0, step, [rollout(name, right=place > 1, step=0) for name in names for place in range(4)])
    totals = pool_totals(read_run(write_run(tmp_path, successes={"base": [1, 1]})))
    samples = sample(totals, most_bytes=sum(shard.long_bytes for shard in totals.shards) * 11 // 40)
    assert set(samples.visits) == {f"only {step}" for step in (1, 6, 11, 15, 20)} | {"every other 0", "every other 1"}
    assert all(samples.visits.values())
    assert np.nanmax(samples.similarity) == 1  # the same tokens in every step
