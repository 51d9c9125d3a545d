"""A process of shard_processes.py: reads a request, counts or draws over its shards, and writes the answer.

It imports no torch, so that it starts fast and takes little memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.expert_draw import Drawn, DrawRules
from rloop_lightning.rollouts.pool_scan import counts_in
from rloop_lightning.rollouts.shard_processes import DAMAGED


def main() -> int:
    """Answer the request on standard input. Returns the exit code."""
    request = json.load(sys.stdin.buffer)
    shards = [Path(path) for path in request["shards"]]
    try:
        if request["task"] == "count":
            counts = counts_in(shards)
            _write(counts.schema, counts.to_batches())
        else:
            drawn = Drawn(DrawRules(**request["rules"]))
            drawn.take(shards, frozenset(request["problems"]))
            _write(drawn.schema, drawn.batches())
    except DamagedError as error:
        sys.stderr.write(str(error))
        return DAMAGED
    return 0


def _write(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.ipc.new_stream(sys.stdout.buffer, schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
