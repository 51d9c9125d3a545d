"""The forward pass of Llama-like decoders, over the parameters of a Hugging Face model.

    llama = Llama.of(model)                            # None where the model is of another kind
    weights = llama.weights(torch.bfloat16)            # fused, cast; gradients reach the model's parameters
    hidden = llama(weights, input_ids, positions, attend)

Llama, Mistral, Qwen2 and Qwen3 are the same computation: RMSNorm, rotary attention, SwiGLU. Hugging Face's modules pay
for their generality in small operations, several times what the matrix products cost in bfloat16. Here tokens stand in
one flat row without padding, and whoever calls says how they attend to each other: packed rollouts in training
(packing.py), a KV cache in generation (engines/rows.py).

`Llama.of` compares its logits with the model's own before it hands itself out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries [N, heads, D], keys and values [N, kv_heads, D]) to what each token gathered, [N, heads * D]."""

# Rotary embeddings whose angles depend on the longest sequence of whatever batch a token is in.
_ROTATES_BY_LENGTH = ("dynamic", "longrope")

# A head of this many weights costs nothing in float32, and its logits are where rounding shows most.
_FLOAT32_HEAD_WEIGHTS = 2**20


@dataclass(frozen=True)
class Layer:
    """One layer's weights, in the dtype of the computation. Norms are part of the products behind them."""

    qkv: Tensor  # [(heads + 2 kv_heads) * D, H], the halves of rotary dimensions interleaved
    qkv_bias: Tensor | None
    query_norm: Tensor | None  # [D]
    key_norm: Tensor | None  # [D]
    out: Tensor  # [H, heads * D]
    gate_up: Tensor  # [2 I, H]
    down: Tensor  # [H, I]


@dataclass(frozen=True)
class Weights:
    """The weights of a forward pass behind the embedding."""

    layers: list[Layer]
    head: Tensor  # [V, H], the last norm included
    dtype: torch.dtype


