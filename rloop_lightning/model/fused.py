"""Norms, gated activations and rotations of a Hugging Face model with fewer passes over memory.

    fuse(model)         # from now on, its RMSNorm and SwiGLU layers use the functions below

Autograd stores three tensors of the input's size for RMSNorm and four for SwiGLU, and reads and writes each. Under
autocast, a norm of the residual stream returns the autocast dtype, so that the products after it do not each cast it.
A module is replaced if its output on random input is the same.
"""

from __future__ import annotations

import inspect
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from rloop_lightning.model.compiled import compiled_on_gpu, is_compiled_on_gpu

# Relative difference that rounding may make; else 1e-5, as norms compute in float32 whatever their input.
_ROUNDING = {torch.bfloat16: 3e-2, torch.float16: 3e-3}


def fuse(model: nn.Module) -> None:
    """Replace the forward of each module that computes RMSNorm or SwiGLU; on a GPU, compile rotations as well."""
    for module in model.modules():
        _fuse_rotation(module)
        if _is_rms_norm(module):
            module.forward = partial(_rms_norm_forward, module)  # unlike a closure, it is copied along with the module
        elif _is_swiglu(module):
            module.forward = partial(_swiglu_forward, module)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """weight * x / rms(x), computed in x's precision, at least float32, and returned in `dtype`.

    Args: x [..., H]; weight [H]; eps is added to the mean square. Returns [..., H].
    """
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps, dtype)
    return _norm(x, weight, eps, dtype)[0]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Args: gate and up of the same shape. Returns that shape."""
    return _SwiGLU.apply(gate, up) if torch.is_grad_enabled() else _gated(gate, up)


class _RMSNorm(torch.autograd.Function):
    """With n = x / rms(x) and g = weight dL/dy: dL/dx = (g - n mean(n g)) / rms(x), dL/dweight = sum(n dL/dy)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        normed, scale = _norm(x, weight, eps, dtype)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        of_x, of_weight = _norm_gradients(x, weight, scale, grad, ctx.needs_input_grad[1])
        return of_x, of_weight, None, None


class _SwiGLU(torch.autograd.Function):
    """Saves only its inputs for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return _gated_gradients(gate, up, grad)


@compiled_on_gpu
def _norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """weight * x / rms(x) in `dtype`, and 1 / rms(x) [..., 1]."""
    normalised, scale = _normalised(x, eps)
    return normalised.mul_(weight).to(dtype), scale


@compiled_on_gpu
def _norm_gradients(
    x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor, of_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x [..., H] and, on request, of the weight [H], from the gradient of the norm's output."""
    grad = grad.to(scale.dtype)
    normalised = x * scale
    weights = (grad * normalised).flatten(0, -2).sum(0).to(weight.dtype) if of_weight else None
    grad = grad * weight
    inner = torch.linalg.vecdot(grad, normalised)[..., None].div_(x.shape[-1])
    return grad.addcmul_(normalised, inner, value=-1).mul_(scale).to(x.dtype), weights


@compiled_on_gpu
def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate).mul_(up)


@compiled_on_gpu
def _gated_gradients(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x), and 1 / rms(x) [..., 1], in at least float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * scale, scale


def _rms_norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    device, dtype = hidden_states.device.type, torch.promote_types(hidden_states.dtype, module.weight.dtype)
    if torch.is_autocast_enabled(device) and hidden_states.dtype == torch.float32:  # the residual stream
        dtype = torch.get_autocast_dtype(device)
    return rms_norm(hidden_states, module.weight, module.variance_epsilon, dtype)


def _fuse_rotation(module: nn.Module) -> None:
    """Compile the rotary embedding of queries and keys, a function of the file that defines an architecture.

    It is replaced there, since models don't hold it: in this process, all models of the architecture use it.
    """
    namespace = sys.modules[type(module).__module__]
    rotate = getattr(namespace, "apply_rotary_pos_emb", None)
    if inspect.isfunction(rotate) and rotate.__module__.startswith("transformers.") and not is_compiled_on_gpu(rotate):
        vars(namespace)["apply_rotary_pos_emb"] = compiled_on_gpu(rotate)


def _swiglu_forward(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))


@torch.no_grad()
def _is_rms_norm(module: Any) -> bool:
    """Whether a module computes `rms_norm`. Gemma's norms, with 1 + weight, do not."""
    weight = getattr(module, "weight", None)
    if not (hasattr(module, "variance_epsilon") and isinstance(weight, Tensor) and weight.dim() == 1):
        return False
    if len(inspect.signature(module.forward).parameters) != 1:  # a gated norm, say
        return False
    # Small numbers, for which another eps makes a difference.
    x = 1e-3 * torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    ours = rms_norm(x, weight, module.variance_epsilon, weight.dtype)
    return _same(ours, module(x))


@torch.no_grad()
def _is_swiglu(module: Any) -> bool:
    """Whether a module has the children of a SwiGLU layer and computes nothing else."""
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in names):
        return False
    weight = getattr(module.gate_proj, "weight", None)
    if not (isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == 2):
        return False
    x = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    return _same(_swiglu_forward(module, x), module(x))


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two outputs differ by rounding alone."""
    rounding = _ROUNDING.get(theirs.dtype, 1e-5)
    return torch.allclose(ours.double(), theirs.double(), rtol=rounding, atol=rounding * float(theirs.abs().max()))
