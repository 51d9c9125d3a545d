"""Other processes: their state, and messages to one that may not read them."""

from __future__ import annotations

import os
import socket
import struct
from multiprocessing.connection import Connection
from pathlib import Path

WAITING_STATES = ("R", "D")  # for a CPU, or for the disk
STOPPED_STATES = ("T", "t")


def limit_sends(connection: Connection, seconds: float) -> None:
    """Make sending to a worker that does not read fail with an OSError after this time."""
    with socket.socket(fileno=os.dup(connection.fileno())) as shared:
        whole = int(seconds)
        timeout = struct.pack("ll", whole, max(1, int((seconds - whole) * 1e6)))
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)


def process_state(pid: int) -> str:
    """The state of a process as in `ps`: "R" running or waiting for a CPU, "S" sleeping, "T" stopped; "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # not Linux
        return ""
