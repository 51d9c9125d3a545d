"""The selection of rollouts for an export, on pools made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollouts.test_filter import make_pool

from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.selection import SelectedRollouts, Selection, Shard, pool_shards

RATES = {0: {"p": 0.5, "q": 0.25}}


def selected(pool: RolloutPool, **options: object) -> list[dict]:
    found = SelectedRollouts(pool_shards(pool, 0), RATES, Selection(**options))
    return [row for table in found.tables() for row in table.to_pylist()]


def test_identical_rollouts_are_drawn_one_by_one_if_copies_are_kept(tmp_path: Path) -> None:
    """150 equal rollouts: none of their places may be taken for another's."""
    pool = make_pool(tmp_path, [[("p", [1], True)] * 150 + [("p", [1], False)] * 150])
    assert len(selected(pool, deduplicate=False, max_per_problem=299)) == 299
    assert len(selected(pool, deduplicate=False, max_per_problem=300)) == 300
    assert len(selected(pool, max_per_problem=300)) == 1


def test_shards_are_read_in_the_order_of_their_rollout_steps(tmp_path: Path) -> None:
    names = ["step-000002", "extra-000001", "step-000001"]
    pool = make_pool(tmp_path, [[("p", [number], True)] for number in range(3)], names)
    assert [row["text"] for row in selected(pool)] == ["[2]", "[1]", "[0]"]


def test_success_rates_and_reasons_are_those_of_the_row(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, [[("p", [1, 2], True, True), ("q", [3], False), ("r", [4], True)]])
    rows = {row["problem_id"]: row for row in selected(pool)}
    assert {name: row["success_rate"] for name, row in rows.items() if name != "r"} == {"p": 0.5, "q": 0.25}
    assert (rows["p"]["finish_reason"], rows["p"]["length"], rows["p"]["success"]) == ("length", 2, True)
    assert [row["problem_id"] for row in selected(pool, max_success_rate=0.5)] == ["q"]
    assert [row["problem_id"] for row in selected(pool, min_success_rate=0.5)] == ["p"]


def test_another_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "expert.parquet"
    path.write_text("no")
    with pytest.raises(DamagedError, match=r"expert\.parquet is not a shard"):
        list(SelectedRollouts([Shard(path, 0, of_pool=False)], RATES, Selection()).tables())
