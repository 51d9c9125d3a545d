"""Safetensors files written one tensor at a time, with the bytes that `safetensors.torch.save_file` writes.

    with TensorWriter(path, {"weight": torch.empty(2, 3, device="meta")}) as writer:
        writer.write("weight", tensor)

The header needs dtypes and shapes alone, so tensors may come in any order, and none needs to stay in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

_NAMES: Mapping[torch.dtype, str] = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of dtypes, in the order in which a file has their tensors."""

_ALIGNMENT = 8  # bytes, of the first tensor in the file

_BYTES_AT_ONCE = 2**26


class TensorWriter:
    """Writes tensors to a new file.

    Args:
        layout: tensors of the same names, dtypes and shapes, on any device.

    Raises:
        OSError: the file can't be written.
    """

    def __init__(self, path: Path, layout: Mapping[str, Tensor]) -> None:
        ranks = {dtype: rank for rank, dtype in enumerate(_NAMES)}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        self._missing: dict[str, tuple[int, Tensor]] = {}  # name -> its place in the file, in bytes, and its layout
        for name in sorted(layout, key=lambda name: (ranks[layout[name].dtype], name)):
            tensor = layout[name]
            self._missing[name] = (end, tensor)
            start, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._file = path.open("wb")
        self._start = self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._start + end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if error is None and self._missing:
            raise RuntimeError(f"not written: {', '.join(self._missing)}")

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, once.

        Raises:
            KeyError: the layout has no such tensor, or it is written.
            ValueError: it has another dtype or shape.
            OSError: the file can't be written.
        """
        start, layout = self._missing.pop(name)
        if (tensor.dtype, tensor.shape) != (layout.dtype, layout.shape):
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {layout.dtype} {list(layout.shape)}")
        self._file.seek(self._start + start)
        for piece in tensor.detach().contiguous().reshape(-1).view(torch.uint8).split(_BYTES_AT_ONCE):
            # A copy: FSDP can't free memory that NumPy has seen.
            self._file.write(piece.to("cpu", copy=True).numpy().data)
