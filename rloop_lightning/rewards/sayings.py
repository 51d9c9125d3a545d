r"""Answers in words that have a formula: "no solution" is `\emptyset`, "all real numbers except 3" is `x \ne 3`."""

from __future__ import annotations

import re
from fractions import Fraction

from rloop_lightning.rewards import nodes
from rloop_lightning.rewards.altering import spelled_number
from rloop_lightning.rewards.relations import INFINITY, MINUS_INFINITY, REALS
from rloop_lightning.rewards.values import Group, Scalar, Text, Union, Value

_REALS = re.compile(
    r"(?:the )?(?:set of )?(?:all )?(?:the )?real (?:numbers|values)(?: of [a-z])?|all reals|all real [a-z]"
)
_EXCEPT = re.compile(rf"(?:{_REALS.pattern}),? (?:except|but|other than|besides)(?: for)? ?(?P<holes>.+)")
_HOLE = re.compile(r"(?:[a-z] ?= ?)?(-?\d+)(?: ?/ ?([1-9]\d*))?")
_NOTHING = re.compile(
    r"(?:there (?:is|are) |it has )?no (?:real )?(?:solutions?|roots?)(?: exists?)?|(?:the )?empty set"
)
_UNDEFINED = re.compile(r"(?:it |the limit )?(?:does not exist|doesn't exist)|dne")


def meaning(words: str) -> Value | None:
    """The value that words in lower case stand for; None if they stand for themselves."""
    if _REALS.fullmatch(words):
        return REALS
    if found := _EXCEPT.fullmatch(words):
        holes = [_HOLE.fullmatch(hole) for hole in re.split(r",? and |, ?", found["holes"])]
        points = [_point(hole) for hole in holes if hole]
        return Union((REALS, Group("{", "}", tuple(points))), without=True) if len(points) == len(holes) else None
    if _NOTHING.fullmatch(words):
        return Group("{", "}", ())
    if _UNDEFINED.fullmatch(words):
        return Text("does not exist")
    sign, _, rest = words.rpartition(" ") if words.startswith(("minus ", "negative ")) else ("", "", words)
    if (number := spelled_number(rest)) is not None:
        return Scalar(nodes.rational(Fraction(-number if sign else number)))
    return {"infinity": INFINITY, "positive infinity": INFINITY, "negative infinity": MINUS_INFINITY}.get(words)


def _point(hole: re.Match[str]) -> Scalar:
    return Scalar(nodes.rational(Fraction(int(hole[1]), int(hole[2] or 1))))
