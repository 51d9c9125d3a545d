"""`python -m rloop_lightning` is `rloop-fit`."""

import sys
from pathlib import Path

# `python -m` puts the working directory first on the path (see system/working_directory.py). It stays in a checkout
# that is not installed, because the package itself is found there.
if sys.path[:1] == [str(Path.cwd())] and Path.cwd() != Path(__file__).parents[1]:
    del sys.path[0]

from rloop_lightning.cli.commands import rloop_fit

if __name__ == "__main__":
    sys.exit(rloop_fit())
