"""The memory that an update needs beside weights, gradients and moments, by arithmetic from a model's shape.

    shape = ModelShape.of(model)                        # a model on any device, "meta" included
    rows = PackedRows(prompts=1, prompt=512, rollouts=16, completion=992)
    memory = update_memory(shape, rows, Products("cuda", torch.float32, torch.bfloat16))
    memory.peak                                         # bytes

It counts the tensors that autograd stores in a decoder layer, by attention_memory.py those of attention, and those of
the head. On an H100 it is within 6 % of the measured peak of thirteen updates (tests/model/test_update_memory.py); on
a CPU, `python -m benchmarks memory` compares it with eight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rloop_lightning.model.attention_memory import PackedRows, attention_memory
from rloop_lightning.model.model_shape import ModelShape
from rloop_lightning.model.token_scores import LOGITS_PER_PIECE

_FULL = 4  # bytes of a number in float32
# Bytes of a logit of a piece: on a GPU in half precision, in float32, and its gradient in half precision; on a CPU in
# float32, its exponential, its gradient, and a temporary copy.
_LOGIT_BYTES = {"cuda": 8, "cpu": 16}
# Tensors of an MLP's width that its backward pass makes, less those that it frees.
_MLP_TENSORS = {"cuda": 2, "cpu": 3}
_SMALL_HEAD = 2**20  # weights of a head that is computed in float32 (head.py)


@dataclass(frozen=True)
class Products:
    """How an update computes.

    Args:
        device: `cuda` or `cpu`.
        weights: dtype of the weights; of an adapter's model, of the frozen ones.
        products: dtype of the products; differs from `weights` under autocast.
        checkpointing: as in PolicyConfig.
        adapted: numbers per token that the adapter of a layer stores: ranks, summed over its adapted products.
        adapts_experts: whether experts are adapted: then a sum of the weights and the adapter is made for each layer.
        trains_all: whether all weights are trained; else an adapter is.
        quantised: whether the layers' weights are in 4 bits.
        head: dtype of the head's product; None as `auto` in PolicyConfig.
    """

    device: str
    weights: torch.dtype
    products: torch.dtype
    checkpointing: bool = False
    adapted: float = 0
    adapts_experts: bool = False
    trains_all: bool = True
    quantised: bool = False
    head: torch.dtype | None = None


@dataclass(frozen=True)
class UpdateMemory:
    """What an update stores, in bytes.

    Args:
        stored: of all layers, from the forward pass to the backward pass.
        shared: stored once for all layers: masks, and the input of the last norm.
        recomputed: of one layer, while the backward pass recomputes it; 0 without checkpointing.
        passing: gradients and temporary tensors while the backward pass goes through one layer.
        casts: copies of the layers' weights in the dtype of the products: of all layers, or of the one recomputed.
        head: a copy of the head, its gradient, and the logits of a piece of the vocabulary.
        embeddings: gradients of tied weights that wait for their sum until the end of the backward pass.
    """

    stored: float
    shared: float
    recomputed: float
    passing: float
    casts: float
    head: float
    embeddings: float

    @property
    def activations(self) -> float:
        """The most at one time while the backward pass goes through the layers, without gradients of weights."""
        return self.stored + self.shared + self.casts + self.recomputed + self.passing

    @property
    def peak(self) -> float:
        """The most at one time: with the head before the layers, in the layers, or at the embeddings behind them."""
        casts = 0 if self.recomputed else self.casts
        at_head = self.shared + self.stored + casts + self.head
        return max(at_head, self.activations + self.embeddings, 2 * self.embeddings)


def update_memory(shape: ModelShape, rows: PackedRows, how: Products) -> UpdateMemory:
    """The memory of one micro-batch, which comes after others of the same update, so that gradients exist."""
    tokens, residual = rows.tokens, how.weights.itemsize
    attention = attention_memory(shape, rows, device=how.device, dtype=how.products)
    width, expert_width = _stored_per_token(shape, how)
    sparse = 0 if shape.experts is None else shape.experts.layers
    layer = tokens * width + attention.stored
    stored = shape.layers * layer + sparse * (tokens * expert_width + _adapted_experts(shape, how))
    largest = layer + (tokens * expert_width + _adapted_experts(shape, how) if sparse else 0)
    kept = tokens * shape.hidden * residual + attention.kept
    return UpdateMemory(
        stored=shape.layers * kept if how.checkpointing else stored,
        shared=attention.shared + tokens * shape.hidden * residual,
        recomputed=largest if how.checkpointing else 0,
        passing=_passing(shape, rows, how, attention.passing),
        casts=_casts(shape, how),
        head=_head(shape, rows, how),
        embeddings=shape.head_weights * residual if shape.tied and how.trains_all else 0,
    )


def _stored_per_token(shape: ModelShape, how: Products) -> tuple[float, float]:
    """Bytes that each token stores in a layer without attention: of the layer, and of experts in place of its MLP."""
    residual, products = how.weights.itemsize, how.products.itemsize
    # The inputs of both norms, and their outputs, which the projections store.
    of_layer: float = 2 * shape.hidden * (residual + products)
    of_layer += shape.normed * products
    of_layer += shape.queries * products  # the input of the output projection
    of_layer += how.adapted * products
    mlp = 3 * shape.mlp * products  # gate, up and their product
    if shape.experts is None:
        return of_layer + mlp, 0
    experts = shape.experts
    # Grouped products have the dtype of their weights, whatever autocast says. For each token and chosen expert they
    # store the input, gate and up, the activated gate, the product, and the output.
    of_experts = experts.chosen * (2 * shape.hidden + 4 * experts.width) * residual
    of_experts += experts.number * (products + _FULL)  # the router's logits and probabilities
    of_experts += 3 * experts.shared * products
    return of_layer + mlp * (shape.layers - experts.layers) / shape.layers, of_experts


def _adapted_experts(shape: ModelShape, how: Products) -> float:
    """The weights of a layer's experts with the adapter added, which their products store."""
    return shape.expert_weights * how.weights.itemsize if how.adapts_experts else 0


