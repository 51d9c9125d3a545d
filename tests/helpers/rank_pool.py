"""Gloo processes (ranks) that tests give work to. They start once, from a fork server, and stay.

    first, second = on_ranks(2, work, "argument")       # what `work(rank, "argument")` returned on each rank

`work` must be a function of a module in tests/helpers, which the processes import.
"""

from __future__ import annotations

import datetime
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from tempfile import mkdtemp
from typing import Any

import torch.distributed as dist
from killing import _CONTEXT, begin_process  # whose fork server has the package imported

TIMEOUT_S = 60
"""A rank that waits longer for another gives up."""

_pools: dict[int, _Pool] = {}


class _Pool:
    def __init__(self, world: int) -> None:
        rendezvous = f"file://{mkdtemp(prefix='rloop-ranks-')}/rendezvous"
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve, args=(theirs, rendezvous, rank, world), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def on_ranks(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(rank, *args)` returns on each rank.

    Raises:
        AssertionError: with the traceback of each rank on which it raised.
    """
    if world not in _pools:
        _pools[world] = _Pool(world)
    pool = _pools[world]
    for pipe in pool.pipes:
        pipe.send((work, args))
    results, faults = [], []
    for rank, pipe in enumerate(pool.pipes):
        try:
            result, fault = pipe.recv() if pipe.poll(2 * TIMEOUT_S) else (None, "no answer")
        except EOFError:
            result, fault = None, "the process died"
        results.append(result)
        if fault:
            faults.append(f"rank {rank}: {fault}")
    if faults:
        _pools.pop(world).end()
        raise AssertionError("\n".join(faults))
    return results


def _serve(pipe: Connection, rendezvous: str, rank: int, world: int) -> None:
    begin_process()
    # For Lightning: that somebody else has started this process.
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*in eval mode|.*LeafSpec")
    dist.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=TIMEOUT_S)
    )
    while True:
        try:
            work, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((work(rank, *args), ""))
        except Exception:  # any kind; the test shows it
            pipe.send((None, traceback.format_exc()))
