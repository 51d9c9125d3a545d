"""Judges generated pairs of answers (answer_pairs.py) by the verifier, and by plain Math-Verify, and counts by kind.

    python -m benchmarks.answer_agreement --pairs 20000 --plain 2000

The truth of each pair is checked first, without a parser: its two values are evaluated by `lambdify` at random points.
Every near miss that the verifier accepts is listed, and so is every equal pair that it refuses.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import mpmath  # type: ignore[import-untyped]  # likewise
import sympy  # type: ignore[import-untyped]  # sympy ships no types
from math_verify import parse, verify

from benchmarks.answer_pairs import Pair, pairs
from rloop_lightning.rewards.equivalence import check

_POINTS = 4
_DIGITS = 40


def same_value(first: Any, second: Any, seed: int = 0) -> bool:
    """Whether two values are equal: expressions by their numbers at random points, others by `==`."""
    if not isinstance(first, sympy.Expr) or not isinstance(second, sympy.Expr):
        return bool(first == second)
    if first.is_Rational and second.is_Rational:
        return bool(first == second)
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    rng = random.Random(seed)
    with mpmath.workdps(_DIGITS):
        functions = [sympy.lambdify(symbols, value, "mpmath") for value in (first, second)]
        for _ in range(_POINTS):
            point = [rng.uniform(0.2, 3) for _ in symbols]
            one, other = (function(*point) for function in functions)
            if abs(one - other) > 1e-12 * max(abs(one), abs(other)):
                return False
    return True


def judge(found: Iterable[Pair]) -> tuple[Counter[tuple[str, bool]], Counter[tuple[str, bool]], list[Pair]]:
    """Pairs by kind and truth; those that the verifier calls right; and the pairs that it judges wrongly."""
    counts: Counter[tuple[str, bool]] = Counter()
    right: Counter[tuple[str, bool]] = Counter()
    wrong = []
    for pair in found:
        counts[pair.kind, pair.equal] += 1
        accepted = check((pair.gold, pair.answer)) == "right"
        right[pair.kind, pair.equal] += accepted
        if accepted != pair.equal:
            wrong.append(pair)
    return counts, right, wrong


def plain(pair: Pair) -> bool:
    """Math-Verify as its documentation has it called, on formulas between dollar signs."""
    return bool(verify(parse(f"${pair.gold}$"), parse(f"${pair.answer}$")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000, help="number of equal pairs, and of near misses")
    parser.add_argument("--plain", type=int, default=1_000, help="how many of them plain Math-Verify judges too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    untrue = [pair for pair in pairs(options.pairs, options.seed) if same_value(*pair.values) != pair.equal]
    print(f"pairs that lambdify judges otherwise than their generator: {len(untrue)}")
    counts, right, wrong = judge(pairs(options.pairs, options.seed))
    theirs: Counter[tuple[str, bool]] = Counter()
    tried: Counter[tuple[str, bool]] = Counter()
    for pair in pairs(options.plain, options.seed):
        tried[pair.kind, pair.equal] += 1
        theirs[pair.kind, pair.equal] += plain(pair)
    print("| kind | equal | accepted | plain | near misses | accepted | plain |\n| --- " + "| ---: " * 6 + "|")
    for kind in dict.fromkeys(kind for kind, _ in counts):
        print(_row(kind, counts, right, tried, theirs, [kind]))
    print(_row("all", counts, right, tried, theirs, list({kind for kind, _ in counts})))
    for pair in wrong:
        print("refused" if pair.equal else "ACCEPTED", pair.kind, repr(pair.gold), repr(pair.answer))


def _row(name: str, counts: Any, right: Any, tried: Any, theirs: Any, kinds: list[str]) -> str:
    cells = [name]
    for equal in (True, False):
        total, accepted, seen, plain = (sum(c[kind, equal] for kind in kinds) for c in (counts, right, tried, theirs))
        cells += [f"{total:,}", f"{accepted:,}", f"{plain / seen:.0%}" if seen else ""]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
