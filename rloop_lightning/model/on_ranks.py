"""Functions of a policy that all ranks of a job call together if its weights are sharded, since they gather weights.

on_ranks(ranks, policy, Policy.save, folder)    # on rank 0; the others serve an `OnPolicy`
announce(ranks, policy, function)               # the same, for a caller that does the work of `function` itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import is_sharded
from rloop_lightning.system.ranks import Ranks

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class OnPolicy:
    """Tells the ranks to call a function with their policy and rank 0's arguments. Rank 0 alone reads and writes files.

    Args:
        function: of a module, so that all ranks have it.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    def call(self, policy: Policy) -> None:
        self.function(policy, *self.arguments, **self.options)


def announce(
    ranks: Ranks,
    policy: Policy,
    function: Callable[Concatenate[Policy, P], Any],
    *arguments: P.args,
    **options: P.kwargs,
) -> None:
    """Have the other ranks call a function with the policy if it is sharded. The caller does its work, too."""
    if is_sharded(policy):
        ranks.send(OnPolicy(function, arguments, options))


def on_ranks(
    ranks: Ranks,
    policy: Policy,
    function: Callable[Concatenate[Policy, P], T],
    *arguments: P.args,
    **options: P.kwargs,
) -> T:
    """Call a function with the policy, and have the other ranks call it if the policy is sharded.

    Raises:
        As the function.
    """
    announce(ranks, policy, function, *arguments, **options)
    return function(policy, *arguments, **options)
