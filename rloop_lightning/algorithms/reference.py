"""The reference policy of a KL term."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import copied, copy_weights
from rloop_lightning.types import RolloutBatch, TokenScores

ReferenceKind = Literal["round", "base"]


class Reference(nn.Module):
    """The round's initial policy, as a frozen copy; of a policy with an adapter (LoRA), only the adapter is copied.

    It is sharded as the policy is. It is a submodule of its owner, so checkpoints include it.

    Args:
        policy: the round's initial policy.
        kind: `base` is the model without its adapter instead, which no round changes.

    Raises:
        ValueError: `base`, and the policy has no adapter.
    """

    def __init__(self, policy: Policy, kind: ReferenceKind = "round") -> None:
        super().__init__()
        self.kind = kind
        self._policy = (policy,)  # a tuple, so that nn.Module does not register it as a submodule
        if policy.adapter is None:
            if kind == "base":
                raise ValueError("only a policy with an adapter (--policy.lora.rank) contains its base model")
            self.frozen = copied(policy).requires_grad_(False)
        elif kind == "round":
            self.weights = nn.ParameterList(
                nn.Parameter(weight.detach().clone(), requires_grad=False)
                for weight in policy.adapter.parameters.values()
            )

    @torch.no_grad()
    def logprobs(
        self, batch: RolloutBatch, scored: Callable[[Policy, RolloutBatch], TokenScores] = Policy.scores_no_grad
    ) -> Tensor:
        """Logprobs of a batch of any size under the reference, [B, T], nats. Its routers choose their own experts.

        Args:
            scored: how a policy scores a batch.
        """
        batch = replace(batch, routed_experts=None)
        (policy,) = self._policy
        if policy.adapter is None:
            return scored(self.frozen, batch).logprobs
        with self._instead_of_the_adapter():
            return scored(policy, batch).logprobs

    def _instead_of_the_adapter(self) -> AbstractContextManager[None]:
        (policy,) = self._policy
        assert policy.adapter is not None
        if self.kind == "base":
            return policy.adapter.off()
        return policy.adapter.holding(dict(zip(policy.adapter.parameters, self.weights, strict=True)))

    @torch.no_grad()
    def reset(self) -> None:
        """Copy the policy's current weights.

        Raises:
            ValueError: the reference is the base model, which does not change.
        """
        (policy,) = self._policy
        if self.kind == "base":
            raise ValueError("the reference is the base model, which does not change")
        if policy.adapter is None:
            copy_weights(policy, self.frozen)
            return
        for mine, weight in zip(self.weights, policy.adapter.parameters.values(), strict=True):
            mine.copy_(weight)
