"""The widths of a decoder, from which the arithmetic of memory starts.

    shape = ModelShape.of(model)        # a model on any device, "meta" included; None if its layers are not known

Known are decoders with RMSNorm, rotary embeddings and gated MLPs (Llama, Mistral, Qwen2, Qwen3), and those whose MLPs
are mixtures of experts (Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from rloop_lightning.model.lora_targets import is_router
from rloop_lightning.model.quantization import count

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture-of-experts model.

    Args:
        layers: decoder layers that have experts.
        number: experts of such a layer.
        chosen: experts that compute a token.
        width: width of an expert's gated MLP.
        shared: width of the MLP beside the experts that computes every token; 0 without.
    """

    layers: int
    number: int
    chosen: int
    width: int
    shared: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Widths of a decoder.

    Args:
        layers: number of decoder layers.
        hidden: width of the residual stream.
        queries: width of a layer's queries: heads times their width.
        keys: width of a layer's keys, and of its values.
        heads: attention heads.
        mlp: width of the gated MLP in layers without experts.
        normed: width of the queries and keys that have a norm of their own; 0 without.
        layer_weights: weights of all layers' matrices, without experts.
        head_weights: weights of the head.
        tied: whether the head's weights are those of the embeddings.
        largest: weights of the largest matrix in a layer, without experts.
        experts: None if no layer has experts.
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
    tied: bool = False
    largest: int = 0
    experts: Experts | None = None

    @property
    def vocabulary(self) -> int:
        return self.head_weights // self.hidden

    @property
    def expert_weights(self) -> int:
        """Weights of the experts of one layer."""
        return 0 if self.experts is None else 3 * self.experts.number * self.experts.width * self.hidden

    @classmethod
    def of(cls, model: Any) -> Self | None:
        """The shape of a Hugging Face causal LM; None if it has other layers than those that are counted."""
        config = model.config.get_text_config()
        decoder_layers = getattr(model.get_decoder(), "layers", None)
        head = model.get_output_embeddings()
        if decoder_layers is None or head is None or not all(map(_is_known, decoder_layers)):
            return None
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        queries = config.num_attention_heads * width
        keys = (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * width
        matrices = [count(weight) for layer in decoder_layers for weight in _matrices(layer)]
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            queries=queries,
            keys=keys,
            heads=config.num_attention_heads,
            mlp=config.intermediate_size,
            normed=queries + keys if _find(decoder_layers[0], "q_norm") is not None else 0,
            layer_weights=sum(matrices),
            head_weights=count(head.weight),
            tied=head.weight is model.get_input_embeddings().weight,
            largest=max(matrices),
            experts=_experts(config, decoder_layers),
        )


def _is_known(layer: nn.Module) -> bool:
    """Whether a decoder layer has attention, norms with a plain weight, and a gated MLP or experts."""
    attention, mlp = getattr(layer, "self_attn", None), _mlp(layer)
    if mlp is None or not all(hasattr(attention, name) for name in _ATTENTION):
        return False
    norms = [module for name, module in layer.named_modules() if name.endswith("layernorm")]
    if len(norms) != 2 or not all(hasattr(norm, "variance_epsilon") for norm in norms):
        return False
    return _stacks(mlp) is not None or all(hasattr(mlp, name) for name in _GATED_MLP)


def _mlp(layer: nn.Module) -> nn.Module | None:
    return getattr(layer, "mlp", None) or getattr(layer, "block_sparse_moe", None)


def _stacks(mlp: nn.Module) -> tuple[Any, Any] | None:
    """The weights of all experts of a layer: of gate and up together [experts, ., .], and of down; None without."""
    for module in mlp.modules():
        parameters = dict(module.named_parameters(recurse=False))
        if "gate_up_proj" in parameters and "down_proj" in parameters:
            return parameters["gate_up_proj"], parameters["down_proj"]
    return None


def _experts(config: Any, layers: Any) -> Experts | None:
    sparse = [mlp for layer in layers if (mlp := _mlp(layer)) is not None and _stacks(mlp) is not None]
    if not sparse:
        return None
    stacks = _stacks(sparse[0])
    assert stacks is not None
    _, down = stacks
    number = down.shape[0]
    gate = _find(sparse[0], "gate_proj")  # of the MLP that all tokens share
    return Experts(
        layers=len(sparse),
        number=number,
        chosen=config.num_experts_per_tok,
        width=down.numel() // (number * config.hidden_size),
        shared=0 if gate is None else gate.out_features,
    )


def _find(root: nn.Module, name: str) -> Any:
    """The first module inside another whose name ends so."""
    return next((module for path, module in root.named_modules() if path.rpartition(".")[2] == name), None)


def _matrices(layer: nn.Module) -> Iterator[Any]:
    """The weights of products in a layer, without experts, routers and adapters."""
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name and not is_router(name):
            yield module.weight
