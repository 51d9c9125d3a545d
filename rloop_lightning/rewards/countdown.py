"""The countdown reward: 1 if the last `\\boxed{}` uses each given number once and equals the target, else 0.

Only the box counts; the steps before it are not checked. This module checks the numbers, math-verify the value.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache, lru_cache

from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.boxes import last_box
from rloop_lightning.types import Problem

_LATEX_OPERATORS = ((r"\times", "*"), (r"\cdot", "*"), (r"\div", "/"))
_ALLOWED = re.compile(r"[0-9+\-*/() ]*")
_NUMBER = re.compile(r"[0-9]+")
_CHARACTERS_PER_NUMBER = 40  # in a box: the number, an operator, and more parentheses than it can need
_INTEGER = re.compile(r"-?[0-9]{1,18}")


def _value(node: ast.AST) -> Fraction:
    """The exact value of an arithmetic expression. Raises ValueError for anything but + - * / of integers."""
    match node:
        case ast.Expression(body=body):
            return _value(body)
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _value(left) / _value(right)
    raise ValueError(f"no arithmetic: {ast.dump(node)}")


@cache
def _math_verify() -> Callable[[str, int], bool]:
    """math-verify as (expression, target) -> equal. Imported on first use, because it imports sympy."""
    from math_verify import ExprExtractionConfig, parse, verify
    from sympy import Integer  # type: ignore[import-untyped]  # sympy ships no types

    for name in ("math_verify.parser", "math_verify.grader"):
        # The warning asks for a time limit. The bounded length of the expression replaces it.
        logging.getLogger(name).addFilter(lambda record: "Timeout is disabled" not in record.getMessage())
    plain = [ExprExtractionConfig()]  # six times as fast as the LaTeX grammar

    def equal(expression: str, target: int) -> bool:
        # The plain extractor can't start at `((`, so `0+` is prepended. math-verify's time limits use signals, which
        # work only in the main thread, so they are off.
        parsed = parse("0+" + expression, plain, fallback_mode="no_fallback", parsing_timeout=None)
        # Evaluating first makes this a comparison of two integers, which is ten times as fast.
        return bool(verify(Integer(target), [tree.doit() for tree in parsed], timeout_seconds=None))

    return equal


@lru_cache(maxsize=65_536)
def _equals(expression: str, target: int) -> bool:
    return exact_value(expression) == target and _math_verify()(expression, target)


class CountdownReward(Reward):
    """1.0 if the last box is an expression of + - * / that uses each number once and equals the target, else 0.0.

    The numbers must appear as given: no other number, no leading zeros, no sign as part of a number. A value may be
    negated. `\\times`, `\\cdot` and `\\div` are read as operators.
    """

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [self._reward(problem, text) for problem, text in zip(problems, texts, strict=True)]

    def answers(self, texts: Sequence[str]) -> Sequence[str | None]:
        """The expressions in the last boxes, without spaces. Different expressions are different answers."""
        boxes = map(last_box, texts)
        return [None if box is None else box.replace(" ", "") for box in boxes]

    def unusable(self, problems: Sequence[Problem]) -> Mapping[str, str]:
        found = {}
        for problem in problems:
            wrong = []
            if not _INTEGER.fullmatch(problem.answer):
                wrong.append(f"the answer must be an integer, got {problem.answer!r}")
            numbers = problem.metadata.get("numbers")
            if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
                wrong.append(f"metadata `numbers` must list non-negative integers, got {numbers!r}")
            if wrong:
                found[problem.id] = "; ".join(wrong)
        return found

    def right_completions(self, problem: Problem) -> Mapping[str, str]:
        """The expression in the metadata of a built-in problem, in a box."""
        expression = problem.metadata.get("expression")
        return {} if expression is None else {"expression in a box": f"\\boxed{{{expression}}}"}

    def _reward(self, problem: Problem, text: str) -> float:
        expression = boxed_expression(problem, text)
        return 0.0 if expression is None else float(_equals(expression, int(problem.answer)))


def boxed_expression(problem: Problem, text: str) -> str | None:
    """The expression in the last box, without spaces; None if it is not one that uses each given number once."""
    box = last_box(text)
    numbers = problem.metadata["numbers"]
    limit = _CHARACTERS_PER_NUMBER * len(numbers)
    if box is None or len(box) > limit:
        return None
    for latex, operator in _LATEX_OPERATORS:
        box = box.replace(latex, operator)
    # The whitelist and the check of the numbers come first. They accept only + - * / on the few known numbers, of
    # bounded length. Such an expression has no large powers and no names, and math-verify handles it quickly.
    if not _ALLOWED.fullmatch(box) or "**" in box:
        return None
    if sorted(_NUMBER.findall(box)) != sorted(map(str, numbers)):
        return None
    # Drop spaces, except between digits: dropping those would join two numbers.
    return re.sub(r"(?<![0-9]) +| +(?![0-9])", "", box)


def exact_value(expression: str) -> Fraction | None:
    """The exact value of an expression; None if it has none.

    Nor have those that math-verify would accept: `3(4)` and `3 4`, which it reads as the mixed number 7, powers, floor
    division and leading zeros.
    """
    try:
        return _value(ast.parse(expression, mode="eval"))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
