"""One thread a test process: on the tests' tiny tensors more threads only wait for each other. And no test has a time.

What Hypothesis would fail after 200 ms is often the first call of a kernel, or a busy machine.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the commands that tests start inherit it

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
