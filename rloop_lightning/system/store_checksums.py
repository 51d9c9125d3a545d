"""The checksums that stores give of their objects, compared with files.

S3 calls it ETag: the MD5 of an object, or, after a multipart upload, the MD5 of its parts' MD5s. Google calls it
md5Hash. Other stores give none.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PART_BYTES = 64 * 2**20
"""Size of the parts of a multipart upload to S3, which takes at most 10,000 of them."""

_MD5 = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS = re.compile(r"[0-9a-f]{32}-\d+")


def differs(path: Path, info: Mapping[str, Any]) -> bool:
    """Whether a file's checksum is not the one that the store gives of an object; false if it gives none.

    Args:
        path: the file.
        info: what fsspec says of the object.
    """
    etag = str(info.get("ETag") or "").strip('"')
    if _MD5.fullmatch(etag):
        return _md5(path) != etag
    if _MD5_OF_PARTS.fullmatch(etag):
        return _md5_of_parts(path) != etag
    try:
        given = base64.b64decode(info.get("md5Hash") or "", validate=True).hex()
    except (binascii.Error, TypeError):
        return False
    return bool(given) and _md5(path) != given


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _md5_of_parts(path: Path) -> str:
    parts = hashlib.md5(usedforsecurity=False)
    count = 0
    with path.open("rb") as file:
        while part := file.read(PART_BYTES):
            parts.update(hashlib.md5(part, usedforsecurity=False).digest())
            count += 1
    return f"{parts.hexdigest()}-{count}"
