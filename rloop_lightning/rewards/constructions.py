r"""The constructions of the grammar that have rules of their own: roots, functions, sums, matrices.

Each function is called behind the command's token, and returns the expression with its arguments.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from rloop_lightning.rewards import nodes
from rloop_lightning.rewards.nodes import Node
from rloop_lightning.rewards.symbolic import number
from rloop_lightning.rewards.tokens import FUNCTIONS, Token, UnreadableError

if TYPE_CHECKING:
    from rloop_lightning.rewards.grammar import Parser

MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix", "array"})
_MAX_ENTRIES = 400
_MAX_TERMS = 200  # of a sum or a product with numeric bounds
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}


def root(parser: Parser) -> Node:
    degree = None
    if parser.takes("["):
        degree = parser.bracket("[")
    token = parser.here
    if token is not None and token.kind == "number" and len(token.text) > 1:
        raise UnreadableError(r"the argument of \sqrt")
    radicand = parser.argument()
    if degree is None or degree.value is None or degree.value.denominator != 1 or degree.value % 2 == 0:
        return nodes.root(radicand, degree)
    return _odd_root(radicand, degree)


def _odd_root(radicand: Node, degree: Node) -> Node:
    """The real root, of negative numbers too; the principal one of a complex number."""
    if radicand.names and not radicand.is_matrix and not _IMAGINARY.search(radicand.latex):
        # r |r|^(1/n - 1) is r^(1/n) with the sign of r.
        exponent = nodes.divide(nodes.add(nodes.rational(Fraction(1)), degree, "-"), degree)
        return nodes.multiply(radicand, nodes.power(nodes.bracketed("|", radicand, "|"), exponent))
    value = None if radicand.is_matrix or radicand.names else _number(radicand)
    if value is not None and value < 0:
        return nodes.negative(nodes.root(nodes.negative(radicand), degree))
    return nodes.root(radicand, degree)


def _number(node: Node) -> Fraction | None:
    with contextlib.suppress(UnreadableError):
        return number(node)
    return None


def function(parser: Parser, function: str) -> Node:
    exponent = base = None
    while parser.sees("_", "^"):
        if parser.next().text == "_":
            base = parser.exponent() if not parser.sees("{") else parser.argument()
            continue
        exponent = parser.exponent()
    if exponent is not None and exponent.value == -1:
        if function not in _INVERSE:
            raise UnreadableError(rf"\{function}^{{-1}}")
        function, exponent = _INVERSE[function], None
    argument = _function_argument(parser)
    if function == "exp":
        node = nodes.power(nodes.name("e"), argument)
    elif base is not None:
        if function != "log":
            raise UnreadableError(rf"an index of \{function}")
        node = nodes.built(rf"\log_{{{base.latex}}}({argument.latex})", nodes.ATOM, base, argument, nested=True)
    else:
        node = nodes.applied("log" if function == "lg" else function, argument)
    return nodes.power(node, exponent) if exponent is not None else node


def _function_argument(parser: Parser) -> Node:
    if parser.sees("(", "{", "["):
        return parser.bracket(parser.next().text)
    node = parser.signed()
    while parser.begins_factor() and parser.here is not None and parser.here.text not in FUNCTIONS:
        if parser.here.kind == "number" or parser.sees("("):
            raise UnreadableError("the argument of a function without brackets")
        node = nodes.multiply(node, parser.power())
    return node


def series(parser: Parser, command: str) -> Node:
    parser.expect("_")
    parser.expect("{")
    index = parser.next()
    if index.kind != "name":
        raise UnreadableError(f"the index of a {command}")
    variable = nodes.name(index.text if index.text not in nodes.CONSTANTS else rf"\index {index.text}")
    parser.expect("=")
    first = parser.bracket("{")
    parser.expect("^")
    last = parser.exponent()
    parser.indices.append(index.text)
    body = parser.product()
    parser.indices.pop()
    if first.value is None or last.value is None:
        if not (first.names | last.names):
            raise UnreadableError(f"the bounds of a {command}")
    elif last.value - first.value > _MAX_TERMS:
        raise UnreadableError(f"a {command} of more than {_MAX_TERMS} terms")
    latex = rf"\{command}_{{{variable.latex}={first.latex}}}^{{{last.latex}}} ({body.latex})"
    node = nodes.built(latex, nodes.SUM, first, last, body, nested=True)
    # A sum in a sum has the product of their numbers of terms.
    return replace(node, names=node.names - variable.names, height=max(node.height, nodes.MAX_HEIGHT - 2))


def matrix(parser: Parser, environment: str) -> Node:
    rows: list[list[list[Token]]] = [[[]]]
    while True:
        token = parser.next()
        if token.text == f"end {environment}":
            break
        if token.text.startswith(("begin ", "end ")):
            raise UnreadableError("a matrix in a matrix")
        if token.text == r"\\":
            rows.append([[]])
        elif token.text == "&":
            rows[-1].append([])
        else:
            rows[-1][-1].append(token)
    if rows[-1] == [[]]:
        rows.pop()
    if len({len(row) for row in rows}) != 1 or sum(map(len, rows)) > _MAX_ENTRIES:
        raise UnreadableError("the shape of a matrix")
    return nodes.matrix([[parser.other(entry) for entry in row] for row in rows])
