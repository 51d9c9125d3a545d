"""Routing replay for mixture-of-experts policies (arXiv 2512.01374): forward passes with recorded experts.

    routing = RoutingReplay(model, "r2")
    with routing.covering(batch):                                   # forward and backward of a micro-batch
        with routing.forward_pass(count, batch, gather) as passed:
            model(...)                                              # of `count` tokens
        ...backward()
    passed.chosen               # [N, layers, top_k], the routers' own choices

Replay uses recorded expert indices. The current router computes their gate weights (routers.py). Indices are looked up
by layer and token position, so that layers recomputed in the backward pass find the same ones, in any order. `layers`
counts the layers with a router.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rloop_lightning.errors import RunFault
from rloop_lightning.model.routers import find_routers, gate_weights
from rloop_lightning.types import RolloutBatch


class RoutingError(RunFault):
    """Recorded experts don't match a forward pass. Continuing would train with the wrong experts."""


class ForwardPass:
    """The routers' own choices in one forward pass, which calls each router once.

    Args:
        routers: router names, for messages.
        count: N, tokens of the pass.
        dtype: dtype of the indices.
    """

    def __init__(self, routers: Sequence[str], count: int, dtype: torch.dtype) -> None:
        self._routers = routers
        self._count = count
        self._dtype = dtype
        self._chosen: dict[int, Tensor] = {}

    @property
    def chosen(self) -> Tensor:
        """Each router's own choice, before replay replaces it in its layer [N, layers, top_k]."""
        return torch.stack([self._chosen[layer] for layer in range(len(self._routers))], dim=1)

    def take(self, layer: int, chosen: Tensor) -> None:
        """Record a router's choice [N, top_k].

        Raises:
            RoutingError: the number of tokens is wrong, or the router was called before.
        """
        if len(chosen) != self._count:
            raise RoutingError(
                f"the router {self._routers[layer]} got {len(chosen)} tokens in a forward pass of {self._count}: they "
                "can't be identified; set --policy.routing_replay none"
            )
        if layer in self._chosen:
            raise RoutingError(
                f"the router {self._routers[layer]} was called twice in a forward pass, and every recorded position "
                "must be used exactly once; set --policy.routing_replay none"
            )
        self._chosen[layer] = chosen.to(self._dtype)

    def finish(self) -> None:
        """Check that every router was called.

        Raises:
            RoutingError: names those that were not.
        """
        if missing := [name for layer, name in enumerate(self._routers) if layer not in self._chosen]:
            raise RoutingError(
                f"a forward pass left out {', '.join(missing)}, and every recorded position must be used exactly once; "
                "set --policy.routing_replay none"
            )


@dataclass(frozen=True)
class _Replayed:
    """The experts to replay in a forward pass."""

    experts: Tensor  # [N, layers, top_k]
    recorded: Tensor  # [N] bool, whether a token has recorded experts


