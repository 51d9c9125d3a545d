"""The arguments of a class, read from its source: names, defaults and documentation, without importing it.

`rloop-fit --help` shows them. Importing the classes would import torch, which takes seconds.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import docstring_parser


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()
"""The default of an argument that must be given."""


@dataclass(frozen=True)
class Declared:
    """An argument of a class.

    Args:
        default: its default; `REQUIRED` if it has none. A default that is no literal or constant is its source text.
        help: its entry in the docstring; empty if there is none.
    """

    default: Any
    help: str


@dataclass(frozen=True)
class DeclaredClass:
    """A class as its source declares it.

    Args:
        summary: first paragraph of the docstring.
        own: arguments that the class declares itself, by name.
        arguments: all arguments, including inherited ones, the class's own first.
    """

    summary: str
    own: Mapping[str, Declared]
    arguments: Mapping[str, Declared]


def declared_class(path: str) -> DeclaredClass | None:
    """A class by its import path; None if its source can't be found or read."""
    module, _, name = path.rpartition(".")
    found = _definition(module, name)
    if found is None:
        return None
    module, node = found
    documentation = docstring_parser.parse(ast.get_docstring(node) or "")
    texts = {entry.arg_name: " ".join((entry.description or "").split()) for entry in documentation.params}
    own = {
        argument: Declared(REQUIRED if default is None else _value(module, default), texts.get(argument, ""))
        for argument, default in _declarations(node)
    }
    inherited: dict[str, Declared] = {}
    for base in _bases(module, node):
        inherited = {**base.arguments, **inherited}
    arguments = {name: _documented(own[name], inherited.get(name)) for name in own}
    arguments |= {name: argument for name, argument in inherited.items() if name not in own}
    summary = documentation.short_description or ""
    return DeclaredClass(" ".join(summary.split()), {name: arguments[name] for name in own}, arguments)


def _documented(argument: Declared, inherited: Declared | None) -> Declared:
    return Declared(argument.default, argument.help or (inherited.help if inherited else ""))


def _declarations(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None]]:
    """Names and defaults of the arguments of `__init__`, or of a dataclass's fields."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            given = statement.args
            positional = [*given.posonlyargs, *given.args][1:]
            defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults]
            for argument, default in zip(
                [*positional, *given.kwonlyargs], [*defaults, *given.kw_defaults], strict=True
            ):
                yield argument.arg, default
            return
    if node.decorator_list:
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                yield statement.target.id, statement.value


def _bases(module: str, node: ast.ClassDef) -> Iterator[DeclaredClass]:
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := declared_class(f"{module}.{base.id}")):
            yield found


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """A class's definition and its module, which may differ from the one that imports it."""
    tree = _tree(module)
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return module, statement
        if isinstance(statement, ast.ImportFrom) and not statement.level and statement.module:
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _definition(statement.module, alias.name)
    return None


def _value(module: str, node: ast.expr) -> Any:
    """The value of a default: a literal, or a constant of the module or of one that it is imported from."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        constant = _constant(module, node.id) if isinstance(node, ast.Name) else None
        return ast.unparse(node) if constant is None else _value(*constant)


def _constant(module: str, name: str) -> tuple[str, ast.expr] | None:
    tree = _tree(module)
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign) and any(
            isinstance(to, ast.Name) and to.id == name for to in statement.targets
        ):
            return module, statement.value
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if statement.target.id == name and statement.value is not None:
                return module, statement.value
        elif isinstance(statement, ast.ImportFrom) and not statement.level and statement.module:
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _constant(statement.module, alias.name)
    return None


@cache
def _tree(module: str) -> ast.Module | None:
    """The syntax tree of a module; None if it has no readable source. A package is not imported to find it."""
    origin = _origin(module)
    if origin is None:
        return None
    try:
        return ast.parse(origin.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


def _origin(module: str) -> Path | None:
    """The source file of a module. `importlib.util.find_spec` would import its packages, which may import torch."""
    top, *rest = module.split(".")
    if not top:
        return None
    spec = importlib.util.find_spec(top) if top not in sys.modules else sys.modules[top].__spec__
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        file = Path(folder, *rest)
        for candidate in (file.with_suffix(".py"), file / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None