def _passing(shape: ModelShape, rows: PackedRows, how: Products, attention: float) -> float:
    """Temporary tensors of the backward pass: the largest of attention, of an MLP, and of experts."""
    residual, products = how.weights.itemsize, how.products.itemsize
    through = 2 * rows.tokens * shape.hidden * residual
    weights = shape.largest * products if how.quantised or how.trains_all else 0
    mlp = _MLP_TENSORS[how.device] * rows.tokens * shape.mlp * products + weights
    experts = 0.0
    if shape.experts is not None:
        experts = rows.tokens * shape.experts.chosen * (shape.hidden + 3 * shape.experts.width) * residual
        if how.trains_all or how.adapts_experts:  # the gradient of gate and up
            experts += 2 / 3 * shape.expert_weights * residual
        mlp = mlp if shape.experts.layers < shape.layers else 0
    return through + max(attention, mlp, experts)


def _casts(shape: ModelShape, how: Products) -> float:
    if how.products == how.weights or how.quantised:
        return 0
    return shape.layer_weights * how.products.itemsize / (shape.layers if how.checkpointing else 1)


def _head(shape: ModelShape, rows: PackedRows, how: Products) -> float:
    small = torch.promote_types(how.products, torch.float32) if shape.head_weights <= _SMALL_HEAD else how.products
    dtype = how.head or small
    copies = 1 if dtype == how.weights else 2  # a copy of the head, and its gradient
    logits = min(LOGITS_PER_PIECE[how.device], rows.predicting * shape.vocabulary)
    return (
        shape.head_weights * dtype.itemsize * copies
        + logits * _LOGIT_BYTES[how.device]
        + rows.predicting * shape.hidden * (dtype.itemsize + _FULL)
    )
