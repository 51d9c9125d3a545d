"""Whether two runs gave the same: weights, metrics, rollouts, expert sets, results and cost, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from safetensors.torch import load_file

from rloop_lightning.run.metrics_csv import read_metrics


def assert_same_run(out: Path, expected: Path) -> None:
    policies = sorted(path.relative_to(expected) for path in expected.rglob("*model.safetensors"))
    assert len(policies) >= 2
    assert sorted(path.relative_to(out) for path in out.rglob("*model.safetensors")) == policies
    for file in policies:
        ours, theirs = (load_file(run / file) for run in (out, expected))
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in theirs), f"weights in {file} differ"
    assert deterministic_rows(out) == deterministic_rows(expected)
    assert (out / "results.md").read_text() == (expected / "results.md").read_text()
    tables = sorted(path.relative_to(expected) for path in expected.rglob("*.parquet"))
    assert sorted(path.relative_to(out) for path in out.rglob("*.parquet")) == tables
    assert tables
    for file in tables:
        ours, theirs = (pq.read_table(run / file) for run in (out, expected))
        kept = [name for name in theirs.column_names if name != "run_id"]
        assert ours.select(kept).equals(theirs.select(kept)), f"{file} differs"
    assert spent(out) == spent(expected)
    assert not list(out.rglob("*.partial"))
    checkpoints = (sorted(path.relative_to(run) for path in run.rglob("*.ckpt")) for run in (out, expected))
    assert next(checkpoints) == next(checkpoints)


def deterministic_rows(run: Path) -> list[dict[str, object]]:
    """metrics.csv but for measured times."""
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in read_metrics(run / "metrics.csv")
    ]


def spent(run: Path) -> dict[str, float]:
    budget = json.loads((run / "state.json").read_text())["budget"]
    return {name: value for name, value in budget.items() if name != "seconds"}
