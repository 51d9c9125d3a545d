"""Intervals of pass@k from record files."""

import re
from pathlib import Path

import numpy as np
import pytest
from builders import make_problems, make_rollout

from rloop_lightning.evaluation import interval, pass_at_k_difference, pass_at_k_interval, pass_at_k_values
from rloop_lightning.evaluation.record import EvaluatedPolicy, problem_table, write_record
from rloop_lightning.types import Group, SamplingParams


def record(path, successes, *, samples=4, name="test", reverse=False, **others):
    """A record of one set, and of others by name."""
    tables = []
    for label, solved_of in {name: successes, **others}.items():
        groups = [
            Group(problem, tuple(make_rollout(problem.id, reward=float(g < solved)) for g in range(samples)))
            for problem, solved in zip(make_problems(len(solved_of)), solved_of, strict=True)
        ]
        tables.append(problem_table(label, groups[::-1] if reverse else groups, SamplingParams(8, seed=1)))
    write_record(path, EvaluatedPolicy("base", 0, "evaluate", 0), tables)
    return path


def test_values_are_those_of_each_problem_whatever_the_order_of_rows(tmp_path):
    paths = [record(tmp_path / "a", [0, 1, 4]), record(tmp_path / "b", [2, 0, 4], reverse=True)]
    ids, values = pass_at_k_values(paths, "test", k=2)
    assert ids == ["p0", "p1", "p2"]
    assert values.tolist() == [[0, 0.5, 1], [pytest.approx(5 / 6), 0, 1]]


def test_intervals_of_one_record_and_of_several(tmp_path):
    paths = [record(tmp_path / str(seed), [seed, 1, 4, 2, 0, 3]) for seed in range(3)]
    one, three = pass_at_k_interval(paths[:1], "test", k=1), pass_at_k_interval(paths, "test", k=1)
    assert (one.over, three.over) == ("problems", "seeds and problems")
    assert one.estimate == pytest.approx(10 / 24)
    assert three.estimate == pytest.approx(11 / 24)
    assert three.low < one.estimate < three.high


def test_arms_with_the_same_seeds_are_paired_by_seed(tmp_path):
    first, second = (
        {seed: record(tmp_path / f"{arm}-{seed}", [seed + arm, 1 + arm, arm, arm]) for seed in range(3)}
        for arm in (1, 0)
    )
    paired = pass_at_k_difference(first, second, "test", k=1)
    assert paired.paired_seeds
    assert paired.interval.estimate == pytest.approx(0.25)
    others = {seed + 1: path for seed, path in second.items()}
    assert not pass_at_k_difference(first, others, "test", k=1).paired_seeds


def test_the_average_over_sets_counts_each_set_the_same(tmp_path):
    small, large = [4, 2], [0, 1, 2, 1, 0, 2]
    paths = [record(tmp_path / str(seed), small, ood=[*large[:5], seed]) for seed in range(3)]
    expected = (6 / 8 + (4 + 1) / 24) / 2
    assert pass_at_k_interval(paths, ["test", "ood"], k=1).estimate == pytest.approx(expected)
    parts = [pass_at_k_values(paths, name, k=1)[1] for name in ("test", "ood")]
    assert pass_at_k_interval(paths, ["test", "ood"], k=1) == interval(np.concatenate(parts, axis=1), sets=[2, 6])
    first = second = dict(enumerate(paths))
    assert pass_at_k_difference(first, second, ["test", "ood"], k=1).interval.estimate == 0


def test_records_without_the_values_are_refused(tmp_path):
    three, four = record(tmp_path / "three", [1, 0, 1]), record(tmp_path / "four", [1, 0, 1, 0])
    with pytest.raises(ValueError, match=r"pass@8 needs 8 rollouts, but problem p0 of .*three has 4"):
        pass_at_k_values([three], "test", k=8)
    with pytest.raises(ValueError, match="three has no set ood; it has test"):
        pass_at_k_values([three], "ood", k=1)
    with pytest.raises(ValueError, match=r"1 problems are in one of .*three and .*four only, such as p3"):
        pass_at_k_difference({0: three}, {0: four}, "test", k=1)
    for call in (lambda: pass_at_k_values([], "test", 1), lambda: pass_at_k_difference({0: three}, {}, "test", 1)):
        with pytest.raises(ValueError, match="record"):
            call()


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for arm, number, gain in (("rloop", 2, 2), ("dapo", 0, 0)):
        for seed in range(3):
            path = Path(f"runs/{arm}-{seed}/round-{number}/evaluations/explored.parquet")
            path.parent.mkdir(parents=True)
            record(path, [seed + gain, 1 + gain, gain, 4], samples=8)
    exec(compile(block, "docs/statistics.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("seeds and problems")
    assert second.endswith("inconclusive")
