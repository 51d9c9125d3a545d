"""A place in an object store: its objects are listed, read, and written whole or not at all.

    store = Store.at("s3://bucket/run", "--out")
    store.put(Path("state.json"), "state.json")     # retried and verified
    store.get("state.json", Path("copy.json"))
    store.objects()                                 # {"state.json": StoredObject(size=512, version='"6805f2..."')}

fsspec gives access to the store. An object appears when its PUT or its multipart upload is complete; in a folder
(file://), by a rename. Errors of any client become `StoreError`, whose message shows no credentials.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from rloop_lightning.system.checksums import digest
from rloop_lightning.system.files import atomic_path
from rloop_lightning.system.store_checksums import PART_BYTES, differs
from rloop_lightning.system.store_errors import StoreError, reason_of
from rloop_lightning.system.store_urls import shown_url, url_faults

_log = logging.getLogger(__name__)

_PAUSES_S = (1.0, 4.0)  # between the tries of a transfer; the clients retry by themselves besides
_VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10}},  # seconds; botocore's minute is long for a wrong address
    "file": {"auto_mkdir": True},
}
_NO_CONDITIONS = {errno.ENOSYS, errno.EOPNOTSUPP}
_READ_BYTES = 2**20
_PARTIAL = ".partial"

T = TypeVar("T")


@dataclass(frozen=True)
class StoredObject:
    """An object as its store describes it.

    Args:
        size: bytes.
        version: changes with the content: the store's checksum, or the time of the last change.
    """

    size: int
    version: str

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> StoredObject:
        """From what fsspec says of it."""
        version = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
        # A listing may give a time as a number, and a request for one object as a date.
        return cls(int(info["size"]), str(version.timestamp() if isinstance(version, datetime) else version))


class Store:
    """A folder in an object store, or one object if the URL is that of an object.

    Args:
        url: its URL, which `url_faults` accepts.
        flag: the option that names it, for messages.
        files: the file system of fsspec.
        root: the path in it.
    """

    def __init__(self, url: str, flag: str, files: Any, root: str) -> None:
        self._name = f"{flag} {shown_url(url)}".strip()
        self._files = files
        self._root = root.rstrip("/")
        self._in_folder = "file" in files.protocol
        self._is_s3 = "s3" in files.protocol

    @classmethod
    def at(cls, url: str, flag: str) -> Store:
        """The store of a URL; nothing is asked of it yet.

        Raises:
            StoreError: the URL or the store's package is not usable.
        """
        if faults := url_faults(url, flag):
            raise StoreError("\n".join(faults))
        scheme = url.partition("://")[0].lower()
        options = _OPTIONS.get("s3" if scheme == "s3a" else scheme, {})
        try:
            files, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **options)
        except Exception as error:  # the clients' errors share no base class
            raise StoreError(f"{flag} {shown_url(url)}: {reason_of(error)}") from error
        return cls(url, flag, files, root)

    def is_object(self) -> bool:
        """Whether the URL is that of an object, rather than of a folder.

        Raises:
            StoreError: there is neither, or the store can't be asked.
        """
        return self._asked("read", lambda: self._files.info(self._root)["type"] == "file")

    def objects(self) -> dict[str, StoredObject]:
        """The objects in the folder and its subfolders, by name; none if it does not exist.

        Those whose name is no relative path in normal form, such as `../x`, are left out.

        Raises:
            StoreError: the store can't be asked.
        """

        def listed() -> Mapping[str, Any]:
            try:
                return self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}

        found = self._asked("list", listed)
        files = {path: info for path, info in found.items() if info["type"] == "file"}
        named = {path.removeprefix(self._root).removeprefix("/"): info for path, info in files.items()}
        return {name: StoredObject.of(info) for name, info in named.items() if _is_file_name(name)}

    def object(self, name: str = "") -> StoredObject:
        """One object; by default that of the URL itself.

        Raises:
            StoreError: it is not there, or the store can't be asked.
        """
        return self._asked("read", lambda: StoredObject.of(self._files.info(self._path(name))))

    def read(self, name: str) -> bytes | None:
        """The content of a small object; None if it is not there.

        Raises:
            StoreError: the store can't be asked.
        """

        def content() -> bytes | None:
            try:
                return self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None

        return self._asked("read", content)

    def write(self, name: str, content: bytes) -> None:
        """Write a small object.

        Raises:
            StoreError: it can't be written.
        """
        self._asked("write to", lambda: self._files.pipe_file(self._path(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object, unless there is one of this name. Returns whether it was written.

        By the store's own condition if it has one. Otherwise two processes at the same moment may both write.

        Raises:
            StoreError: it can't be written.
        """
        path = self._path(name)

        def created() -> bool:
            try:
                self._files.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "condition" in str(error).lower():  # HTTP status 412
                    return False
                if error.errno not in _NO_CONDITIONS:
                    raise
                if self._files.exists(path):
                    return False
                self._files.pipe_file(path, content)
            return True

        return self._asked("write to", created)

    def put(self, path: Path, name: str) -> StoredObject:
        """Upload a file, and verify the object's size and, if the store gives one, its checksum.

        Raises:
            StoreError: it failed several times. An object of this name is as it was, or whole.
        """
        return self._retried("write to", partial(self._sent, path, self._path(name)))

    def get(self, name: str, path: Path) -> None:
        """Download an object to a file, which appears whole or not at all; an empty name is the URL's own object.

        Raises:
            StoreError: it failed several times, or the object is not there.
            WriteError: the file can't be written.
        """
        with atomic_path(path) as beside:
            self._retried("read", partial(self._received, self._path(name), beside))

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, if they are there.

        Raises:
            StoreError: one can't be removed.
        """
        for name in names:
            self._asked("write to", partial(self._removed, self._path(name)))

    def _sent(self, path: Path, place: str) -> StoredObject:
        beside = place + _PARTIAL if self._in_folder else place
        self._files.put_file(str(path), beside, **({"chunksize": PART_BYTES} if self._is_s3 else {}))
        if self._in_folder:
            self._files.mv(beside, place)
        info = self._files.info(place)
        if info["size"] != path.stat().st_size:
            raise OSError(f"the object has {info['size']:,} bytes, and the file {path.stat().st_size:,}")
        # The checksum that a store gives of an encrypted object is not that of the file.
        if differs(path, info) and self._digest(place) != digest(path):
            raise OSError("the object differs from the file")
        return StoredObject.of(info)

    def _received(self, place: str, path: Path) -> None:
        info = self._files.info(place)
        self._files.get_file(place, str(path))
        if info["size"] != path.stat().st_size or (differs(path, info) and self._digest(place) != digest(path)):
            raise OSError("the copy differs from the object")

    def _removed(self, place: str) -> None:
        try:
            self._files.rm_file(place)
        except FileNotFoundError:
            return

    def _digest(self, place: str) -> str:
        found = hashlib.sha256()
        with self._files.open(place, "rb") as file:
            while block := file.read(_READ_BYTES):
                found.update(block)
        return found.hexdigest()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _retried(self, verb: str, action: Callable[[], T]) -> T:
        for pause in _PAUSES_S:
            try:
                return self._asked(verb, action)
            except StoreError as error:
                if isinstance(error.__cause__, FileNotFoundError | PermissionError):
                    raise
                _log.debug(f"{error}; it is tried again")
                time.sleep(pause)
        return self._asked(verb, action)

    def _asked(self, verb: str, action: Callable[[], T]) -> T:
        """The outcome of a request.

        Raises:
            StoreError: in place of any error of the store's client.
        """
        self._files.invalidate_cache()
        try:
            return action()
        except Exception as error:  # the clients' errors share no base class
            raise StoreError(f"{self._name}: can't {verb} the store: {reason_of(error)}") from error


def _is_file_name(name: str) -> bool:
    """Whether a file of this name would be in the folder itself or below. Stores allow any name."""
    whole = not name.endswith(_PARTIAL) and "\0" not in name
    return whole and all(part not in ("", ".", "..") for part in name.split("/"))
