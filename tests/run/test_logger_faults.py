"""Errors of loggers: failed writes get their path, and all others stay as they are."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from rloop_lightning.run.logger_faults import name_failed_writes, open_files
from rloop_lightning.system.files import WriteError


class Failing(Logger):
    """Raises the same error in each call."""

    name = "failing"
    version = 0

    def __init__(self, folder: Path, error: Exception) -> None:
        super().__init__()
        self.folder = folder
        self.error = error

    @property
    def log_dir(self) -> str:
        return str(self.folder)

    @property
    def experiment(self) -> Any:
        raise self.error

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        raise self.error

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        raise self.error

    def save(self) -> None:
        raise self.error

    def finalize(self, status: str) -> None:
        raise self.error


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hidden() -> ValueError:
    """As Lightning's TensorBoardLogger hides it."""
    error = ValueError("you tried to log 0.5 which is currently not supported")
    error.__cause__ = full()
    return error


@pytest.mark.parametrize("error", [full(), hidden()], ids=["as it is", "hidden"])
def test_every_call_names_the_loggers_folder_and_the_free_space(error: Exception, tmp_path: Path) -> None:
    logger = Failing(tmp_path / "logs", error)
    name_failed_writes(logger)
    calls = [
        lambda: logger.log_metrics({"a": 0.5}, step=1),
        lambda: logger.log_hyperparams({"a": 0.5}),
        logger.save,
        lambda: logger.finalize("success"),
        lambda: open_files(logger),
    ]
    for call in calls:
        with pytest.raises(WriteError) as found:
            call()
        assert str(found.value).startswith(f"can't write {tmp_path / 'logs'}: No space left on device (")
        assert "MB are free in" in str(found.value)


def test_a_run_that_fails_anyway_keeps_its_own_error(tmp_path: Path) -> None:
    logger = Failing(tmp_path, full())
    name_failed_writes(logger)
    logger.finalize("failed")


def test_a_file_that_the_error_names_is_named(tmp_path: Path) -> None:
    logger = Failing(tmp_path, PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "events.1")))
    name_failed_writes(logger)
    with pytest.raises(WriteError, match=r"can't write .*/events\.1: Permission denied"):
        logger.save()


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), OSError("HTTP 500"), ValueError("no scalar")],
    ids=["a network", "a service", "a value"],
)
def test_other_errors_stay_as_they_are(error: Exception, tmp_path: Path) -> None:
    logger = Failing(tmp_path, error)
    name_failed_writes(logger)
    with pytest.raises(type(error)) as found:
        logger.save()
    assert found.value is error
