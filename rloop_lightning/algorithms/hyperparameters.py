"""Hyper-parameters that are checked when a module is made, so that all wrong ones can be told at once."""

from __future__ import annotations

from typing import Any, Self

from rloop_lightning.system.fields import wrong_values


class CheckedHyperparameters:
    """Checks the arguments of `__init__`: single values by their types, and rules between arguments by `require`.

    It is apart from PolicyModule because the command line takes the arguments of a class from its `__new__`, if it has
    one.
    """

    flag = "--algo"
    """The command line's name for this kind of module, for messages."""

    _invalid: list[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        module = super().__new__(cls)
        # Past torch's own __setattr__, which wants its __init__ first.
        module.__dict__["_invalid"] = wrong_values(cls, kwargs, cls.flag)
        return module

    def require(self, holds: bool, name: str, what: str, got: object) -> None:
        """Refuse a hyper-parameter unless it goes with the others."""
        if not holds:
            self.refuse(name, what, got)

    def refuse(self, name: str, what: str, got: object) -> None:
        """Note what is wrong with a hyper-parameter."""
        self._invalid.append(f"{self.flag}.{name} {what}, got {got}")

    def invalid(self) -> list[str]:
        """What is wrong with the hyper-parameters, one message each."""
        return self._invalid
