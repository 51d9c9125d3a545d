"""Runs a command that gets SIGTERM when the process that started it has died, however it died. Linux only.

    python -IS dies_with_parent.py PARENT_PID COMMAND ARGUMENT...

The kernel's request survives the exec, so this process becomes the command.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask the kernel for the signal, and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # otherwise it has died already
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
