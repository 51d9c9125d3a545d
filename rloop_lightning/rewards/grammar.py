r"""Parses tokens into one expression (nodes.py). Every token must be used; what doesn't fit is unreadable.

    sum      := product (("+" | "-") product)*
    product  := signed (("*" | "/" | nothing) signed)*
    signed   := ("-" | "+")* power
    power    := postfix ("^" exponent)?
    postfix  := atom ("!" | "%" | degrees)*
    atom     := number | name | "(" sum ")" | "|" sum "|" | \frac | \sqrt | function | \binom | \sum | matrix | ...

Nothing between two factors means their product, but two numbers side by side are one mixed number or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import reduce

from rloop_lightning.rewards import nodes
from rloop_lightning.rewards.constructions import MATRICES, function, matrix, root, series
from rloop_lightning.rewards.cursor import CLOSING, Cursor
from rloop_lightning.rewards.nodes import Node
from rloop_lightning.rewards.tokens import FUNCTIONS, Number, Token, UnreadableError

_MAX_DEPTH = 40
_APPLIED = frozenset("fghFGH")  # f(x) is one name
_DEGREE = nodes.divide(nodes.name(r"\pi"), nodes.rational(Fraction(180)))


def parse(tokens: Sequence[Token]) -> Node:
    """The expression that all of `tokens` make up. Raises UnreadableError."""
    parser = Parser(tokens)
    node = parser.chosen()
    if parser.here is not None:
        raise UnreadableError(f"{parser.here.text[:20]!a} behind an expression")
    return node


class Parser(Cursor):
    """Parses the tokens at its cursor."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        super().__init__(tokens)
        self.depth = 0
        self.indices: list[str] = []  # of the sums that are open
        self.bars = 0  # open absolute values since the last bracket

    def other(self, tokens: Sequence[Token]) -> Node:
        """The expression that `tokens`, a part of this one, make up."""
        return parse(tokens)

    def chosen(self) -> Node:
        r"""A sum, or the binomial coefficient of two: `10 \choose 3` takes all that its braces hold."""
        node = self.sum()
        if self.here is not None and self.here.kind == "command" and self.here.text == "choose":
            self.next()
            return nodes.binomial(node, self.sum())
        return node

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise UnreadableError(f"more than {_MAX_DEPTH} levels of brackets")
        node = self.product()
        while self.sees("+", "-"):
            sign = self.next().text
            node = nodes.add(node, self.product(), sign)
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            last = self.tokens[self.position - 1]
            if self.takes("*"):
                node = nodes.multiply(node, self.signed())
            elif self.takes("/"):
                node = nodes.divide(node, self.signed())
            elif self.begins_factor():
                raised = (last.text == "}" and self._closes_exponent()) or self._follows_exponent()
                if self.here is not None and self.here.kind == "number" and not (raised or self._begins_power(last)):
                    raise UnreadableError("a number behind another factor, without a sign between them")
                node = nodes.multiply(node, self.power())
            else:
                return node

    def _follows_exponent(self) -> bool:
        before = self.tokens[self.position - 2] if self.position >= 2 else None
        return before is not None and before.text == "^" and bool(self.here and self.here.spaced)

    def _begins_power(self, last: Token) -> bool:
        """Whether the number here is the base of a power behind a name or a bracket: n2^{n-1}, but not x_1 2."""
        above = self.ahead(1)
        return (
            above is not None and above.text == "^" and (last.kind in ("name", "word") or last.text in (")", "}", "!"))
        )

    def _closes_exponent(self) -> bool:
        depth = 0
        for i in range(self.position - 1, -1, -1):
            depth += {"}": 1, "{": -1}.get(self.tokens[i].text, 0)
            if depth == 0:
                return i > 0 and self.tokens[i - 1].text == "^"
        return False

    def begins_factor(self) -> bool:
        token = self.here
        if token is None or token.kind in ("join", "text"):
            return False
        if token.kind == "command":
            return token.text not in ("pm", "mp", "rfloor", "rceil", "choose") and not token.text.startswith("end ")
        return token.kind != "sign" or token.text in "([{" or (token.text == "|" and self.bars == 0)

    def signed(self) -> Node:
        signs = 0
        while self.sees("-", "+"):
            signs += self.next().text == "-"
        node = self.power()
        return nodes.negative(node) if signs % 2 else node

    def power(self) -> Node:
        start = self.position
        base = self.postfix()
        single = self.position == start + 1
        if not self.takes("^"):
            return base
        exponent = self.exponent()
        if self.sees("^"):
            raise UnreadableError("an exponent of an exponent without brackets")
        if (
            base.value is not None
            and base.value.denominator != 1
            and not single
            and self.tokens[start].kind == "number"
        ):
            raise UnreadableError("a power of a mixed number")
        node = nodes.power(base, exponent)
        while self.takes("!"):
            node = nodes.factorial(node)
        return node

    def exponent(self) -> Node:
        negative = self.takes("-")
        if not negative:
            self.takes("+")
        token = self.here
        if token is not None and token.number is not None:  # what follows the number is behind the power: 10^2 5
            self.position += 1
            node = nodes.rational(token.number.value)
        else:
            node = self.postfix()
        return nodes.negative(node) if negative else node

    def postfix(self) -> Node:
        node = self.atom()
        while True:
            if self.takes("!"):
                node = nodes.factorial(node, 2 if self.takes("!") else 1)
            elif self.takes("%"):
                node = nodes.divide(node, nodes.rational(Fraction(100)))
            elif self.takes("degree"):
                node = nodes.multiply(node, _DEGREE)
            else:
                return node

    def atom(self) -> Node:
        token = self.next()
        if token.kind == "number":
            return self._number(token)
        if token.kind == "name":
            return self._name(token.text)
        if token.kind == "word" and len(token.text) <= 4:
            return self._letters(token.text)
        if token.kind == "command":
            return self._command(token.text)
        if token.text in CLOSING and token.kind == "sign":
            return self.bracket(token.text)
        if token.text == "|" and token.kind == "sign":
            self.bars += 1
            node = self.sum()
            self.expect("|")
            self.bars -= 1
            return nodes.bracketed("|", node, "|")
        raise UnreadableError(f"{token.text[:20]!a}")

    def _letters(self, word: str) -> Node:
        """The product of letters; an index or an exponent belongs to the last one: mv_0^2."""
        factors = [*map(nodes.name, word[:-1]), self._name(word[-1])]
        if self.takes("^"):
            factors[-1] = nodes.power(factors[-1], self.exponent())
        return reduce(nodes.multiply, factors)

    def bracket(self, opening: str) -> Node:
        bars, self.bars = self.bars, 0
        node = self.chosen() if opening == "{" else self.sum()
        self.expect(CLOSING[opening])
        self.bars = bars
        return node if opening == "{" else replace(node, literal=None)

    def _number(self, token: Token) -> Node:
        literal = token.number
        assert literal is not None
        node = nodes.rational(literal.value, literal)
        if self.here is None or literal.decimal or literal.value.denominator != 1:
            return node
        if self.here.kind == "number":
            part = self._plain_fraction()
        elif self.here.text == "frac" and self._numeric_fraction():
            self.next()
            part = self._fraction().value
        else:
            return node
        if part is None or not 0 < part < 1:
            raise UnreadableError("numbers side by side")
        return nodes.rational(literal.value + part)

    def _plain_fraction(self) -> Fraction | None:
        """The value of `1/2` if it comes next, after a space: `2 1/2`."""
        first, slash, second = self.here, self.ahead(1), self.ahead(2)
        if first is None or slash is None or second is None or slash.text != "/" or not first.spaced:
            return None
        if first.number is None or second.number is None or first.number.decimal or second.number.decimal:
            return None
        self.position += 3
        return first.number.value / second.number.value if second.number.value else None

    def _numeric_fraction(self) -> bool:
        r"""Whether `\frac{1}{2}` with integers comes next."""
        shape = [token.text if token.kind != "number" else "#" for token in self.tokens[self.position + 1 :][:6]]
        return shape[:6] == ["{", "#", "}", "{", "#", "}"] or "#" in shape[:1] or shape[:4] == ["{", "#", "}", "#"]

    def _name(self, text: str) -> Node:
        while self.takes("'"):
            text += "'"
        if self.sees("_"):
            self.next()
            below = self.group_text()
            if text in ("C", "A", "P") and below.isdigit() and self.sees("^"):
                self.next()
                above = self.exponent()
                return nodes.binomial(nodes.rational(Fraction(int(below))), above, arranged=text != "C")
            text = f"{text}_{{{below}}}"
        if text.rstrip("'") in _APPLIED and self.sees("("):
            text += "(" + self.group_text() + ")"
        if text in nodes.CONSTANTS and text in self.indices:
            text = rf"\index {text}"  # no imaginary unit
        return nodes.name(text)

    def argument(self) -> Node:
        r"""The argument of a command: a bracket, or one digit or symbol: `\frac12`."""
        if self.takes("{"):
            return self.bracket("{")
        token = self.next()
        if token.kind == "number" and token.text.isdigit():
            if len(token.text) > 1:
                self.position -= 1
                rest = token.text[1:]
                self.tokens[self.position] = Token("number", rest, Number(Fraction(int(rest))))
            return nodes.rational(Fraction(int(token.text[0])))
        if token.kind == "name":
            return nodes.name(token.text)
        if token.text == "(" and token.kind == "sign":
            return self.bracket("(")
        if token.kind == "command" and token.text in ("sqrt", "frac"):
            return self._command(token.text)
        raise UnreadableError(f"the argument {token.text[:20]!a}")

    def _fraction(self) -> Node:
        return nodes.divide(self.argument(), self.argument())

    def _command(self, command: str) -> Node:
        if command == "frac":
            return self._fraction()
        if command == "sqrt":
            return root(self)
        if command == "binom":
            return nodes.binomial(self.argument(), self.argument())
        if command in ("lfloor", "lceil"):
            node = self.sum()
            if self.next().text != "r" + command[1:]:
                raise UnreadableError(rf"a \{command} that is not closed")
            return nodes.bracketed(rf"\{command} ", node, rf"\r{command[1:]} ")
        if command == "abs":
            return nodes.bracketed("|", self.argument(), "|")
        if command in FUNCTIONS:
            return function(self, command)
        if command in ("sum", "prod"):
            return series(self, command)
        if command.startswith("begin ") and command[6:] in MATRICES:
            return matrix(self, command[6:])
        raise UnreadableError(rf"the command \{command}")
