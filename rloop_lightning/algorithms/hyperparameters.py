"""Checks of hyper-parameters at construction, which collect all errors so that they are reported at once."""

from __future__ import annotations

from typing import Any, Self

from rloop_lightning.system.fields import wrong_values


class CheckedHyperparameters:
    """Checks the arguments of `__init__`: single values by type, rules between arguments by `require`.

    This class is separate from PolicyModule because the command line reads a class's arguments from its own `__new__`
    if it defines one.
    """

    flag = "--algo"
    """The flag of this kind of module, used in messages."""

    _invalid: list[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        module = super().__new__(cls)
        # Bypass nn.Module.__setattr__, which requires that nn.Module.__init__ has run.
        module.__dict__["_invalid"] = wrong_values(cls, kwargs, cls.flag)
        return module

    def require(self, holds: bool, name: str, what: str, got: object) -> None:
        """Refuse a hyper-parameter unless the rule `holds`."""
        if not holds:
            self.refuse(name, what, got)

    def refuse(self, name: str, what: str, got: object) -> None:
        """Record an error about a hyper-parameter."""
        self._invalid.append(f"{self.flag}.{name} {what}, got {got}")

    def invalid(self) -> list[str]:
        """The recorded errors, one message each."""
        return self._invalid
