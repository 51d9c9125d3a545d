"""Generators of pairs of expressions, see answer_pairs.py."""

from __future__ import annotations

import random
from collections.abc import Callable

import sympy  # type: ignore[import-untyped]  # sympy ships no types
from sympy import E, I, cos, exp, log, sin, symbols

from benchmarks.pairs_common import Made, some

x, y = symbols("x y")


def _polynomial(rng: random.Random) -> Made:
    a, b, c = some(rng, 9), some(rng, 9), some(rng, 9)
    value = a * x**2 + b * x + c
    p, q = some(rng, 6), some(rng, 6)
    if rng.random() < 0.4:
        gold = rf"(x{p:+d})(x{q:+d})"
        value = (x + p) * (x + q)
        spell = [rf"x^2{p + q:+d}x{p * q:+d}", rf"\left(x{q:+d}\right)\left(x{p:+d}\right)", rf"(x{p:+d})*(x{q:+d})"]
        return gold, value, rng.choice(spell), rf"x^2{p + q:+d}x{p * q + rng.choice((-1, 1)):+d}", value + 1
    spell = [
        rf"{a}x^2{b:+d}x{c:+d}",
        rf"{c}{b:+d}x{a:+d}x^{{2}}",
        f"{a}*x**2 + ({b})*x + ({c})",
        rf"{b}x{a:+d}x²{c:+d}",
        rf"x\left({a}x{b:+d}\right){c:+d}",
    ]
    misses = [
        (rf"{a}x^2{-b:+d}x{c:+d}", a * x**2 - b * x + c),
        (rf"{a}x^3{b:+d}x{c:+d}", a * x**3 + b * x + c),
        (rf"{a}y^2{b:+d}y{c:+d}", a * y**2 + b * y + c),
        (rf"{a}x^2{b:+d}x{c + 1:+d}", value + 1),
    ]
    miss, missed = rng.choice(misses)
    return rng.choice(spell), value, rng.choice(spell), miss, missed


def _ratio_of_polynomials(rng: random.Random) -> Made:
    a, b, c = rng.randint(1, 9), some(rng, 9), rng.randint(2, 9)
    value = (a * x + b) / c
    spell = [
        rf"\frac{{{a}x{b:+d}}}{{{c}}}",
        rf"\frac{{{a}x}}{{{c}}}+\frac{{{b}}}{{{c}}}",
        rf"\frac{{1}}{{{c}}}({a}x{b:+d})",
        f"({a}x{b:+d})/{c}",
    ]
    misses = [
        (rf"\frac{{{a}x{-b:+d}}}{{{c}}}", (a * x - b) / c),
        (rf"\frac{{{a}x}}{{{c}}}{b:+d}", a * x / c + b),
        (rf"\frac{{{c}}}{{{a}x{b:+d}}}", c / (a * x + b)),
    ]
    miss, missed = rng.choice(misses)
    return rng.choice(spell), value, rng.choice(spell), miss, missed


def _trigonometry(rng: random.Random) -> Made:
    k, m = rng.randint(2, 9), rng.randint(2, 9)
    forms = [
        (rf"\sin^2({k}x)", sin(k * x) ** 2, rf"1-\cos^2({k}x)", rf"1+\cos^2({k}x)", 1 + cos(k * x) ** 2),
        (
            rf"\sin({2 * k}x)",
            sin(2 * k * x),
            rf"2\sin({k}x)\cos({k}x)",
            rf"2\sin({k}x)\cos({k + 1}x)",
            2 * sin(k * x) * cos((k + 1) * x),
        ),
        (rf"{m}\cos({k}x)", m * cos(k * x), f"{m}*cos({k}*x)", rf"{m}\sin({k}x)", m * sin(k * x)),
        (rf"\tan^2 x+{k}", sympy.tan(x) ** 2 + k, rf"\sec^2 x+{k - 1}", rf"\sec^2 x+{k}", 1 / cos(x) ** 2 + k),
    ]
    return rng.choice(forms)


def _exponential(rng: random.Random) -> Made:
    k, m = rng.randint(2, 9), rng.randint(2, 9)
    forms = [
        (rf"e^{{{k}}}-{m}", E**k - m, rf"-{m}+\mathrm{{e}}^{{{k}}}", rf"e^{{{k + 1}}}-{m}", E ** (k + 1) - m),
        (rf"{m}e^{{{k}x}}", m * exp(k * x), f"{m}*exp({k}*x)", rf"{m}e^{{-{k}x}}", m * exp(-k * x)),
        (rf"\ln {k}", log(k), rf"-\ln\frac{{1}}{{{k}}}", rf"\ln {k + 1}", log(k + 1)),
        (
            rf"\log_{{{m}}} {k}",
            log(k) / log(m),
            rf"\frac{{\ln {k}}}{{\ln {m}}}",
            rf"\log_{{{m + 1}}} {k}",
            log(k) / log(m + 1),
        ),
        (
            rf"e^{{-{20 * k}}}",
            exp(-20 * k),
            rf"\frac{{1}}{{e^{{{20 * k}}}}}",
            rf"e^{{-{20 * k + 1}}}",
            exp(-20 * k - 1),
        ),
    ]
    return rng.choice(forms)


def _complex(rng: random.Random) -> Made:
    a, b = some(rng, 20), some(rng, 20)
    spell = [f"{a}{b:+d}i", rf"{a}{b:+d}\mathrm{{i}}", f"{b}i{a:+d}", f"{a} + ({b})*i", rf"{a}{b:+d}\,i"]
    p, q = rng.choice(((a, -b), (-a, b), (b, a) if a != b else (a, b + 1), (a, b + 1)))
    misses = [(f"{p}{q:+d}i", p + q * I), (f"{a + b}", sympy.Integer(a + b)), (f"{a}{b:+d}j", a + b * symbols("j"))]
    miss, missed = rng.choice(misses)
    return rng.choice(spell), a + b * I, rng.choice(spell), miss, missed


def _large(rng: random.Random) -> Made:
    k, m = rng.randint(20, 300), rng.randint(2, 9)
    forms: list[Made] = [
        (
            f"{m}^{{{k}}}",
            sympy.Integer(m) ** k,
            rf"{m}\cdot {m}^{{{k - 1}}}",
            f"{m}^{{{k + 1}}}",
            sympy.Integer(m) ** (k + 1),
        ),
        (f"{k}!", sympy.factorial(k), rf"{k}\cdot {k - 1}!", f"{k + 1}!", sympy.factorial(k + 1)),
        (
            rf"\binom{{{k}}}{{{m}}}",
            sympy.binomial(k, m),
            rf"\mathrm{{C}}_{{{k}}}^{{{m}}}",
            rf"\binom{{{k}}}{{{m + 1}}}",
            sympy.binomial(k, m + 1),
        ),
        (
            rf"\frac{{1}}{{{k}!}}",
            1 / sympy.factorial(k),
            rf"\frac{{1}}{{{k}\cdot {k - 1}!}}",
            rf"\frac{{1}}{{{k + 1}!}}",
            1 / sympy.factorial(k + 1),
        ),
        (f"{m}^{{{k}}}+1", sympy.Integer(m) ** k + 1, f"1+{m}^{{{k}}}", f"{m}^{{{k}}}-1", sympy.Integer(m) ** k - 1),
    ]
    return rng.choice(forms)


EXPRESSIONS: dict[str, Callable[[random.Random], Made]] = {
    "polynomial": _polynomial,
    "rational function": _ratio_of_polynomials,
    "trigonometry": _trigonometry,
    "exponential, logarithm": _exponential,
    "complex number": _complex,
    "large or small": _large,
}