class RoutingReplay:
    """Makes a model's routers use recorded experts, and records their own choices.

    Outside the two contexts, the model is unchanged.

    Args:
        model: a Hugging Face causal LM.
        mode: whose experts to replay: the old policy's in the trainer (r2), or the rollout engine's (r3).

    Raises:
        ValueError: the model has no known routers.
    """

    def __init__(self, model: Any, mode: Literal["r2", "r3"]) -> None:
        routers = find_routers(model)
        self.mode = mode
        self._routers = list(routers)
        first = next(iter(routers.values()))
        self.expert_count, self.top_k = len(first.weight), int(first.top_k)
        self.dtype = torch.uint8 if self.expert_count <= 256 else torch.int16
        self._covered: RolloutBatch | None = None
        self._replayed: _Replayed | None = None
        self._pass: ForwardPass | None = None
        for layer, router in enumerate(routers.values()):
            # A hook and not a replaced `forward`: in a deep copy of the model, that would belong to the original.
            router.register_forward_hook(partial(self._route, layer))

    @property
    def layers(self) -> int:
        """The number of layers with a router."""
        return len(self._routers)

    @contextmanager
    def covering(self, batch: RolloutBatch) -> Iterator[None]:
        """A context around forward and backward of a micro-batch, so that recomputed layers replay its experts as well.

        Raises:
            RoutingError: another micro-batch is still covered.
        """
        if self._covered is not None:
            raise RoutingError("two micro-batches can't replay their experts at once; one must be through its backward")
        self._covered = batch
        try:
            yield
        finally:
            self._covered = self._replayed = None

    @contextmanager
    def forward_pass(
        self, count: int, batch: RolloutBatch | None = None, gather: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[ForwardPass]:
        """A context around one forward pass.

        Args:
            count: N, its tokens.
            batch: the batch whose experts are replayed, if it has any.
            gather: maps values of the batch [B, L, ...] to the tokens of the pass [N, ...].

        Raises:
            RoutingError: a router was not called exactly once for every token; or gradients are on and `covering` does
                not cover this batch, so that the backward pass would not find its experts.
        """
        covered = None if self._covered is None else self._covered.routed_experts
        experts = None if batch is None else batch.routed_experts
        if torch.is_grad_enabled() and experts is not covered:
            raise RoutingError(
                "with gradients, experts are replayed inside of Policy.replaying alone, which covers the backward "
                "pass, too; and only those of the batch that it was given"
            )
        before, passing = self._replayed, ForwardPass(self._routers, count, self.dtype)
        self._pass, self._replayed = passing, None
        if batch is not None and gather is not None and experts is not None:
            self._replayed = _Replayed(gather(experts), gather(recorded_positions(batch)))
        try:
            yield passing
            passing.finish()
        finally:
            self._pass = None
            if not torch.is_grad_enabled():  # otherwise the backward pass may recompute layers
                self._replayed = before

    def _route(self, layer: int, router: Any, args: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> Any:
        """The forward hook of a router. Returns logits [N, experts], gate weights and indices [N, top_k]."""
        logits, weights, chosen = output
        if self._pass is not None:  # None in a recomputed layer, or outside `forward_pass`
            self._pass.take(layer, chosen)
        replayed = self._replayed
        recomputed_for_another = self._pass is None and self._covered is not None and replayed is None
        if recomputed_for_another or (replayed is not None and len(replayed.recorded) != len(chosen)):
            raise RoutingError(
                f"the router {self._routers[layer]} got {len(chosen)} tokens that are not those of the batch whose "
                "experts are replayed; a batch's forward and backward passes belong inside of its own Policy.replaying"
            )
        if replayed is None:
            return None
        taken = torch.where(replayed.recorded[:, None], replayed.experts[:, layer].long(), chosen)
        return logits, gate_weights(router, args[0], taken).to(weights.dtype), taken

    def admitted(self, batch: RolloutBatch) -> RolloutBatch:
        """A rollout step's batch: with the engine's experts under R3, without experts under R2.

        Raises:
            RoutingError: under R3, the experts are missing or do not fit this model.
        """
        if self.mode == "r2":
            return replace(batch, routed_experts=None)
        experts, shape = batch.routed_experts, (self.layers, self.top_k)
        if experts is None:
            wrong = "without their experts"
        elif experts.shape[2:] != shape:
            wrong = f"with {tuple(experts.shape[2:])} layers and experts of a token, where the policy has {shape}"
        elif not (experts.min() >= 0 and experts.max() < self.expert_count):
            wrong = f"with experts {experts.min()} to {experts.max()}, where the policy has {self.expert_count}"
        else:
            return batch
        raise RoutingError(
            f"--policy.routing_replay r3: rollouts came {wrong}; take another --engine, or set --policy.routing_replay "
            "r2 in a new run"
        )

    def empty_record(self, batch: RolloutBatch) -> Tensor:
        """An empty tensor for the routers' choices in a batch [B, L, layers, top_k]."""
        shape = (*batch.input_ids.shape, self.layers, self.top_k)
        return torch.zeros(shape, dtype=self.dtype, device=batch.input_ids.device)

    def recorded(self, batch: RolloutBatch, old_routed_experts: Tensor) -> RolloutBatch:
        """The batch with the old policy's routing: for replay under R2, next to the engine's experts under R3."""
        return (
            replace(batch, routed_experts=old_routed_experts)
            if self.mode == "r2"
            else replace(batch, old_routed_experts=old_routed_experts)
        )

    def mismatches(self, batch: RolloutBatch, own: Tensor) -> dict[str, Tensor]:
        """The number of routings that differ between engine, old and current policy; divide by `routing_count`.

        Args:
            batch: the batch with the replayed experts.
            own: [B, L, layers, top_k], the own choices of the current policy's routers.
        """
        if batch.routed_experts is None:
            return {}
        if self.mode == "r2":
            return {"routing/old_current_mismatch": differing(batch, batch.routed_experts, own)}
        from_engine = differing(batch, batch.routed_experts, own)
        if batch.old_routed_experts is None:  # no update yet: the current policy is the old one
            return {"routing/engine_old_mismatch": from_engine, "routing/engine_current_mismatch": from_engine}
        return {
            "routing/engine_old_mismatch": differing(batch, batch.routed_experts, batch.old_routed_experts),
            "routing/old_current_mismatch": differing(batch, batch.old_routed_experts, own),
            "routing/engine_current_mismatch": from_engine,
        }


def recorded_positions(batch: RolloutBatch) -> Tensor:
    """Where experts are recorded [B, L]: at all tokens but the last. No logprob depends on the last one's routing."""
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    return positions < batch.lengths[:, None] - 1


def differing(batch: RolloutBatch, first: Tensor, second: Tensor) -> Tensor:
    """The number of recorded routings (one per token and layer) whose sets of experts differ; a scalar.

    Args:
        first, second: [B, L, layers, top_k].
    """
    others = (first.sort(-1).values != second.sort(-1).values).any(-1)  # [B, L, layers]
    return (others & recorded_positions(batch)[:, :, None]).sum()


def routing_count(batch: RolloutBatch) -> Tensor:
    """The number of recorded routings of a batch, tokens x layers; a scalar."""
    layers = 0 if batch.routed_experts is None else batch.routed_experts.shape[2]
    return (batch.lengths - 1).sum() * layers
