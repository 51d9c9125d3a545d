"""The memory of this machine that a new process may take."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes of RAM that are free or can be freed, within the limit of the process's control group."""
    found = [_of_the_machine()]
    with suppress(OSError, ValueError):
        limit = int((_GROUP / "memory.max").read_text())  # "max" without a limit
        found.append(limit - int((_GROUP / "memory.current").read_text()))
    return max(0, min(found))


def _of_the_machine() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
