"""Generators of pairs of numbers, see answer_pairs.py."""

from __future__ import annotations

import random
from collections.abc import Callable

import sympy  # type: ignore[import-untyped]  # sympy ships no types
from sympy import Rational, pi, sqrt, symbols

from benchmarks.pairs_common import Made, changed, digit_changed, some

x, y = symbols("x y")


def _integer(rng: random.Random) -> Made:
    value = rng.choice((some(rng, 99), some(rng, 10**6), some(rng, 10**12)))
    other = changed(rng, value)
    minus = rng.choice("-\u2212") if value < 0 else ""
    grouped = f"{abs(value):,}"
    spelled = minus + rng.choice(
        (
            str(abs(value)),
            grouped,
            grouped.replace(",", r"\,"),
            grouped.replace(",", "{,}"),
            grouped.replace(",", " "),
            f"{abs(value)}.0",
            f"{abs(value)}.",
            grouped.replace(",", r"{,}\!").replace(r"{,}\!", r",\!"),
            "".join(chr(0xFF10 + int(d)) for d in str(abs(value))),
        )
    )
    return str(value), sympy.Integer(value), spelled, rng.choice((str(other), f"{other:,}")), sympy.Integer(other)


def _decimal(rng: random.Random) -> Made:
    places = rng.randint(1, 9)
    value = some(rng, 10 ** rng.randint(1, places + 3))
    other = changed(rng, value)
    texts = [_places(v, places) for v in (value, other)]
    spelled = rng.choice(
        (
            texts[0] + "0",
            texts[0].replace("0.", ".", 1) if abs(value) < 10**places else texts[0],
            texts[0],
            rf"\frac{{{value}}}{{{10**places}}}",
            texts[0].replace("-", "\u2212"),
        )
    )
    return texts[0], Rational(value, 10**places), spelled, texts[1], Rational(other, 10**places)


def _places(value: int, places: int) -> str:
    digits = str(abs(value)).zfill(places + 1)
    return ("-" if value < 0 else "") + digits[:-places] + "." + digits[-places:]


def _scientific(rng: random.Random) -> Made:
    mantissa, power = rng.randint(11, 99), rng.choice((-1, 1)) * rng.randint(3, 30)
    text = f"{mantissa // 10}.{mantissa % 10}"
    value = Rational(mantissa, 10) * sympy.Integer(10) ** power
    spell = [
        rf"{text}\times 10^{{{power}}}",
        rf"{text}\cdot10^{{{power}}}",
        f"{text}e{power}",
        f"{text}E{power:+03d}",
        f"{text} \u00d7 10^{power}",
        f"{text}*10^{{{power}}}",
        _raised(text, power),
    ]
    if rng.random() < 0.5:
        other, missed = power + rng.choice((-1, 1)), mantissa
    else:
        other, missed = power, digit_changed(rng, mantissa) if mantissa % 10 else mantissa + 1
    miss = rf"{missed // 10}.{missed % 10}\times 10^{{{other}}}"
    return rng.choice(spell), value, rng.choice(spell), miss, Rational(missed, 10) * sympy.Integer(10) ** other


def _raised(text: str, power: int) -> str:
    digits = dict(zip("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻", strict=True))
    return f"{text}\u00d710" + "".join(digits[c] for c in str(power))


def _fraction(rng: random.Random) -> Made:
    top, below = some(rng, 60), rng.randint(2, 60)
    value, factor = Rational(top, below), rng.randint(2, 5)
    a, b, sign = abs(value.p), value.q, "-" if value < 0 else ""
    spell = [
        rf"{sign}\frac{{{a}}}{{{b}}}",
        rf"\dfrac{{{sign}{a}}}{{{b}}}",
        f"{sign}{a}/{b}",
        rf"{sign}\frac{{{a * factor}}}{{{b * factor}}}",
        rf"\left({sign}\tfrac{{{a}}}{{{b}}}\right)",
    ]
    if a < 10 and b < 10:
        spell.append(rf"{sign}\frac{a}{b}")
    missed = Rational(changed(rng, value.p), b) if rng.random() < 0.5 else Rational(value.p, digit_changed(rng, b) or 1)
    missed = missed if missed != value else value + 1
    return rng.choice(spell), value, rng.choice(spell), rf"\frac{{{missed.p}}}{{{missed.q}}}", missed


