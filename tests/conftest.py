"""One thread a test process: on the tests' tiny tensors more threads only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the commands that tests start inherit it
