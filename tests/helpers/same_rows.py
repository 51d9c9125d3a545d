"""Whether runs of different numbers of ranks gave the same: rows alike, weights and metrics up to rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from same_run import deterministic_rows, spent

WEIGHTS_WITHIN = 2e-5
"""Largest difference of a weight: gradients are sums in another order, and learning rates are 1e-4 and below."""


def assert_same_rows(
    out: Path,
    expected: Path,
    *,
    weights_within: float = WEIGHTS_WITHIN,
    values_within: float = 1e-3,
    in_float32: bool = True,
) -> None:
    """Assert it.

    Args:
        weights_within: largest difference of a weight.
        values_within: largest difference of a logprob or another number of a rollout.
        in_float32: whether metrics are equal in the digits that tables show.
    """
    tables = sorted(path.relative_to(expected) for path in expected.rglob("*.parquet"))
    assert sorted(path.relative_to(out) for path in out.rglob("*.parquet")) == tables
    assert any("expert" in path.name for path in tables)
    for file in tables:
        same_table(pq.read_table(out / file), pq.read_table(expected / file), file, values_within)
    if in_float32:
        assert (out / "results.md").read_text() == (expected / "results.md").read_text()
    assert spent(out) == spent(expected)
    policies = sorted(path.relative_to(expected) for path in expected.rglob("*model.safetensors"))
    assert sorted(path.relative_to(out) for path in out.rglob("*model.safetensors")) == policies
    assert len(policies) >= 2
    for file in policies:
        ours, theirs = load_file(out / file), load_file(expected / file)
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            assert ours[name].dtype == weight.dtype
            difference = float((ours[name].float() - weight.float()).abs().max())
            assert difference < weights_within, f"{name} of {file} differs by {difference}"
    for ours, theirs in zip(deterministic_rows(out), deterministic_rows(expected), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # Differences of sums that are almost equal, such as a KL divergence, keep few digits.
            digits = {"rel": 0.02, "abs": 1e-3} if in_float32 else {"rel": 0.1, "abs": 0.05}
            close = value if isinstance(value, str) else pytest.approx(value, **digits, nan_ok=True)
            assert ours[name] == close, name


def same_table(ours: pa.Table, theirs: pa.Table, file: Path, within: float = 1e-3) -> None:
    """The same rows; columns of floats, such as logprobs, up to rounding."""
    assert ours.column_names == theirs.column_names
    for name in theirs.column_names:
        mine, other = ours[name], theirs[name]
        kind = other.type.value_type if pa.types.is_list(other.type) else other.type
        if not pa.types.is_floating(kind):
            assert name == "run_id" or mine.equals(other), f"{name} of {file} differs"
            continue
        mine, other = (np.array(_flat(column), dtype=float) for column in (mine, other))
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=within, err_msg=f"{name} of {file}")


def _flat(column: pa.ChunkedArray) -> list[float]:
    values = column.combine_chunks()
    return (values.flatten() if pa.types.is_list(values.type) else values).to_pylist()
