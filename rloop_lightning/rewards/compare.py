"""Compares what a gold answer and an answer are read as (values.py). What neither rule calls equal is different."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from rloop_lightning.rewards import labels, nodes
from rloop_lightning.rewards.numbers import equal_numbers
from rloop_lightning.rewards.real_sets import canonical, variable
from rloop_lightning.rewards.relations import equal_relations, intervals, is_asked_sum
from rloop_lightning.rewards.symbolic import equal, number
from rloop_lightning.rewards.tokens import Number
from rloop_lightning.rewards.units import agree
from rloop_lightning.rewards.values import BaseNumber, Choice, Group, Reading, Relation, Scalar, Text, Union, Value

_MAX_ITEMS = 200
_SPACES = re.compile(r"\s*([\\{}])\s*")


def matches(gold: Reading, answer: Reading) -> bool:
    """Whether one meaning of the answer is one meaning of the gold answer."""
    if gold.text and gold.text == answer.text:
        return True
    if "{" in gold.text and "{" in answer.text and _squeezed(gold.text) == _squeezed(answer.text):
        return True
    if any(same(one, other) for one in gold.values for other in answer.values):
        return True
    return _same_products(gold, answer) or _same_products(answer, gold)


def _same_products(words: Reading, formula: Reading) -> bool:
    """Whether words such as `nRT` are the product that a formula is: of two words, none is a product of letters."""
    if any(isinstance(value, (Text, Choice)) for value in formula.values):
        return False
    return any(same(one, other) for one in words.products for other in formula.values)


def _squeezed(text: str) -> str:
    """The text without the spaces beside commands and braces, which mean nothing there."""
    return _SPACES.sub(r"\1", text)


def same(gold: Value, answer: Value) -> bool:
    """Whether a value of the gold answer and one of an answer are equal."""
    if isinstance(gold, Choice) or isinstance(answer, Choice):
        return _same_choice(gold, answer)
    if isinstance(gold, Text) or isinstance(answer, Text):
        return gold == answer
    if isinstance(gold, BaseNumber) or isinstance(answer, BaseNumber):
        return gold == answer
    if isinstance(gold, Scalar) and isinstance(answer, Scalar):
        return _same_scalar(gold, answer)
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _same_relation(gold, answer)
    about = [variable(value.items) if isinstance(value, Group) else "" for value in (gold, answer)]
    if all(about) and about[0] != about[1]:
        return False
    gold, answer = canonical(gold), canonical(answer)
    if isinstance(gold, Union) or isinstance(answer, Union):
        return _same_union(gold, answer)
    return _same_group(gold, answer)


def _same_choice(gold: Value, answer: Value) -> bool:
    if isinstance(gold, Choice) and isinstance(answer, Choice):
        if gold.lower or gold.letter != answer.letter:
            return gold.lower and answer.lower and gold.letter == answer.letter
        return not gold.content or not answer.content or _any_same(gold.content, answer.content)
    if isinstance(gold, Choice):
        return bool(gold.content) and _any_same(gold.content, (answer,))
    return isinstance(answer, Choice) and bool(answer.content) and _any_same((gold,), answer.content)


def _any_same(golds: Sequence[Value], answers: Sequence[Value]) -> bool:
    return any(same(gold, answer) for gold in golds for answer in answers)


def _same_scalar(gold: Scalar, answer: Scalar) -> bool:
    if not agree(gold.unit, answer.unit) or any(_is_other_unit(*pair) for pair in ((gold, answer), (answer, gold))):
        return False
    if _same_node(gold.node, answer.node):
        return True
    if gold.percent == answer.percent:
        return False
    hundredth = nodes.rational(Fraction(1, 100))
    percentage, plain = (gold.node, answer.node) if gold.percent else (answer.node, gold.node)
    if percentage.value is None:
        return _same_node(nodes.multiply(percentage, hundredth), plain)
    literal = percentage.literal
    if literal is not None:
        literal = Number(literal.value / 100, literal.decimal, literal.digits, literal.unit / 100)
    return _same_node(nodes.rational(percentage.value / 100, literal), plain)


def _is_other_unit(percentage: Scalar, other: Scalar) -> bool:
    return percentage.percent and not other.percent and bool(other.unit)


def _same_node(gold: nodes.Node, answer: nodes.Node) -> bool:
    if gold.latex == answer.latex:
        return True
    if gold.is_matrix != answer.is_matrix:
        return False
    if gold.matrix is not None and answer.matrix is not None:
        if nodes.shape(gold) != nodes.shape(answer):
            return False
        pairs = [pair for rows in zip(gold.matrix, answer.matrix, strict=True) for pair in zip(*rows, strict=True)]
        return all(_same_node(one, other) for one, other in pairs)
    decimal = [node.literal is not None and node.literal.decimal for node in (gold, answer)]
    if any(decimal) and not (gold.names or answer.names):
        one, other = number(gold), number(answer)
        return one is not None and other is not None and equal_numbers(one, gold.literal, other, answer.literal)
    return equal(gold, answer)


def _same_relation(gold: Value, answer: Value) -> bool:
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        if gold.name and answer.name and gold.name == answer.name and same(gold.sides[-1], answer.sides[-1]):
            return True
        points = labels.coordinates(gold), labels.coordinates(answer)
        if any(point is not value.sides[-1] for point, value in zip(points, (gold, answer), strict=True)):
            return same(*points) and gold.name[:1] == answer.name[:1]  # (x, y) = (1, 2), but not A = (1, 2)
        return equal_relations(gold, answer)
    if isinstance(gold, Relation):
        if gold.name:
            named = isinstance(answer, Group) and any(labels.names(answer.items))
            return same(labels.coordinates(gold) if named else gold.sides[-1], answer)  # (m, b) = (1, 2) is (1, 2)
        found = intervals(gold)
        return found is not None and isinstance(answer, (Group, Union)) and same(found, answer)
    if isinstance(answer, Relation):
        if answer.name:
            return same(gold, labels.coordinates(answer))
        if is_asked_sum(answer):
            return isinstance(gold, Scalar) and gold.node.value is not None and same(gold, answer.sides[1])
        found = intervals(answer)
        return found is not None and isinstance(gold, (Group, Union)) and same(gold, found)
    return False


def _same_union(gold: Value, answer: Value) -> bool:
    if not isinstance(gold, Union) or not isinstance(answer, Union) or gold.without != answer.without:
        return False
    if gold.without:
        return all(same(one, other) for one, other in zip(gold.pieces, answer.pieces, strict=False))
    return _unordered(gold.pieces, answer.pieces, same)


def _same_group(gold: Value, answer: Value) -> bool:
    if isinstance(gold, Scalar) or isinstance(answer, Scalar):
        # {5} is 5, and so is the list 1/2, 0.5; (5, 6) and (5, 5) are not 5.
        group, single = (gold, answer) if isinstance(gold, Group) else (answer, gold)
        if not isinstance(group, Group) or group.opening not in ("{", "") or not group.items:
            return False
        if len(set(labels.names(group.items))) > 1:
            return False  # x = 5, y = 5
        return all(same(item, single) for item in group.items)
    if not isinstance(gold, Group) or not isinstance(answer, Group):
        return False
    kinds = {gold.opening + gold.closing, answer.opening + answer.closing}
    if kinds <= {"", "{}"}:
        return _same_lists(tuple(dict.fromkeys(gold.items)), tuple(dict.fromkeys(answer.items)))
    if len(gold.items) != len(answer.items):
        return False
    bare = kinds == {"", "()"} or (kinds == {"", "[]"} and len(gold.items) != 2)
    return (bare or len(kinds) == 1) and _same_places(gold.items, answer.items)


def _same_places(golds: Sequence[Value], answers: Sequence[Value]) -> bool:
    """Whether the items are the same in order; those with names are in the order of their names."""
    if labels.are_named(golds) and labels.are_named(answers):
        return sorted(labels.names(golds)) == sorted(labels.names(answers)) and _unordered(golds, answers, same)
    if any(any(labels.names(items)) and not labels.are_named(items) for items in (golds, answers)):
        return False  # x = 1, x = 2 is no point
    return _ordered(labels.values(labels.by_name(golds)), labels.values(labels.by_name(answers)))


def _same_lists(golds: Sequence[Value], answers: Sequence[Value]) -> bool:
    if len(golds) != len(answers):
        return False
    names, others = labels.names(golds), labels.names(answers)
    if len(set(names)) == 1 and names[0] and labels.are_roots(answers, names[0]):
        return _unordered(labels.values(golds), labels.values(answers), same)
    # x = 1, y = 2 is 1, 2 in this order, and so is 1 cm, 2 kg; x = 1, x = 2 is a set.
    if labels.are_named(golds) or labels.are_named(answers):
        return _same_places(golds, answers)
    if any(map(labels.units_differ, (golds, answers))) and not all(map(labels.all_have_units, (golds, answers))):
        return _ordered(labels.values(golds), labels.values(answers))
    heads = {name.partition("(")[0] for name in (*names, *others) if name}
    return len(heads) <= 1 and _unordered(labels.values(golds), labels.values(answers), same)


def _ordered(golds: Sequence[Value], answers: Sequence[Value]) -> bool:
    return all(same(gold, answer) for gold, answer in zip(golds, answers, strict=True))


def _unordered(golds: Sequence[Value], answers: Sequence[Value], equal: Callable[[Value, Value], bool]) -> bool:
    if len(golds) != len(answers) or len(golds) > _MAX_ITEMS:
        return False
    left = list(answers)
    for gold in golds:
        found = next((i for i, answer in enumerate(left) if equal(gold, answer)), None)
        if found is None:
            return False
        del left[found]
    return True
