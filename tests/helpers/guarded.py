"""A call in a fork of this process, with limits, in which nothing of a stranger's may be fetched, unpickled or run.

result = guarded(lambda: load(folder), memory_mb=4096, seconds=300)     # what it returned, or how it ended
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from killing import begin_process

FORBIDDEN = (
    "transformers.dynamic_module_utils:get_class_from_dynamic_module",
    "transformers.dynamic_module_utils:get_cached_module_file",
    "transformers.integrations.hub_kernels:get_kernel",
    "transformers.integrations.hub_kernels:load_and_register_attn_kernel",
    "huggingface_hub:hf_hub_download",
    "huggingface_hub:snapshot_download",
    "huggingface_hub.file_download:http_get",
    "torch:load",
    "pickle:load",
    "pickle:loads",
    "pickle:Unpickler",
)


def guarded(call: Callable[[], Any], *, memory_mb: int = 6144, seconds: float = 300) -> tuple[str, Any]:
    """How a call ended: `returned` with its value, or `raised`, `forbidden`, `killed` or `hung` with a description."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _serve(call, memory_mb, writer)
    os.close(writer)
    answer, deadline = b"", time.monotonic() + seconds
    os.set_blocking(reader, False)
    try:
        while time.monotonic() < deadline:
            try:
                chunk = os.read(reader, 1 << 16)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            if not chunk:
                break
            answer += chunk
        else:
            return "hung", f"no end within {seconds} s"
        if answer:
            kind, value = json.loads(answer)
            return kind, value
        _, status = os.waitpid(child, 0)
        return "killed", os.waitstatus_to_exitcode(status)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _serve(call: Callable[[], Any], memory_mb: int, writer: int) -> None:
    """The fork's part. It never returns."""

    def answer(kind: str, value: Any) -> None:
        os.write(writer, json.dumps([kind, value]).encode())
        os._exit(0)

    try:
        begin_process()
        _forbid(lambda what: answer("forbidden", what))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        answer("returned", call())
    except BaseException as error:
        answer("raised", f"{type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc()[-3000:]}")
    os._exit(1)


def _forbid(found: Callable[[str], None]) -> None:
    """End the process where a function of `FORBIDDEN` is called, wherever it was imported, or a socket connects."""
    for place in FORBIDDEN:
        module, _, name = place.partition(":")
        original = getattr(importlib.import_module(module), name)

        def refuse(*_: Any, place: str = place, **__: Any) -> None:
            found(place)

        for imported in list(sys.modules.values()):
            if getattr(imported, "__dict__", {}).get(name) is original:
                setattr(imported, name, refuse)
    socket.socket.connect = lambda *_: found("connect")  # type: ignore[assignment,method-assign]  # of this fork alone
