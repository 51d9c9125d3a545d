"""Compares equations and inequalities, and turns an inequality in one variable into its interval."""

from __future__ import annotations

import re

from rloop_lightning.rewards import nodes
from rloop_lightning.rewards.symbolic import equal, proportional
from rloop_lightning.rewards.values import Group, Relation, Scalar, Union

_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}
INFINITY = Scalar(nodes.Node(r"\infty"))
MINUS_INFINITY = Scalar(nodes.Node(r"-\infty", nodes.SUM))
REALS = Scalar(nodes.name(r"\mathbb{R}"))

_LETTERS = re.compile(r"x_\{\d+\}(?:\+x_\{\d+\})+")

Pair = tuple[str, nodes.Node, nodes.Node]  # a relation, `<`, `<=`, `!=` or `=`, between two sides


def equal_relations(gold: Relation, answer: Relation) -> bool:
    """Whether every part of one is a part of the other, up to a factor: `2x > 6` is `3 < x`, `x^2 + y^2 = 4` is
    `x^2 + y^2 - 4 = 0`."""
    golds, answers = _pairs(gold), _pairs(answer)
    if golds is None or answers is None or len(golds) != len(answers):
        return False
    for pair in golds:
        found = next((other for other in answers if _same_pair(pair, other)), None)
        if found is None:
            return False
        answers.remove(found)
    return True


def _pairs(relation: Relation) -> list[Pair] | None:
    sides = list(relation.sides)
    if relation.name:
        if not relation.name.isidentifier() or len(relation.name) > 1:
            return None
        sides[0] = Scalar(nodes.name(relation.name))
    scalars = [side for side in sides if isinstance(side, Scalar)]
    if len(scalars) != len(sides) or any(side.unit or side.percent for side in scalars):
        return None
    pairs = []
    for sign, left, right in zip(relation.signs, scalars, scalars[1:], strict=False):
        first, second = (right, left) if sign in (">", ">=") else (left, right)
        pairs.append((sign if sign in ("=", "!=") else sign.replace(">", "<"), first.node, second.node))
    return pairs


def _same_pair(gold: Pair, answer: Pair) -> bool:
    if gold[0] != answer[0]:
        return False
    if equal(gold[1], answer[1]) and equal(gold[2], answer[2]):
        return True
    return proportional(gold[1:], answer[1:], positive=gold[0] not in ("=", "!="))


def is_asked_sum(relation: Relation) -> bool:
    """Whether the relation gives the value of a sum of letters, as contests ask for it: `m + n = 7`."""
    left = relation.sides[0]
    return relation.signs == ("=",) and isinstance(left, Scalar) and bool(_LETTERS.fullmatch(left.node.latex))


def excluded(relation: Relation) -> Scalar | None:
    r"""3 of `x \ne 3`; None if the relation is another one."""
    sides = [side for side in relation.sides if isinstance(side, Scalar)]
    if relation.signs != ("!=",) or len(sides) != 2:
        return None
    named = [_is_variable(side) for side in sides]
    return None if all(named) or not any(named) else sides[named.index(False)]


def intervals(relation: Relation) -> Group | Union | None:
    r"""The set of an inequality in one variable: an interval, two for an absolute value, the line less 3 for `x \ne 3`.

    None if the relation is another one.
    """
    if (point := excluded(relation)) is not None:
        return Union((REALS, Group("{", "}", (point,))), without=True)
    sides = [side for side in relation.sides if isinstance(side, Scalar)]
    if len(sides) != len(relation.sides) or set(relation.signs) & {"=", "!="}:
        return None
    signs = list(relation.signs)
    if signs[0] in (">", ">="):
        signs, sides = [_TURNED[sign] for sign in reversed(signs)], sides[::-1]
    if any(sign in (">", ">=") for sign in signs):
        return None
    if len(sides) == 2:
        if _is_variable(sides[0]):
            return _interval(MINUS_INFINITY, "<", sides[0], signs[0], sides[1])
        return _interval(sides[0], signs[0], sides[1], "<", INFINITY) if _is_variable(sides[1]) else None
    if len(sides) != 3:
        return None
    low, middle, high = sides
    if _is_variable(middle):
        return _interval(low, signs[0], middle, signs[1], high)
    if middle.node.latex.startswith("|x_") and len(middle.node.names) == 1 and middle.node.latex.count("x_") == 1:
        upper = _interval(low, signs[0], middle, signs[1], high)
        turned = [Scalar(nodes.negative(side.node)) for side in (high, low)]
        return Union((_interval(turned[0], signs[1], middle, signs[0], turned[1]), upper))
    return None


def _is_variable(side: Scalar) -> bool:
    return len(side.node.names) == 1 and side.node.level == nodes.ATOM and side.node.latex.startswith("x_")


def _interval(low: Scalar, left: str, _: Scalar, right: str, high: Scalar) -> Group:
    return Group("[" if left == "<=" else "(", "]" if right == "<=" else ")", (low, high))
