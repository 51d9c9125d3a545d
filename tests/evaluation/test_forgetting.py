"""The forgetting rate, by hand."""

import numpy as np
import pytest
import torch
from builders import make_problems, make_rollout

from rloop_lightning.evaluation import forgetting_matrix, forgetting_rate, forgetting_rates
from rloop_lightning.evaluation.record import (
    EvaluatedPolicy,
    drop_inside_records,
    inside_record,
    problem_table,
    write_record,
)
from rloop_lightning.types import Group, SamplingParams


def test_counts_what_was_solved_and_is_not_any_more():
    before = torch.tensor([True, True, True, True, False, False])
    after = torch.tensor([True, False, True, True, True, False])
    assert forgetting_rate(before, after).item() == 0.25
    assert forgetting_rate(after, before).item() == 0.25
    assert forgetting_rate(before, before).item() == 0


def test_is_not_symmetric():
    before, after = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    assert forgetting_rate(before, after).item() == 0.5
    assert forgetting_rate(after, before).item() == 0


def test_is_nan_where_nothing_was_solved():
    assert forgetting_rate(torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)).isnan()


def test_refuses_different_problem_sets():
    with pytest.raises(ValueError, match="2 before and 3 after"):
        forgetting_rate(torch.ones(2), torch.ones(3))


def record(path, successes, *, samples=4, sets=("test",)):
    """The record of a policy that solves each problem so many times."""
    tables = []
    for name in sets:
        groups = [
            Group(problem, tuple(make_rollout(problem.id, reward=float(g < solved)) for g in range(samples)))
            for problem, solved in zip(make_problems(len(successes)), successes, strict=True)
        ]
        tables.append(problem_table(name, groups, SamplingParams(8, seed=1)))
    write_record(path, EvaluatedPolicy("base", 0, "evaluate", 0), tables)
    return path


def test_rates_between_two_records_count_problems_with_any_success(tmp_path):
    before = record(tmp_path / "before.parquet", [4, 1, 2, 1, 0, 0], sets=("test", "ood"))
    after = record(tmp_path / "after.parquet", [1, 0, 4, 3, 4, 0])
    assert forgetting_rates(before, after) == {"test": 0.25}
    assert forgetting_rates(after, before) == {"test": 0.25}  # the fifth problem
    assert forgetting_rates(str(before), str(before)) == {"test": 0.0, "ood": 0.0}


def test_records_that_can_not_be_compared_are_refused(tmp_path):
    four = record(tmp_path / "four.parquet", [1, 0, 1, 0])
    with pytest.raises(ValueError, match=r"set test: 1 problems are in one evaluation only: p3"):
        forgetting_rates(four, record(tmp_path / "three.parquet", [1, 0, 1]))
    with pytest.raises(ValueError, match=r"set test: 4 problems have another number of rollouts \(--eval.samples\)"):
        forgetting_rates(four, record(tmp_path / "fewer.parquet", [1, 0, 1, 0], samples=2))
    with pytest.raises(ValueError, match=r"no set is in both evaluations: .* has test, and .* has ood"):
        forgetting_rates(four, record(tmp_path / "ood.parquet", [1, 0, 1, 0], sets=("ood",)))
    (tmp_path / "text.parquet").write_text("no table")
    for path in (tmp_path / "text.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(ValueError, match=f"{path.name} is not the record of an evaluation"):
            forgetting_rates(four, path)


def test_equal_records_are_equal_bytes(tmp_path):
    paths = [record(tmp_path / name, [1, 0, 2]) for name in ("a.parquet", "b.parquet")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_resume_drops_the_records_of_later_steps(tmp_path):
    for step in (2, 10, 12):
        record(inside_record(tmp_path, step), [1])
    record(tmp_path / "explored.parquet", [1])
    (tmp_path / "step-mine.parquet").touch()
    drop_inside_records(tmp_path, after=10)
    kept = ["explored.parquet", "step-000002.parquet", "step-000010.parquet", "step-mine.parquet"]
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == kept
    drop_inside_records(tmp_path / "nowhere", after=0)


def test_the_matrix_holds_the_rate_of_every_two_records(tmp_path):
    rng = np.random.default_rng(0)
    solved = rng.integers(0, 3, size=(4, 30))
    solved[3] = 0
    paths = [record(tmp_path / f"{row}.parquet", counts.tolist()) for row, counts in enumerate(solved)]
    matrix = forgetting_matrix(paths, "test")
    for a, before in enumerate(solved):
        for b, after in enumerate(solved):
            had = [q for q in range(30) if before[q]]
            expected = sum(after[q] == 0 for q in had) / len(had) if had else np.nan
            assert matrix[a, b] == pytest.approx(expected, nan_ok=True)
    assert np.diag(matrix)[:3].tolist() == [0, 0, 0]
    assert np.isnan(matrix[3]).all()
    assert forgetting_matrix([], "test").shape == (0, 0)
    with pytest.raises(ValueError, match=r"0.parquet has no set ood; it has test"):
        forgetting_matrix(paths, "ood")
