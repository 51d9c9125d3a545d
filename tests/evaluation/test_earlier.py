"""Forgetting and coverage of a policy against the records of earlier ones, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import make_group, make_rollout

from rloop_lightning.evaluation.earlier import earlier_metrics
from rloop_lightning.evaluation.record import EvaluatedPolicy, problem_table, write_record
from rloop_lightning.evaluation.statistics import interval
from rloop_lightning.types import SamplingParams


def evaluated(solved: str, *, name: str = "test", samples: int = 2, first: int = 0) -> pa.Table:
    """Problem i is solved where the i-th character is 1, by one of its rollouts."""
    groups = [
        make_group(*(make_rollout(f"p{number}", reward=float(one == "1" and g == 0)) for g in range(samples)))
        for number, one in enumerate(solved, first)
    ]
    return problem_table(name, groups, SamplingParams(8))


def recorded(path: Path, tables: Sequence[pa.Table]) -> Path:
    write_record(path, EvaluatedPolicy("a policy", 0, "evaluate", 0), tables)
    return path


def test_forgetting_and_coverage_by_hand(tmp_path: Path) -> None:
    base = recorded(tmp_path / "base.parquet", [evaluated("110010")])
    explored = recorded(tmp_path / "explored.parquet", [evaluated("101000")])
    metrics = earlier_metrics(evaluated("100101"), [base, explored])
    plain = {name: value for name, value in metrics.items() if not name.endswith(("_low", "_high"))}
    assert plain == pytest.approx(
        {
            "eval/test/forgetting_base": 2 / 3,
            "eval/test/forgetting_previous": 1 / 2,
            "eval/test/coverage_now": 3 / 6,
            "eval/test/coverage_ever": 6 / 6,
            "eval/test/coverage_lost": 3 / 6,
        }
    )
    found = interval(np.array([0.0, 1.0, 1.0]))  # over the problems that the base policy solves
    assert metrics["eval/test/forgetting_base_low"] == found.low
    assert metrics["eval/test/forgetting_base_high"] == found.high
    assert metrics["eval/test/coverage_now_low"] == interval(np.array([1, 0, 0, 1, 0, 1])).low


def test_what_cannot_be_compared_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = pa.concat_tables([evaluated("10"), evaluated("11", name="ood")])
    others = {
        "other problems": [evaluated("11", first=1)],
        "other rollouts": [evaluated("11", samples=4)],
        "another set": [evaluated("11", name="validation")],
        "nothing solved": [evaluated("00"), evaluated("00", name="ood")],
    }
    records = [recorded(tmp_path / f"{name}.parquet", tables) for name, tables in others.items()]
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"no parquet")
    for earlier in ([], [tmp_path / "missing.parquet"], [damaged], *([path] for path in records)):
        metrics = earlier_metrics(now, earlier)
        assert not any("forgetting" in name for name in metrics)
        assert (metrics["eval/test/coverage_ever"], metrics["eval/ood/coverage_ever"]) == (0.5, 1)
    assert "damaged.parquet is not the record of an evaluation" in caplog.text


def test_only_the_last_of_the_earlier_policies_is_the_previous_one(tmp_path: Path) -> None:
    """A previous policy that can't be compared is not replaced by the one before."""
    base = recorded(tmp_path / "base.parquet", [evaluated("11")])
    metrics = earlier_metrics(evaluated("10"), [base, tmp_path / "missing.parquet"])
    assert metrics["eval/test/forgetting_base"] == 0.5
    assert "eval/test/forgetting_previous" not in metrics


def test_a_problem_is_solved_by_any_rollout(tmp_path: Path) -> None:
    group = make_group(make_rollout("p0"), make_rollout("p0", reward=1.0))
    table = problem_table("test", [group, replace(group, rollouts=group.rollouts[:1] * 2)], SamplingParams(8))
    ids = pa.array(["p0", "p1"])
    table = table.set_column(table.column_names.index("problem_id"), table.schema.field("problem_id"), ids)
    assert earlier_metrics(table, [])["eval/test/coverage_now"] == 0.5
