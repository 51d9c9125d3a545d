"""The memory that an update needs on a GPU beside weights and moments, by arithmetic from a model's shape.

    shape = ModelShape.of(model)                        # a model on any device, "meta" included
    memory = update_memory(shape, tokens=16_384, mixed=True, checkpointing=False)
    memory.peak                                         # bytes

It counts the tensors that autograd stores in a decoder layer with RMSNorm, gated MLP and attention by one of the fused
kernels (packed_attention.py, fused.py), and those of the head. On an H100 it is within 10 % of the measured peak of
thirteen updates (tests/model/test_update_memory.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from rloop_lightning.model.token_scores import LOGITS_PER_PIECE

_HALF, _FULL = 2, 4  # bytes of a number
_LOGITS_BYTES = 8  # of a logit: in half precision, in float32, and its gradient in half precision


@dataclass(frozen=True)
class ModelShape:
    """Widths of a decoder.

    Args:
        layers: number of decoder layers.
        hidden: width of the residual stream.
        queries: width of a layer's queries: heads times their width.
        keys: width of a layer's keys, and of its values.
        heads: attention heads.
        mlp: width of the gated MLP.
        normed: width of the queries and keys that have a norm of their own; 0 without.
        layer_weights: weights of all layers' matrices.
        head_weights: weights of the head.
    """

    layers: int
    hidden: int
    queries: int
    keys: int
    heads: int
    mlp: int
    normed: int
    layer_weights: int
    head_weights: int

    @classmethod
    def of(cls, model: Any) -> Self | None:
        """The shape of a Hugging Face causal LM; None if it has other layers than those that are counted."""
        config = model.config.get_text_config()
        if not isinstance(getattr(config, "intermediate_size", None), int) or any(
            name.endswith(("experts", "linear_attn", "conv")) for name, _ in model.named_modules()
        ):
            return None
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        queries = config.num_attention_heads * width
        keys = (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * width
        has_norms = any(name.rpartition(".")[2] == "q_norm" for name, _ in model.named_modules())
        head = model.get_output_embeddings().weight
        others = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} | {id(head)}
        matrices = (weight for weight in model.parameters() if weight.dim() >= 2 and id(weight) not in others)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            queries=queries,
            keys=keys,
            heads=config.num_attention_heads,
            mlp=config.intermediate_size,
            normed=queries + keys if has_norms else 0,
            layer_weights=sum(weight.numel() for weight in matrices),
            head_weights=head.numel(),
        )


@dataclass(frozen=True)
class UpdateMemory:
    """What an update stores, in bytes.

    Args:
        stored: of all layers, from the forward pass to the backward pass.
        recomputed: of one layer, while the backward pass recomputes it; 0 without checkpointing.
        casts: copies of the layers' weights in half precision.
        head: a copy of the head, its gradient, and the logits of a piece of the vocabulary.
    """

    stored: float
    recomputed: float
    casts: float
    head: float

    @property
    def peak(self) -> float:
        """The most at one time: the head comes before the first layer is recomputed."""
        return self.stored + self.casts + max(self.recomputed, self.head)


def update_memory(
    shape: ModelShape, *, tokens: int, mixed: bool, checkpointing: bool, slots: int | None = None, adapter_rank: int = 0
) -> UpdateMemory:
    """The memory of one micro-batch in half-precision products.

    Args:
        tokens: packed tokens of the micro-batch.
        mixed: float32 weights under autocast; false is weights in half precision.
        checkpointing: as in PolicyConfig.
        slots: tokens of attention; more than `tokens` where prompts are repeated or padded (square_attention.py).
        adapter_rank: rank of LoRA on all linear layers, whose weights are frozen then; 0 trains all weights.
    """
    slots = tokens if slots is None else slots
    residual = _FULL if mixed else _HALF
    # The inputs of both norms, and their outputs, which the projections store.
    of_tokens = 2 * shape.hidden * (residual + _HALF)
    of_tokens += shape.normed * _HALF
    of_tokens += 3 * shape.mlp * _HALF  # gate, up and their product
    of_tokens += shape.queries * _HALF  # the input of the output projection
    of_tokens += 7 * adapter_rank * _HALF
    attention = (shape.queries + 2 * shape.keys) * _HALF
    output = shape.queries * _HALF + shape.heads * _FULL  # with the log-sum-exp of each head
    layer = tokens * of_tokens + slots * (attention + output)
    kept = tokens * shape.hidden * residual + slots * output
    copies = 2 if mixed else 1  # a copy of the head in half precision, and its gradient
    return UpdateMemory(
        stored=shape.layers * (kept if checkpointing else layer),
        recomputed=layer if checkpointing else 0,
        casts=shape.layer_weights * _HALF if mixed else 0,
        head=shape.head_weights * _HALF * copies + LOGITS_PER_PIECE["cuda"] * _LOGITS_BYTES,
    )
