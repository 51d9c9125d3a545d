"""Errors of the clients of object stores, as messages with a remedy and without credentials."""

from __future__ import annotations

import errno

from rloop_lightning.system.store_urls import without_secrets
from rloop_lightning.system.terminal import cause, one_line

_LONGEST = 300  # characters of a client's message

_CREDENTIALS = (
    "check the credentials that its own tools use (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, `aws configure`, "
    "GOOGLE_APPLICATION_CREDENTIALS) and what they may do there"
)
_REACH = "check the network, and the address of a store of your own in AWS_ENDPOINT_URL, then try again"
_FULL = "free disk space, or name a folder on a larger disk in RLOOP_CACHE"


class StoreError(ValueError):
    """A store can't be used. The message names the flag, the URL, the reason and a remedy, without credentials."""


def reason_of(error: Exception) -> str:
    """Why a client failed, and what to do."""
    kind = type(error).__name__
    if isinstance(error, ImportError):
        return f"{_told(error)}; install that package"
    if isinstance(error, FileNotFoundError):
        return "no such object, folder or bucket; check the URL"
    if isinstance(error, PermissionError) or "Credential" in kind or "Auth" in kind:
        return f"{_told(error)}; {_CREDENTIALS}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{_told(error)}; {_FULL}"
    return f"{_told(error)}; {_REACH}"


def _told(error: Exception) -> str:
    return one_line(without_secrets(cause(error)), limit=_LONGEST).rstrip(".")
