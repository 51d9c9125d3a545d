"""The `rloop-fit` command, also as `python -m rloop_lightning`; deals with signals before anything slow is imported."""

from __future__ import annotations

import sys

from rloop_lightning.faults import Stopped
from rloop_lightning.signals import StopSignals


def main() -> int:
    """As `rloop_lightning.cli.main`, whose import takes seconds."""
    with StopSignals():
        try:
            from rloop_lightning.cli import main as fit

            return fit()
        except Stopped as stopped:
            print(f"\nrloop-fit: {stopped}; no run was begun", file=sys.stderr)
            return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())
