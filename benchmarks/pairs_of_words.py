"""Generators of pairs of choices, words, numbers with units, and numbers in a base, see answer_pairs.py."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.pairs_common import Made, digit_changed


def _choice(rng: random.Random) -> Made:
    letter, other = rng.sample("ABCDE", 2)
    number = rng.randint(1, 99)
    spell = [
        letter,
        f"({letter})",
        rf"\text{{{letter}}}",
        rf"\text{{({letter})}}",
        rf"\textbf{{({letter})}}\ {number}",
        f"{letter}.",
        f"{letter}. {number}",
        letter.lower(),
        rf"\mathrm{{{letter}}}",
        f"{letter})",
        f"({letter}) {number}",
    ]
    miss = rng.choice([t.replace(letter, other) for t in spell if letter in t] + [str(number)])
    return rng.choice((letter, f"({letter})", rf"\text{{{letter}}}")), letter, rng.choice(spell), miss, other


_WORDS = (
    "Monday",
    "Tuesday",
    "even",
    "odd",
    "Evelyn",
    "no solution",
    "yes",
    "no",
    "true",
    "false",
    "hexagon",
    "red",
    "blue",
)


def _words(rng: random.Random) -> Made:
    word, other = rng.sample(_WORDS, 2)
    spell = [word, rf"\text{{{word}}}", word.lower(), word.capitalize(), rf"\textbf{{{word}}}", rf"\mbox{{ {word} }}"]
    misspelled = word[:-1] + rng.choice([c for c in "bdklmnprtvz" if c != word[-1]])
    miss = rng.choice((other, rf"\text{{{other}}}", misspelled))
    return rng.choice((word, rf"\text{{{word}}}")), word, rng.choice(spell), miss, miss


_UNITS = (
    ("cm", r"\text{ cm}", "centimeters"),
    ("m", r"\text{ m}", " meters"),
    ("kg", r"\,\mathrm{kg}", " kilograms"),
    ("km", r"\text{ km}", " kilometers"),
    ("hours", r"\text{ hours}", " hours"),
    ("minutes", r"\text{ minutes}", " minutes"),
    ("dollars", r"\text{ dollars}", " dollars"),
    ("degrees", r"^\circ", " degrees"),
    ("apples", r"\text{ apples}", " apples"),
    ("km/h", r"\text{ km/h}", " km/h"),
    ("m/s", r"\text{ m/s}", " m/s"),
    ("cm^2", r"\text{ cm}^2", " square centimeters"),
    ("cm^3", r"\text{ cm}^3", r"\ \mathrm{cm}^{3}"),
    ("people", r"\text{ people}", " people"),
)


def _unit(rng: random.Random) -> Made:
    value = rng.randint(2, 400)
    (name, *texts), (_, *others) = rng.sample(_UNITS, 2)
    spell = [_with_unit(value, text) for text in texts]
    plain, other = [str(value), f"{value}.0"], rng.choice(others)
    number = digit_changed(rng, value)
    misses = [(spell[0].replace(str(value), str(number), 1), (number, name)), (_with_unit(value, other), (value, "?"))]
    miss, missed = rng.choice(misses)
    return rng.choice(spell), (value, name), rng.choice(spell + plain), miss, missed


def _with_unit(value: int, unit: str) -> str:
    return f"{value}{unit}" if unit[0] in " ^\\" else f"{value} {unit}"


def _several_units(rng: random.Random) -> Made:
    a, b = rng.sample(range(2, 59), 2)
    first, second = rng.choice(((" hours ", " minutes"), (" feet ", " inches"), (" apples and ", " oranges")))
    gold = rf"{a}\text{{{first}}}{b}\text{{{second}}}"
    misses = [
        (rf"{a}\text{{{first}}}{digit_changed(rng, b)}\text{{{second}}}", "?"),
        (rf"{a}\text{{{first}}}", "?"),
        (str(a), "?"),
        (str(b), "?"),
        (rf"{a}\text{{{second}}}", "?"),
        (str(a + b), "?"),
    ]
    miss, missed = rng.choice(misses)
    return gold, (a, b), gold.replace(r"\text{", rng.choice((r"\text{", r"\mbox{", r"\textrm{"))), miss, missed


def _base(rng: random.Random) -> Made:
    base = rng.randint(2, 9)
    digits = "".join(str(rng.randrange(base)) for _ in range(rng.randint(2, 7))).lstrip("0") or "1"
    at = rng.randrange(len(digits))
    changed_digit = str((int(digits[at]) + 1) % base)
    missed = digits[:at] + changed_digit + digits[at + 1 :]
    misses = [
        (f"{missed}_{base}", (missed, base)),
        (digits, (digits, 10)),
        (f"{digits}_{{{base + 1}}}", (digits, base + 1)),
    ]
    miss, other = rng.choice(misses)
    spell = (
        f"{digits}_{base}",
        f"{digits}_{{{base}}}",
        rf"{digits}_{{\text{{{base}}}}}",
        f"{digits}{chr(0x2080 + base)}",
    )
    return spell[0], (digits, base), rng.choice(spell), miss, other


WORDS: dict[str, Callable[[random.Random], Made]] = {
    "choice": _choice,
    "words": _words,
    "unit": _unit,
    "several units": _several_units,
    "number in a base": _base,
}
