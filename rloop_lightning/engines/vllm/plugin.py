"""vLLM loads this in each of its processes: the entry point `rloop` of the group `vllm.general_plugins`.

It registers the weight-transfer backend `shm`, and lets the processes of an engine that `rloop-serve` started end with
the process that started them, however that ends. It imports nothing of the trainer.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

ENGINE_VARIABLE = "RLOOP_ENGINE"
"""Set in the processes of `rloop-serve`. Other programs that use vLLM in the same environment are left alone."""

_PR_SET_PDEATHSIG = 1


def register() -> None:
    """What vLLM calls, maybe more than once in a process."""
    if not os.environ.get(ENGINE_VARIABLE):
        return
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with(parent.pid)
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "shm" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("shm", "rloop_lightning.engines.vllm.shm", "SharedMemoryEngine")


def die_with(parent: int) -> None:
    """Kill this process once its parent has ended. Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request
        os.kill(os.getpid(), signal.SIGKILL)
