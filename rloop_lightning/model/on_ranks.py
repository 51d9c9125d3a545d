"""Methods of a policy that all ranks of a job call together if its weights are sharded, since they gather weights.

on_ranks(ranks, policy, "save", folder)     # on rank 0; the others serve an `OnPolicy`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import is_sharded
from rloop_lightning.system.ranks import Ranks

Method = Literal["load_weights", "save", "check_finite", "check_logprobs"]


@dataclass(frozen=True)
class OnPolicy:
    """Tells the ranks to call a method of their policy, with rank 0's arguments. Only rank 0 reads and writes files."""

    method: Method
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    def call(self, policy: Policy) -> None:
        getattr(policy, self.method)(*self.arguments, **self.options)


def on_ranks(ranks: Ranks, policy: Policy, method: Method, *arguments: Any, **options: Any) -> None:
    """Call a method of the policy, and have the other ranks call it if the policy is sharded.

    Raises:
        As the method.
    """
    call = OnPolicy(method, arguments, options)
    if is_sharded(policy):
        ranks.send(call)
    call.call(policy)
