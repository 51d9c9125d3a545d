"""Stores: what is written appears whole or not at all, is verified, and a store that fails is one clear error."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3_server import S3Server

from rloop_lightning.system import store as store_module
from rloop_lightning.system import store_checksums
from rloop_lightning.system.store import Store, StoredObject
from rloop_lightning.system.store_errors import StoreError

At = Callable[[], Store]


@pytest.fixture(params=["memory", "file", "s3"])
def at(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> At:
    """An empty place in a store of each kind."""
    monkeypatch.setattr(store_module, "_PAUSES_S", (0.0, 0.0))
    name = tmp_path.name
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        for variable, value in server.variables.items():
            monkeypatch.setenv(variable, value)
        url = server.url(f"test_store/{name}")
    else:
        url = f"memory://test_store/{name}" if request.param == "memory" else f"file://{tmp_path}/place"
    return lambda: Store.at(url, "--out")


def test_files_come_back_as_they_went(at: At, tmp_path: Path) -> None:
    store, file = at(), tmp_path / "a.bin"
    assert store.objects() == {}
    file.write_bytes(b"first")
    first = store.put(file, "folder/a.bin")
    assert store.objects() == {"folder/a.bin": first}
    assert first.size == 5
    store.get("folder/a.bin", tmp_path / "copy" / "a.bin")
    assert (tmp_path / "copy" / "a.bin").read_bytes() == b"first"
    file.write_bytes(b"other")
    assert store.put(file, "folder/a.bin").version != first.version
    assert at().read("folder/a.bin") == b"other"
    store.remove(["folder/a.bin", "never/there"])
    assert store.objects() == {}
    assert store.read("folder/a.bin") is None


def test_an_object_is_created_once(at: At) -> None:
    store = at()
    assert store.create("lock", b"mine")
    assert not at().create("lock", b"theirs")
    assert store.read("lock") == b"mine"


def test_a_missing_object_is_an_error_that_leaves_no_file(at: At, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"--out .*: can't read the store: no such object, folder or bucket"):
        at().get("none", tmp_path / "none")
    assert not list(tmp_path.glob("none*"))


@pytest.mark.parametrize("failures", [1, 2])
def test_an_upload_is_tried_three_times(at: At, tmp_path: Path, failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = at(), tmp_path / "a"
    file.write_bytes(b"content")
    _failing(store, "put_file", failures, monkeypatch)
    store.put(file, "a")
    assert store.read("a") == b"content"


def test_an_upload_that_keeps_failing_leaves_the_object_as_it_was(
    at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = at(), tmp_path / "a"
    file.write_bytes(b"before")
    store.put(file, "a")
    file.write_bytes(b"after")
    _failing(store, "put_file", 3, monkeypatch)
    with pytest.raises(StoreError, match="can't write to the store: the cable is cut; check the network"):
        store.put(file, "a")
    assert store.read("a") == b"before"


def test_an_upload_that_changes_content_on_the_way_is_noticed(
    at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file, other = at(), tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"content")
    real = store._files.put_file
    monkeypatch.setattr(store._files, "put_file", lambda path, place, **options: real(str(other), place, **options))
    # Of a store without checksums, the size is all that there is.
    other.write_bytes(b"contenu" if store._is_s3 else b"short")
    with pytest.raises(StoreError, match=r"the object (differs from the file|has 5 bytes, and the file 7)"):
        store.put(file, "a")


def test_the_checksum_of_a_multipart_upload_is_verified(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in s3.variables.items():
        monkeypatch.setenv(variable, value)
    part = 5 * 2**20
    for module in (store_module, store_checksums):
        monkeypatch.setattr(module, "PART_BYTES", part)
    file = tmp_path / "large"
    file.write_bytes(bytes(range(256)) * (2 * part // 256) + b"end")
    parts = [file.read_bytes()[start : start + part] for start in (0, part, 2 * part)]
    expected = hashlib.md5(b"".join(hashlib.md5(one).digest() for one in parts)).hexdigest()
    store = Store.at(s3.url("test_store/multipart"), "--out")
    assert store.put(file, "large") == StoredObject(2 * part + 3, f'"{expected}-3"')
    assert not store_checksums.differs(file, {"ETag": f'"{expected}-3"'})
    assert store_checksums.differs(file, {"ETag": f'"{expected[::-1]}-3"'})


def test_checksums_of_google_are_compared(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    assert not store_checksums.differs(tmp_path / "a", {"md5Hash": "XUFAKrxLKna5cZ2REBfFkg=="})
    assert store_checksums.differs(tmp_path / "a", {"md5Hash": "AAAAKrxLKna5cZ2REBfFkg=="})
    assert not store_checksums.differs(tmp_path / "a", {})


def test_names_that_lead_out_of_the_folder_are_left_out() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/test_store/names/good", b"1")
    memory.store["/test_store/names/../evil"] = memory.store["/test_store/names/good"]
    memory.store["/test_store/names/a//b"] = memory.store["/test_store/names/good"]
    assert list(Store.at("memory://test_store/names", "--out").objects()) == ["good"]


def test_a_bucket_that_is_missing_and_a_server_that_is_away_are_named(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in s3.variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(StoreError, match="--out s3://nobucket/x: can't write to the store: no such object, folder or"):
        Store.at("s3://nobucket/x", "--out").create("a", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"Could not connect.*; check the network, and the address of a store of your"):
        Store.at("s3://bucket/x", "--out").objects()


def _failing(store: Store, method: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first calls of a method of the client fail."""
    real: Any = getattr(store._files, method)
    left = [OSError("the cable is cut")] * times

    def sometimes(*args: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args, **options)

    monkeypatch.setattr(store._files, method, sometimes)
