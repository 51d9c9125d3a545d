"""What tests have worker processes do. A worker imports this module, so it imports nothing heavy."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

HELD = []


def act(task):
    """`[what, argument]`: one of the things that a task may do to its worker."""
    what, argument = task
    match what:
        case "echo":
            return argument
        case "note":  # leaves a line, to count how often a task was run
            with Path(argument).open("a") as file:
                file.write("x")
            return "noted"
        case "print":
            print("x" * argument)
            print("x" * argument, file=sys.stderr)
            os.write(1, b"x" * argument)
            return "printed"
        case "pid":
            return os.getpid()
        case "sleep":
            time.sleep(argument)
            return "slept"
        case "compute":  # holds the interpreter's lock in C
            return (10**argument).bit_length()
        case "burn":  # CPU time, seconds
            end = time.process_time() + argument
            while time.process_time() < end:
                pass
            return "burnt"
        case "die" | "die_once" | "stop_once":
            again = Path(argument).exists()
            act(["note", argument])
            if what == "die" or not again:
                os.kill(os.getpid(), signal.SIGSTOP if what == "stop_once" else signal.SIGKILL)
            return "continued" if what == "stop_once" else "survived"
        case "raise":
            raise RuntimeError(argument)
        case "exit":
            os._exit(argument)
        case "segfault":
            ctypes.string_at(0)
        case "allocate":
            HELD.append(bytearray(argument << 20))
            return "allocated"