class Llama:
    """The forward pass of one model; holds no weights of its own."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._decoder = model.model
        attention = self._decoder.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.heads: int = attention.q_proj.out_features // self.head_dim
        self.kv_heads: int = attention.k_proj.out_features // self.head_dim
        self.scale: float = attention.scaling
        self._eps: float = self._decoder.norm.variance_epsilon

    @classmethod
    def of(cls, model: Any) -> Self | None:
        """The forward pass of a Hugging Face model, or None where it is not Llama-like all through."""
        if not _is_llama_like(model):
            return None
        llama = cls(model)
        return llama if llama._agrees() else None

    def weights(self, dtype: torch.dtype) -> Weights:
        """The model's current weights, fused and cast; with gradients to its parameters where those are on."""
        head = self._model.get_output_embeddings().weight * self._decoder.norm.weight
        head_dtype = _at_least_float32(dtype) if head.numel() <= _FLOAT32_HEAD_WEIGHTS else dtype
        return Weights([self._layer(layer, dtype) for layer in self._decoder.layers], head.to(head_dtype), dtype)

    def _layer(self, layer: Any, dtype: torch.dtype) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (projection.weight for projection in projections)
        bias = None
        if attention.q_proj.bias is not None:
            query_bias, key_bias, value_bias = (projection.bias for projection in projections)
            bias = torch.cat([self._interleave(query_bias), self._interleave(key_bias), value_bias]).to(dtype)
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        query_norm, key_norm = (None if norm is None else self._interleave(norm.weight).to(dtype) for norm in norms)
        qkv = torch.cat([self._interleave(query), self._interleave(key), value]) * layer.input_layernorm.weight
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * layer.post_attention_layernorm.weight
        return Layer(
            qkv=qkv.to(dtype),
            qkv_bias=bias,
            query_norm=query_norm,
            key_norm=key_norm,
            out=attention.o_proj.weight.to(dtype),
            gate_up=gate_up.to(dtype),
            down=mlp.down_proj.weight.to(dtype),
        )

    def __call__(self, weights: Weights, input_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states [N, H] that the head takes, in the weights' dtype.

        Args:
            input_ids, positions: [N] int64, tokens in any order and their places in their sequences.
            attend: what attention does with them.
        """
        hidden = self._decoder.embed_tokens(input_ids)
        rotation = self._rotation(positions)
        for number, layer in enumerate(weights.layers):
            qkv = linear(self._normed(hidden, weights), layer.qkv, layer.qkv_bias).unflatten(-1, (-1, self.head_dim))
            if layer.query_norm is None or layer.key_norm is None:
                both, values = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)  # one rotation for both
                queries, keys = rotate(both, rotation).split([self.heads, self.kv_heads], dim=1)
            else:
                queries, keys, values = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
                queries = rotate(self._normed(queries, weights) * layer.query_norm, rotation)
                keys = rotate(self._normed(keys, weights) * layer.key_norm, rotation)
            hidden = hidden + linear(attend(number, queries, keys, values), layer.out)
            hidden = hidden + linear(swiglu(linear(self._normed(hidden, weights), layer.gate_up)), layer.down)
        return self._normed(hidden, weights)

    def _normed(self, x: Tensor, weights: Weights) -> Tensor:
        return normalise(x, self._eps, weights.dtype)

    def _rotation(self, positions: Tensor) -> Tensor:
        """Each position's rotation of a head's dimension pairs, complex64 [N, 1, D / 2]."""
        any_float32 = self._decoder.norm.weight.float()  # its dtype is that of what comes back
        cos, sin = self._decoder.rotary_emb(any_float32, positions[None])
        pairs = self.head_dim // 2  # both halves of the dimensions turn by the same angles
        return torch.complex(cos[0, :, :pairs].float(), sin[0, :, :pairs].float())[:, None]

    def _interleave(self, weight: Tensor) -> Tensor:
        """Put the two dimensions that turn together side by side; Hugging Face has them half a head apart."""
        halves = weight.unflatten(0, (-1, 2, self.head_dim // 2))  # [heads, 2, D / 2, ...]
        return halves.transpose(1, 2).flatten(0, 2)

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether the model's own forward gives the same logits on a few tokens."""
        vocabulary, context = self._decoder.embed_tokens.num_embeddings, self._model.config.max_position_embeddings
        input_ids = torch.arange(16, device=self._decoder.norm.weight.device) % vocabulary
        # As far apart as positions get, for models that do something else behind a length.
        positions = torch.linspace(0, max(context, 16) - 1, 16, device=input_ids.device).long()

        def causal(_: int, *qkv: Tensor) -> Tensor:
            queries, keys, values = (part.transpose(0, 1)[None].float() for part in qkv)
            keys, values = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (keys, values))
            found = scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=self.scale)
            return found[0].transpose(0, 1).flatten(1).to(qkv[0].dtype)

        dtype = self._decoder.norm.weight.dtype
        weights = self.weights(dtype)
        ours = linear(self(weights, input_ids, positions, causal).to(weights.head.dtype), weights.head).float()
        mask = torch.ones_like(input_ids)[None]  # without it, gaps between positions mean several sequences
        theirs = (
            self._model(input_ids=input_ids[None], position_ids=positions[None], attention_mask=mask, use_cache=False)
            .logits[0]
            .float()
        )
        rounding = 1e-3 if dtype in (torch.float32, torch.float64) else 0.1
        return bool((ours - theirs).abs().max() <= rounding * theirs.abs().max())


def _is_llama_like(model: Any) -> bool:
    """Whether the model is built like Llama, of plain linear layers: no adapters, quantisation, experts or windows.

    `_agrees` finds what the model computes otherwise; here stands what a few tokens do not show, or what has no place
    in `Weights`.
    """
    decoder: Any = getattr(model, "model", None)
    head, config = model.get_output_embeddings(), model.config
    if not all(hasattr(decoder, name) for name in ("embed_tokens", "rotary_emb", "layers", "norm")):
        return False
    eps = getattr(decoder.norm, "variance_epsilon", None)
    kinds = getattr(config, "layer_types", None)  # of attention; the older way to say so is a window for all layers
    sees_everything = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    return (
        sees_everything
        and getattr(decoder.rotary_emb, "rope_type", "default") not in _ROTATES_BY_LENGTH
        and getattr(config, "hidden_act", None) in ("silu", "swish")
        and _all_linear([head], biased=False)
        and eps is not None
        and all(_is_llama_layer(layer, eps) for layer in decoder.layers)
    )


