"""Countdown problems: disjoint, reachable, the same in every run."""

import random
import re
from itertools import combinations

import pytest

from rloop_lightning.data.countdown import Countdown, Family, draw_solution, set_of
from rloop_lightning.rewards.countdown import CountdownReward


def reachable(numbers: tuple[int, ...]) -> set[int]:
    """Every positive integer that + - * / with positive integer intermediate results make of all the numbers."""
    if len(numbers) == 1:
        return {numbers[0]}
    found = set()
    for i, j in combinations(range(len(numbers)), 2):
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        a, b = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        results = {a + b, a * b} | ({a - b} if a > b else set()) | ({a // b} if a % b == 0 else set())
        found |= {target for result in results for target in reachable((*rest, result))}
    return found


def ids(problems):
    return [problem.id for problem in problems]


def all_sets(source: Countdown):
    return {"train": source.train(), **source.evaluation()}


def test_sets_have_their_sizes_and_share_no_problem():
    sets = all_sets(Countdown())
    assert {name: len(problems) for name, problems in sets.items()} == {
        "train": 600,
        "validation": 64,
        "test": 128,
        "ood": 128,
    }
    everything = [i for problems in sets.values() for i in ids(problems)]
    assert len(set(everything)) == len(everything)


def test_sets_are_disjoint_across_seeds_and_families_too():
    first = all_sets(Countdown(seed=1))
    second = all_sets(Countdown(seed=2, ood_counts=(3, 4)))
    for name, problems in first.items():
        for other, others in second.items():
            if name != other:
                assert not set(ids(problems)) & set(ids(others)), (name, other)


def test_a_problem_is_its_canonical_form():
    for problems in all_sets(Countdown(train_size=50)).values():
        for problem in problems:
            numbers = problem.metadata["numbers"]
            assert numbers == tuple(sorted(numbers))
            assert problem.id == "-".join(["countdown", *map(str, numbers), problem.answer])
            assert problem.prompt == f"{' '.join(map(str, numbers))}={problem.answer}:"
            assert all(type(number) is int for number in numbers)


def test_problems_lie_in_their_family():
    source = Countdown(ood_counts=(5, 6), ood_max_number=20, ood_max_target=200)
    for name, problems in all_sets(source).items():
        counts, max_number, max_target = ((5, 6), 20, 200) if name == "ood" else ((3, 4), 12, 100)
        assert {len(p.metadata["numbers"]) for p in problems} == set(counts)
        assert all(1 <= n <= max_number for p in problems for n in p.metadata["numbers"])
        assert all(1 <= int(p.answer) <= max_target for p in problems)


def test_every_target_is_reachable():
    source = Countdown(train_size=100, ood_size=16)
    for problems in all_sets(source).values():
        for problem in problems:
            assert int(problem.answer) in reachable(problem.metadata["numbers"]), problem.id


def test_same_seed_same_sets_and_another_seed_other_sets():
    first, again, other = (all_sets(Countdown(seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_the_size_of_one_set_does_not_change_another():
    small, large = all_sets(Countdown(train_size=10, validation_size=8)), all_sets(Countdown(train_size=900))
    assert small["test"] == large["test"]
    assert small["ood"] == large["ood"]
    assert small["train"] == large["train"][:10]
    assert small["validation"] == large["validation"][:8]


@pytest.mark.parametrize("counts", [(3,), (4,), (5, 6)])
def test_solution_texts_are_right(counts):
    rng = random.Random(0)
    family = Family(counts, 12, 100)
    solutions = [s for s in (draw_solution(rng, family) for _ in range(300)) if s]
    assert len(solutions) > 50
    rewards = CountdownReward().rewards([s.problem for s in solutions], [s.text for s in solutions])
    assert rewards == [1.0] * len(solutions)
    for solution in solutions:
        for step in solution.steps:
            left, right = step.split("=")
            assert eval(re.sub("/", "//", left)) == int(right) > 0
        assert solution.text.startswith(solution.steps[0] + ";")


def test_derivations_of_one_problem_are_diverse():
    rng = random.Random(0)
    texts = {
        s.text
        for s in (draw_solution(rng, Family((3,), 4, 30)) for _ in range(20_000))
        if s and (s.numbers, s.target) == ((2, 3, 4), 24)
    }
    assert len(texts) > 10


def test_policy_problems_are_a_share_of_their_own():
    rng = random.Random(0)
    drawn = [s for s in (draw_solution(rng, Family((3, 4), 12, 100)) for _ in range(4000)) if s]
    policy = {s.problem.id for s in drawn if set_of(s.numbers, s.target) == "policy"}
    assert policy
    assert set_of((3, 7, 12), 33) == set_of((12, 3, 7), 33)
    for problems in all_sets(Countdown(train_size=2000)).values():
        assert not policy & set(ids(problems))


def test_bad_arguments_are_all_named_at_once():
    with pytest.raises(ValueError, match=r"--data\.train_size") as error:
        Countdown(train_size=0, ood_size=-1, counts=(7,), ood_counts=(1, 3), max_number=1, ood_max_target=0)
    flags = re.findall(r"--data\.\w+", str(error.value))
    assert flags == [
        "--data.train_size",
        "--data.ood_size",
        "--data.counts",
        "--data.max_number",
        "--data.ood_counts",
        "--data.ood_max_target",
    ]
    with pytest.raises(ValueError, match=r"--data\.ood_counts must hold at least one count"):
        Countdown(ood_counts=())


def test_a_family_too_small_for_the_set_is_an_error_not_a_hang():
    source = Countdown(train_size=500, counts=(2,), max_number=3)
    with pytest.raises(ValueError, match=r"--data\.train_size is 500, but only about \d problems"):
        source.train()
