"""`python -m rloop_lightning` is `rloop-fit`."""

import sys

from rloop_lightning.cli.commands import rloop_fit

if __name__ == "__main__":
    sys.exit(rloop_fit())
