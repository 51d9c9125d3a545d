"""Generators of pairs of sets, points, equations, choices, words and units, see answer_pairs.py."""

from __future__ import annotations

import random
from collections.abc import Callable

from sympy import sqrt, symbols  # type: ignore[import-untyped]  # sympy ships no types

from benchmarks.pairs_common import Made, changed, digit_changed, some

n = symbols("n")


def _interval(rng: random.Random) -> Made:
    low, high = sorted(rng.sample(range(-30, 30), 2))
    left, right = rng.choice("(["), rng.choice(")]")
    value = (left, low, high, right)
    other = {"(": "[", "[": "(", ")": "]", "]": ")"}
    signs = ["\\le" if left == "[" else "<", "\\le" if right == "]" else "<"]
    spell = [
        f"{left}{low},{high}{right}",
        rf"\left{left}{low}, {high}\right{right}",
        rf"x\in {left}{low},{high}{right}",
        rf"{low} {signs[0]} x {signs[1]} {high}",
    ]
    misses = [
        (other[left], low, high, right),
        (left, low, high, other[right]),
        (left, low, high + 1, right),
        (left, -low - 1, high + 31, right),
    ]
    a, b, c, d = rng.choice(misses)
    return spell[0], value, rng.choice(spell), f"{a}{b},{c}{d}", (a, b, c, d)


def _union(rng: random.Random) -> Made:
    a, b = sorted(rng.sample(range(-20, 20), 2))
    value = ("union", a, b)
    texts = [
        rf"(-\infty,{a})\cup({b},\infty)",
        f"(-∞, {a}) \u222a ({b}, ∞)",
        rf"\left({b},+\infty\right)\cup\left(-\infty,{a}\right)",
    ]
    misses = [
        (rf"(-\infty,{a}]\cup({b},\infty)", ("closed", a, b)),
        (rf"(-\infty,{a})\cup({b + 1},\infty)", ("union", a, b + 1)),
        (rf"(-\infty,{a})", ("half", a)),
        (rf"({a},{b})", ("between", a, b)),
    ]
    miss, missed = rng.choice(misses)
    return texts[0], value, rng.choice(texts), miss, missed


def _set(rng: random.Random) -> Made:
    items = rng.sample(range(-40, 40), rng.randint(2, 5))
    shuffled = rng.sample(items, len(items))
    gold = ", ".join(map(str, items))
    braces = rng.random() < 0.5
    gold = rf"\{{{gold}\}}" if braces else gold
    listed = ", ".join(map(str, shuffled))
    spell = [rf"\{{{listed}\}}", listed, " and ".join((", ".join(map(str, shuffled[:-1])), str(shuffled[-1])))]
    if not braces:
        spell.append(r" \text{ or } ".join(f"x={item}" for item in shuffled))
    missed = [changed(rng, items[0]) if changed(rng, items[0]) else 77, *items[1:]] if rng.random() < 0.7 else items[1:]
    if set(missed) == set(items):
        missed = [99, *items[1:]]
    return gold, frozenset(items), rng.choice(spell), ", ".join(map(str, missed)), frozenset(missed)


def _point(rng: random.Random) -> Made:
    items = [some(rng, 50) for _ in range(rng.randint(2, 4))]
    gold = "(" + ",".join(map(str, items)) + ")"
    names = ["x", "y", "z", "w"]
    spell = [
        gold.replace(",", ", "),
        rf"\left({', '.join(map(str, items))}\right)",
        rf"\left\langle {','.join(map(str, items))}\right\rangle",
        ", ".join(f"{name}={item}" for name, item in zip(names, items, strict=False)),
        f"({','.join(names[: len(items)])}) = {gold}",
    ]
    missed = list(reversed(items)) if rng.random() < 0.4 else [digit_changed(rng, items[0]), *items[1:]]
    if missed == items:
        missed = [items[0] + 1, *items[1:]]
    return gold, tuple(items), rng.choice(spell), "(" + ",".join(map(str, missed)) + ")", tuple(missed)


