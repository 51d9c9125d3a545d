"""The reference policy of a KL term."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from rloop_lightning.model.policy import Policy
from rloop_lightning.types import RolloutBatch


class Reference(nn.Module):
    """The policy as it is now, frozen: a copy of its weights, or the same weights with the adapter (LoRA) off.

    It is part of the module that holds it, so checkpoints keep it.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.has_copy = not policy.has_adapter
        if self.has_copy:
            self.frozen = copy.deepcopy(policy).requires_grad_(False)
        self._policy = (policy,)  # a tuple, so that it is not taken for a part of this module

    @torch.no_grad()
    def logprobs(self, batch: RolloutBatch) -> Tensor:
        """Logprobs of a batch of any size under the reference, [B, T], nats; with experts of its own choice."""
        batch = replace(batch, routed_experts=None)
        if self.has_copy:
            return self.frozen.scores_no_grad(batch).logprobs
        (policy,) = self._policy
        with policy.without_adapter():
            return policy.scores_no_grad(batch).logprobs

    def reset(self) -> None:
        """Take over the policy's current weights.

        Raises:
            ValueError: an adapter is what was trained, and it can only be switched off.
        """
        if not self.has_copy:
            raise ValueError("the reference of a policy with an adapter is its base model, which does not change")
        (policy,) = self._policy
        self.frozen.load_state_dict(policy.state_dict())