def _is_llama_layer(layer: nn.Module, eps: float) -> bool:
    modules: dict[str, Any] = dict(layer.named_modules())
    attention: Any = modules.get("self_attn")
    if not all(hasattr(attention, name) for name in ("head_dim", "scaling")):
        return False
    projections = [modules.get(f"self_attn.{name}_proj") for name in "qkv"]
    others = [modules.get(name) for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]
    norms = [modules.get(name) for name in ("input_layernorm", "post_attention_layernorm")]
    head_norms = [modules[name] for name in ("self_attn.q_norm", "self_attn.k_norm") if name in modules]
    return (
        (_all_linear(projections, biased=False) or _all_linear(projections, biased=True))
        and _all_linear(others, biased=False)
        and all(getattr(norm, "variance_epsilon", None) == eps for norm in [*norms, *head_norms])
        and len(head_norms) in (0, 2)
        and all(norm.weight.shape == (attention.head_dim,) for norm in head_norms)
    )


def _all_linear(modules: list[Any], *, biased: bool) -> bool:
    """Whether all are plain linear layers: a subclass (an adapter, quantised weights) computes something else."""
    return all(type(module) is nn.Linear and (module.bias is not None) == biased for module in modules)


def normalise(x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / rms(x), computed at x's precision and given in `dtype`: RMSNorm before its weight.

    Args: x [..., H]. Returns [..., H].
    """
    return _Normalise.apply(x, eps, dtype) if torch.is_grad_enabled() else _normalised(x, eps, dtype)[0]


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up.

    Args: gate_up [N, 2 I]. Returns [N, I].
    """
    return _SwiGLU.apply(gate_up) if torch.is_grad_enabled() else _silu_times_up(gate_up)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of neighbouring dimensions.

    Args: x [N, heads, D]; rotation [N, 1, D / 2], complex. Returns [N, heads, D].
    """
    return _Rotate.apply(x, rotation) if torch.is_grad_enabled() else _turned(x, rotation)


# Their gradients by hand. Without gradients they are left out: `apply` takes longer than a few rows' arithmetic.


class _Normalise(torch.autograd.Function):
    """Keeps x and one number a row, where autograd would keep three tensors of x's size.

    With y = s x and s = 1 / rms(x): dL/dx = s (dL/dy - y mean(y dL/dy)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        normalised, scale = _normalised(x, eps, dtype)
        ctx.save_for_backward(x, scale)
        return normalised

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, scale = ctx.saved_tensors
        grad = grad.to(scale.dtype)
        inner = (grad * x).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(x.shape[-1])
        return (grad * scale).addcmul_(x, inner, value=-1).to(x.dtype), None, None


class _SwiGLU(torch.autograd.Function):
    """Keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _silu_times_up(gate_up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, silu(gate), out=grad_up)
        torch.ops.aten.silu_backward(grad * up, gate, grad_input=grad_gate)
        return grad_gate_up


class _Rotate(torch.autograd.Function):
    """Its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        return _turned(x, rotation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _turned(grad, ctx.saved_tensors[0].conj()), None


def _normalised(x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x / rms(x) in `dtype`, and 1 / rms(x) [..., 1]."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_at_least_float32(x.dtype))
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).to(dtype), scale


def _silu_times_up(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate).mul_(up)


def _turned(x: Tensor, rotation: Tensor) -> Tensor:
    wide = x.to(_at_least_float32(x.dtype))
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    pairs = pairs * rotation if wide is x else pairs.mul_(rotation)
    return torch.view_as_real(pairs).flatten(-2).to(x.dtype)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