def _matrix(rng: random.Random) -> Made:
    rows = [[some(rng, 20) for _ in range(2)] for _ in range(rng.randint(1, 3))]

    def text(entries: list[list[int]], name: str) -> str:
        return rf"\begin{{{name}}}" + r"\\".join("&".join(map(str, row)) for row in entries) + rf"\end{{{name}}}"

    missed = [list(row) for row in rows]
    i, j = rng.randrange(len(rows)), rng.randrange(2)
    missed[i][j] = changed(rng, rows[i][j])
    names = ("pmatrix", "bmatrix", "matrix")
    spell = [text(rows, name) for name in names] + [
        rf"\left[\begin{{array}}{{cc}}{text(rows, 'q')[9:-7]}\end{{array}}\right]"
    ]
    value, other = tuple(map(tuple, rows)), tuple(map(tuple, missed))
    return spell[0], value, rng.choice(spell), text(missed, rng.choice(names)), other


def _equation(rng: random.Random) -> Made:
    a, b, c = some(rng, 9), some(rng, 9), some(rng, 9)
    value = ("equation", frozenset({(a, b, c), (-a, -b, -c)}))
    spell = [
        f"{a}x{b:+d}y={c}",
        f"{a}x{b:+d}y{-c:+d}=0",
        f"{c}={b}y{a:+d}x",
        f"{2 * a}x{2 * b:+d}y={2 * c}",
        rf"{a}x = {c}{-b:+d}y",
    ]
    p, q, r = rng.choice(((a, -b, c), (a, b, -c), (a, b, c + 20), (a + 20, b, c)))
    miss = rng.choice((f"{p}x{q:+d}y={r}", f"{p}x{q:+d}y{-r:+d}=0"))
    return spell[0], value, rng.choice(spell), miss, ("equation", frozenset({(p, q, r), (-p, -q, -r)}))


def _assignment(rng: random.Random) -> Made:
    value, name = some(rng, 500), rng.choice("xyknm")
    other = changed(rng, value)
    spell = [f"{name}={value}", f"{name} = {value}.", str(value), rf"{name}=\frac{{{2 * value}}}{{2}}"]
    misses = [
        (f"{name}={other}", (name, other)),
        (rng.choice([v for v in "xyknm" if v != name]) + f"={value}", ("?", value)),
    ]
    miss, missed = rng.choice(misses)
    return f"{name}={value}", (name, value), rng.choice(spell), miss, missed


def _inequality(rng: random.Random) -> Made:
    bound, sign = some(rng, 50), rng.choice(("<", ">", r"\le", r"\ge"))
    turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    loose = {"<": r"\le", ">": r"\ge", r"\le": "<", r"\ge": ">"}
    plain = {"<": "<", ">": ">", r"\le": "<=", r"\ge": ">="}
    spell = [
        f"x {sign} {bound}",
        f"{bound} {turned[sign]} x",
        f"x{plain[sign]}{bound}",
        f"-x {turned[sign]} {-bound}",
        f"2x {sign} {2 * bound}",
    ]
    s, b = rng.choice(((loose[sign], bound), (turned[sign], bound), (sign, bound + 1), (sign, -bound)))
    return spell[0], (sign, bound), rng.choice(spell), f"x {s} {b}", (s, b)


def _vector(rng: random.Random) -> Made:
    a, b = some(rng, 20), some(rng, 20)
    styles = [
        (r"\mathbf{i}", r"\mathbf{j}"),
        (r"\hat{i}", r"\hat{j}"),
        (r"\vec{i}", r"\vec{j}"),
        (r"\hat{\imath}", r"\hat{\jmath}"),
    ]
    texts = [f"{a}{i}{b:+d}{j}" for i, j in styles] + [f"{b}{j}{a:+d}{i}" for i, j in styles]
    misses = [(f"{a}{i}{-b:+d}{j}", (a, -b)) for i, j in styles] + [
        (str(a), ("scalar", a)),
        (rf"{b}\mathbf{{i}}{b + a + 50:+d}\mathbf{{j}}", (b, a + b + 50)),
    ]
    miss, missed = rng.choice(misses)
    return texts[0], (a, b), rng.choice(texts), miss, missed


