"""Import paths of objects, and the names of those that have none."""

from __future__ import annotations

import collections
import functools
import json
from typing import Any

import pytest

from rloop_lightning.system.imports import import_object, import_path, is_unnamed, unnamed


class Here:
    """A class with a path."""

    def method(self) -> None: ...


def local_class() -> type:
    class Local: ...

    return Local


@pytest.mark.parametrize("thing", [json.dumps, collections.Counter], ids=["function", "class"])
def test_a_path_leads_to_its_object(thing: Any) -> None:
    path = import_path(thing)
    assert path is not None
    assert not is_unnamed(path)
    assert import_object(path) is thing


def test_the_path_is_module_and_name() -> None:
    assert import_path(json.dumps) == "json.dumps"


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (lambda: None, f"<function {__name__}.<lambda>>"),
        (Here.method, f"<function {__name__}.Here.method>"),
        (local_class(), f"<object of {__name__}.local_class.<locals>.Local>"),
        (Here(), f"<object of {__name__}.Here>"),
        (functools.partial(json.dumps), "<object of functools.partial>"),
        (3, "<object of builtins.int>"),
    ],
    ids=["lambda", "method", "local class", "object", "partial", "number"],
)
def test_what_no_module_holds_has_no_path(thing: Any, name: str) -> None:
    assert import_path(thing) is None
    assert unnamed(thing) == name
    assert is_unnamed(name)


def test_what_main_defines_has_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Here, "__module__", "__main__")
    assert import_path(Here) is None


@pytest.mark.parametrize("path", ["json", "json.nothing", "no_such_module.f", "..f"])
def test_a_path_that_leads_nowhere_is_a_value_error_that_names_it(path: str) -> None:
    with pytest.raises(ValueError, match=path.replace(".", r"\.")):
        import_object(path)
