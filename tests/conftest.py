"""One thread a test process: on the tests' tiny tensors more threads only wait for each other. And no test has a time.

What Hypothesis would fail after 200 ms is often the first call of a kernel, or a busy machine.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the commands that tests start inherit it
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # tests need no network
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="rloop-tests-")  # the tester's own stays as it is
os.environ["RLOOP_CACHE"] = tempfile.mkdtemp(prefix="rloop-tests-")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from s3_server import S3Server
    from tiny_run import TinyRun

os.fsync = lambda descriptor: None  # only a power cut loses what is not on the disk; it takes a tenth of a tiny run

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_finish() -> None:
    """What the imports made stays to the end: the garbage collector needs not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server of this machine, with an empty bucket."""
    from s3_server import serving

    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A tiny run to be made."""
    from tiny_run import TinyRun  # here, as it imports the whole package

    return TinyRun.written(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run that came to its end, with its plots; it is only read."""
    return replace(tiny, draws=True).finished(tmp_path_factory.mktemp("finished") / "run")