def _plus_minus(rng: random.Random) -> Made:
    a, b = some(rng, 20), rng.choice((2, 3, 5, 7))
    value = frozenset({a - sqrt(b), a + sqrt(b)})
    spell = [
        rf"{a}\pm\sqrt{{{b}}}",
        rf"{a}+\sqrt{{{b}}}, {a}-\sqrt{{{b}}}",
        rf"\{{{a}-\sqrt{b}, {a}+\sqrt{b}\}}",
        rf"x = {a} ± √{b}",
    ]
    misses = [
        (rf"{a}+\sqrt{{{b}}}", frozenset({a + sqrt(b)})),
        (rf"{-a}\pm\sqrt{{{b}}}", frozenset({-a + sqrt(b), -a - sqrt(b)})),
        (rf"{a}\pm\sqrt{{{b + 1}}}", frozenset({a + sqrt(b + 1), a - sqrt(b + 1)})),
    ]
    miss, missed = rng.choice(misses)
    return spell[0], value, rng.choice(spell), miss, missed


def _ratio(rng: random.Random) -> Made:
    a, b = rng.sample(range(1, 60), 2)
    misses = [
        (f"{b}:{a}", (b, a)),
        (f"{digit_changed(rng, a) or 77}:{b}", (digit_changed(rng, a), b, "?")),
        (str(a), a),
    ]
    miss, missed = rng.choice(misses)
    return f"{a}:{b}", (a, b), rng.choice((f"{a} : {b}", f"{a}:{b}", rf"{a}:\,{b}")), miss, missed


def _index(rng: random.Random) -> Made:
    i, k = rng.randint(1, 9), rng.randint(2, 9)
    a, b = symbols("a_i b_i")
    gold = rf"{k}a_{{{i}}}+b_{{{i + 1}}}"
    spell = [
        rf"{k}a_{i} + b_{{{i + 1}}}",
        rf"b_{{{i + 1}}}+{k}a_{i}",
        rf"{k}\cdot a_{{{i}}}+b_{i + 1}" if i < 9 else gold,
    ]
    misses = [
        rf"{k}a_{{{i + 1}}}+b_{{{i + 1}}}",
        rf"{k}a_{{{i}}}+b_{{{i}}}",
        rf"{k}a_{{{i}}}-b_{{{i + 1}}}",
        rf"{k}b_{{{i}}}+a_{{{i + 1}}}",
        rf"{k}a+b",
    ]
    return gold, k * a + b, rng.choice(spell), rng.choice(misses), k * a - b


def _sum(rng: random.Random) -> Made:
    low, k = rng.randint(0, 3), rng.randint(2, 9)
    gold = rf"\sum_{{k={low}}}^{{n}} {k}k^2"
    spell = [gold, rf"\sum_{{k={low}}}^n {k}\cdot k^{{2}}", rf"\sum\limits_{{k={low}}}^{{n}} k^2\cdot {k}"]
    misses = [
        rf"\sum_{{k={low + 1}}}^{{n+1}} {k}k^2",
        rf"\sum_{{k={low}}}^{{n-1}} {k}k^2",
        rf"\sum_{{k={low}}}^{{n}} {k}k^3",
        rf"\sum_{{k={low}}}^{{m}} {k}k^2",
    ]
    return gold, n * k, rng.choice(spell), rng.choice(misses), n * k + 1


STRUCTURES: dict[str, Callable[[random.Random], Made]] = {
    "interval": _interval,
    "union": _union,
    "set or list": _set,
    "point": _point,
    "matrix": _matrix,
    "equation": _equation,
    "named value": _assignment,
    "inequality": _inequality,
    "vector": _vector,
    "plus or minus": _plus_minus,
    "ratio": _ratio,
    "index": _index,
    "sum": _sum,
}
