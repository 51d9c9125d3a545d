"""Functions of a policy that all ranks of a job call together if its weights are sharded, since they gather weights.

on_ranks(ranks, policy, Policy.save, folder)    # on rank 0; the others serve an `OnPolicy`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import is_sharded
from rloop_lightning.system.ranks import Ranks


@dataclass(frozen=True)
class OnPolicy:
    """Tells the ranks to call a function with their policy and rank 0's arguments. Rank 0 alone reads and writes files.

    Args:
        function: of a module, so that all ranks have it.
    """

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    def call(self, policy: Policy) -> None:
        self.function(policy, *self.arguments, **self.options)


def on_ranks(ranks: Ranks, policy: Policy, function: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """Call a function with the policy, and have the other ranks call it if the policy is sharded.

    Raises:
        As the function.
    """
    call = OnPolicy(function, arguments, options)
    if is_sharded(policy):
        ranks.send(call)
    call.call(policy)
