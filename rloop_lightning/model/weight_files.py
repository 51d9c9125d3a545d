"""Weight files of a folder, checked by their headers and their index alone.

weights = WeightFiles.read(folder)
weights.faults          errors, one message each
weights.elements        numbers that the files hold
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rloop_lightning.model.config_json import read_object
from rloop_lightning.system.terminal import one_line

_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_LONGEST_HEADER = 25_000_000  # bytes, as on the hub
_SHOWN = 5  # files that a message lists by name

_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Size of a number by the format's name of its dtype."""


@dataclass(frozen=True)
class WeightFiles:
    """What the headers of a folder's weight files say.

    Args:
        faults: errors, one message each.
        tensors: number of tensors in the files.
        elements: numbers in all tensors together.
    """

    faults: list[str]
    tensors: int
    elements: int

    @classmethod
    def read(cls, folder: Path) -> WeightFiles:
        """Read the index and all headers."""
        shards = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
        faults = list(_file_faults(folder, [shard.name for shard in shards]))
        sizes = []
        for shard in shards:
            try:
                sizes += _elements(shard)
            except ValueError as error:
                faults.append(f"{one_line(shard.name)} {error}")
        return cls(faults, len(sizes), sum(sizes))


def _file_faults(folder: Path, shards: list[str]) -> Iterator[str]:
    """Errors in the index and in what files there are."""
    index = read_object(folder / _INDEX)
    if isinstance(index, str):
        yield index
    elif index is not None:
        yield from _index_faults(index, set(shards))
    elif any(_DISTRIBUTED.fullmatch(name) for name in shards):
        yield "contains the shards of a distributed checkpoint; load it, and give a folder written by save_pretrained"
    elif not shards and any(found for pattern in _PICKLES for found in folder.glob(pattern)):
        yield (
            "contains weights only as pickles, which can run code and are refused; convert those you trust by "
            "AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(FOLDER)"
        )
    elif not shards:
        yield "contains no weights (model.safetensors)"


def _index_faults(index: Mapping[str, Any], shards: set[str]) -> Iterator[str]:
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(shard, str) for shard in named.values()):
        yield f"{_INDEX} has no weight_map from weights to their files; copy the file again"
        return
    if not isinstance(index.get("metadata", {}), dict):
        yield f"{_INDEX}: metadata must be an object; copy the file again"
    missing = sorted(set(named.values()) - shards)
    if missing:
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        names = ", ".join(one_line(name) for name in missing[:_SHOWN])
        yield f"{_INDEX} names {names}{more}, which the folder lacks; copy it whole"


def _elements(shard: Path) -> list[int]:
    """The number of elements of each tensor in a safetensors file.

    Its first eight bytes give the length of the header, and the header gives the size of the file.

    Raises:
        ValueError: the header can't be right; says what to do.
    """
    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if 8 + length <= size and length <= _LONGEST_HEADER else b""
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from error
    try:
        entries = [(name, entry) for name, entry in json.loads(header).items() if name != "__metadata__"]
        spans = [
            (*_span(entry["data_offsets"]), name, entry["dtype"], _count(entry["shape"])) for name, entry in entries
        ]
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        raise ValueError("is cut short or no safetensors file: its header can't be read; copy it again") from None
    end = 0
    for begin, after, name, dtype, count in sorted(spans, key=lambda span: span[:2]):
        shown = one_line(name)
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise ValueError(f"holds {shown} as {one_line(repr(dtype))}, which is no known dtype; take other weights")
        if begin != end or 8 * (after - begin) != count * _BITS[dtype]:
            raise ValueError(f"is damaged: its header has a wrong place or size for {shown}; copy it again")
        end = after
    if size != 8 + length + end:
        raise ValueError(f"holds {size:,} bytes and should hold {8 + length + end:,}: it was cut short; copy it again")
    return [span[-1] for span in spans]


def _span(offsets: Any) -> tuple[int, int]:
    begin, end = offsets
    if type(begin) is not int or type(end) is not int:
        raise TypeError
    return begin, end


def _count(shape: Any) -> int:
    if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise TypeError
    return math.prod(shape)
