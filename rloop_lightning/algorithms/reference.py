"""The reference policy of a KL term."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from rloop_lightning.model.policy import Policy
from rloop_lightning.types import RolloutBatch


class Reference(nn.Module):
    """A frozen copy of the policy; with an adapter (LoRA), the policy with the adapter disabled.

    It is a submodule of its owner, so checkpoints include it.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.has_copy = not policy.has_adapter
        if self.has_copy:
            self.frozen = copy.deepcopy(policy).requires_grad_(False)
        self._policy = (policy,)  # a tuple, so that nn.Module does not register it as a submodule

    @torch.no_grad()
    def logprobs(self, batch: RolloutBatch) -> Tensor:
        """Logprobs of a batch of any size under the reference, [B, T], nats. Its routers choose their own experts."""
        batch = replace(batch, routed_experts=None)
        if self.has_copy:
            return self.frozen.scores_no_grad(batch).logprobs
        (policy,) = self._policy
        with policy.without_adapter():
            return policy.scores_no_grad(batch).logprobs

    def reset(self) -> None:
        """Copy the policy's current weights.

        Raises:
            ValueError: the policy has an adapter, which can only be disabled.
        """
        if not self.has_copy:
            raise ValueError("the reference of a policy with an adapter is its base model, which does not change")
        (policy,) = self._policy
        self.frozen.load_state_dict(policy.state_dict())
