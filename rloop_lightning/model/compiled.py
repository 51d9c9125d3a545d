"""Small functions of large tensors, fused into a few kernels on a GPU.

    @compiled_on_gpu
    def scaled(x: Tensor, factor: float) -> Tensor: ...

PyTorch runs each operation of such a function as a kernel of its own, which reads and writes the whole tensor. On an
H100 that took two fifths of an update. torch.compile fuses them. It needs Triton and a C compiler; without them, and
for small tensors, the function runs as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# Elements of the first tensor from which on compiled kernels save more time than their launch costs. Decoding one token
# per row stays below.
_LARGE = 2**22

_failures: list[Exception] = []
_compiled: WeakSet[Any] = WeakSet()


def compiled_on_gpu(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled for calls whose first argument is a large tensor on a GPU."""

    @cache
    def compiled() -> Callable[P, R]:
        return torch.compile(function, dynamic=True)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, Tensor)
        if not first.is_cuda or first.numel() < _LARGE or _failures:
            return function(*args, **kwargs)
        try:
            return compiled()(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler may raise anything
            _failures.append(error)
            _log.warning(f"torch.compile does not work here, so updates are slower: {type(error).__name__}: {error}")
            return function(*args, **kwargs)

    _compiled.add(call)
    return call


def is_compiled_on_gpu(function: object) -> bool:
    """Whether `compiled_on_gpu` made a function."""
    return function in _compiled
