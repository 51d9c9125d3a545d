"""Gradient checkpointing: layers store only their inputs, and the backward pass recomputes them.

    with recomputing(model): ...            # a forward pass
    with keeping(): ...                     # in a layer: what is not computed twice

On a GPU, the outputs of attention kernels are kept: with long rollouts they take most of the time, and little memory.
PyTorch's selective checkpointing does that. Its mode handles every operation in Python, so that small ones wait for the
CPU; here it is on in the attention function alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from rloop_lightning.model.row_attention import kernel_operations

_local = threading.local()  # a GPU's backward pass, which recomputes, has a thread of its own


@contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Recompute the layers of the forward passes in the block.

    Hugging Face's own switch needs training mode, which would turn dropout on.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if model.device.type != "cpu" and kernel_operations():
        settings["context_fn"] = _contexts
    for layer in layers:
        # Wraps `forward` rather than the module call, so that a module's hooks run once.
        layer.forward = partial(checkpoint, layer.forward, **settings)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def keeping() -> AbstractContextManager[Any]:
    """A context for operations whose outputs are kept, if they are among `kernel_operations`."""
    mode = getattr(_local, "mode", None)
    return nullcontext() if mode is None else mode


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a layer's forward pass and of its recomputation."""
    first, again = create_selective_checkpoint_contexts(kernel_operations())
    return _lend(first), _lend(again)


@contextmanager
def _lend(mode: Any) -> Iterator[None]:
    """Make a mode the one that `keeping` enters."""
    before = getattr(_local, "mode", None)
    _local.mode = mode
    try:
        yield
    finally:
        _local.mode = before