def _mixed(rng: random.Random) -> Made:
    whole, below = rng.randint(1, 30), rng.randint(2, 12)
    top = rng.randint(1, below - 1)
    value, sign = Rational(whole * below + top, below), rng.choice(("", "-"))
    if sign:
        value = -value
    mixed = [
        rf"{sign}{whole}\frac{{{top}}}{{{below}}}",
        f"{sign}{whole} {top}/{below}",
        rf"{sign}{whole}\ \tfrac{{{top}}}{{{below}}}",
    ]
    missed = rng.choice((whole + 1, abs(whole - top) or whole + 2))
    other = Rational(missed * below + top, below) * (-1 if sign else 1)
    misses = [
        (f"{sign}{missed} {top}/{below}", other),
        (f"{sign}{whole}{top}/{below}", Rational(int(f"{sign}{whole}{top}"), below)),
        (rf"{sign}\frac{{{whole + top}}}{{{below}}}", Rational(whole + top, below) * (-1 if sign else 1)),
    ]
    miss, missed_value = rng.choice([pair for pair in misses if pair[1] != value])
    spelled = rng.choice([*mixed, f"{value.p}/{value.q}", rf"\frac{{{value.p}}}{{{value.q}}}"])
    return rng.choice(mixed), value, spelled, miss, missed_value


def _percent(rng: random.Random) -> Made:
    value = rng.randint(1, 400)
    other = digit_changed(rng, value)
    other = other if other * 100 != value and value * 100 != other else value + 7
    spell = [rf"{value}\%", f"{value}%", f"{value} percent", rf"{value}\text{{ percent}}", _places(value, 2)]
    return rf"{value}\%", ("%", value), rng.choice(spell), rf"{other}\%", ("%", other)


def _repeating(rng: random.Random) -> Made:
    block, whole = rng.randint(1, 98), rng.randint(0, 9)
    width = len(str(block))
    nines = 10**width - 1
    block = block if block % nines else 1
    value = whole + Rational(block, nines)
    other = digit_changed(rng, block)
    other = other if other % nines != block and len(str(other)) == width else block % nines + 1
    missed = whole + Rational(other, nines)
    texts = [rf"{whole}.\overline{{{b:0{width}d}}}" for b in (block, other)]
    spelled = rng.choice((rf"\frac{{{value.p}}}{{{value.q}}}", f"{value.p}/{value.q}", texts[0]))
    return texts[0], value, spelled, rng.choice((texts[1], f"{whole}.{block:0{width}d}")), missed


def _surd(rng: random.Random) -> Made:
    a, b, c = some(rng, 12), rng.choice((2, 3, 5, 6, 7, 10, 11)), rng.randint(2, 9)
    value = a + c * sqrt(b)
    spell = [
        rf"{a}+{c}\sqrt{{{b}}}",
        rf"{c}\sqrt{{{b}}}{a:+d}",
        rf"{a}+\sqrt{{{c * c * b}}}",
        f"{c}*sqrt({b}) + ({a})",
        rf"{a} + {c}√{b}",
        rf"\left({a}+{c}\sqrt{{{b}}}\right)",
        rf"{a}+\frac{{{c * b}}}{{\sqrt{{{b}}}}}",
    ]
    misses = [(a, c, b + 1), (a, -c, b), (-a, c, b), (a, c + 1, b), (a + 1, c, b)]
    p, q, r = rng.choice(misses)
    return rng.choice(spell), value, rng.choice(spell), rf"{p}{q:+d}\sqrt{{{r}}}", p + q * sqrt(r)


def _pi(rng: random.Random) -> Made:
    a, b = rng.randint(1, 12), rng.randint(2, 12)
    value = Rational(a, b) * pi
    spell = [
        rf"\frac{{{a}\pi}}{{{b}}}",
        rf"\frac{{{a}}}{{{b}}}\pi",
        f"{a}*pi/{b}",
        f"{a}pi/{b}",
        f"{a}π/{b}",
        rf"{a}\pi/{b}",
        rf"\dfrac{{{2 * a}\mathrm{{\pi}}}}{{{2 * b}}}",
    ]
    p, q = rng.choice(((a + 1, b), (a, b + 1), (-a, b), (a, 3 * b)))
    return rng.choice(spell), value, rng.choice(spell), rf"\frac{{{p}\pi}}{{{q}}}", Rational(p, q) * pi


NUMBERS: dict[str, Callable[[random.Random], Made]] = {
    "integer": _integer,
    "decimal": _decimal,
    "scientific": _scientific,
    "fraction": _fraction,
    "mixed number": _mixed,
    "percentage": _percent,
    "repeating decimal": _repeating,
    "surd": _surd,
    "multiple of pi": _pi,
}
