"""Generated pairs of answers, a sample of `python -m benchmarks.answer_agreement`: no near miss is accepted."""

from collections import Counter

from benchmarks.answer_agreement import judge, same_value
from benchmarks.answer_pairs import KINDS, pairs


def test_generated_near_misses_are_refused_and_equal_pairs_accepted():
    sample = list(pairs(6 * len(KINDS), seed=14))
    assert [pair for pair in sample if same_value(*pair.values) != pair.equal] == []  # by lambdify, without a parser
    counts, right, wrong = judge(sample)
    assert set(counts.values()) == {6}
    assert [pair for pair in wrong if not pair.equal] == []
    accepted = Counter(equal for (_, equal), n in right.items() for _ in range(n))
    assert accepted[True] >= 0.98 * 6 * len(KINDS)
