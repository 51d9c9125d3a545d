"""Local copies of what URLs name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rloop_lightning.system.fetched import fetched, fetched_run, fetched_word, url_of
from rloop_lightning.system.store import Store
from rloop_lightning.system.store_errors import StoreError


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty store, and an empty cache."""
    monkeypatch.setenv("RLOOP_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    fetched.cache_clear()
    yield files
    files.rm("/test_fetched", recursive=True)
    fetched.cache_clear()


def test_an_object_is_fetched_under_its_own_name(memory: Any) -> None:
    memory.pipe("/test_fetched/train.jsonl", b"rows")
    copy = fetched("memory://test_fetched/train.jsonl", "--data")
    assert copy.name == "train.jsonl"
    assert copy.read_bytes() == b"rows"
    assert url_of(copy) == "memory://test_fetched/train.jsonl"
    assert fetched_word("memory://test_fetched/train.jsonl", "--data") == str(copy)
    assert fetched_word("org/name", "--data") == "org/name"
    assert url_of(copy.parent) == url_of(Path("elsewhere")) == ""


def test_a_folder_follows_the_store(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://test_fetched/model"
    for name, content in {"config.json": b"{}", "sub/a": b"a", "old": b"x"}.items():
        memory.pipe(f"/test_fetched/model/{name}", content)
    copy = fetched(url, "--policy.model")
    assert _files(copy) == {"config.json": b"{}", "sub/a": b"a", "old": b"x"}
    taken = _count_gets(monkeypatch)
    assert fetched(f"{url}/", "--policy.model") == copy
    assert taken == []
    memory.rm("/test_fetched/model/old")
    memory.pipe("/test_fetched/model/sub/a", b"A")
    fetched.cache_clear()
    fetched(url, "--policy.model")
    assert taken == ["sub/a"]
    assert _files(copy) == {"config.json": b"{}", "sub/a": b"A"}


def test_a_copy_that_is_cut_off_is_not_read(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/test_fetched/train.jsonl", b"rows")
    real = Store._received

    def killed(self: Store, place: str, path: Path) -> None:
        path.write_bytes(b"ro")
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "_received", killed)
    with pytest.raises(KeyboardInterrupt):
        fetched("memory://test_fetched/train.jsonl", "--data")
    cache = Path(os.environ["RLOOP_CACHE"])
    assert not list(cache.rglob("train.jsonl*"))
    monkeypatch.setattr(Store, "_received", real)
    assert fetched("memory://test_fetched/train.jsonl", "--data").read_bytes() == b"rows"


def test_a_run_is_fetched_without_checkpoints_and_on_demand_without_weights(memory: Any) -> None:
    names = (
        "state.json",
        "round-0/explore/checkpoints/step-000001.ckpt",
        "final/model.safetensors",
        "final/config.json",
    )
    for name in names:
        memory.pipe(f"/test_fetched/run/{name}", b"x")
    copy = fetched_run("memory://test_fetched/run")
    assert _files(copy).keys() == {"state.json", "final/config.json"}
    assert fetched_run("memory://test_fetched/run", policies=True) == copy
    assert _files(copy).keys() == {"state.json", "final/config.json", "final/model.safetensors"}


def test_a_file_url_is_the_path_itself(tmp_path: Path) -> None:
    assert fetched(f"file://{tmp_path}/x", "--data") == tmp_path / "x"


def test_what_is_missing_is_an_error_that_names_the_flag(memory: Any) -> None:
    memory.pipe("/test_fetched/other", b"")
    with pytest.raises(StoreError, match="--data memory://test_fetched/none: can't read the store: no such object"):
        fetched("memory://test_fetched/none", "--data")


def test_a_cache_that_can_t_be_written_is_named(memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory.pipe("/test_fetched/train.jsonl", b"rows")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLOOP_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        StoreError, match=r"--data memory://test_fetched/train.jsonl: .*name another folder in RLOOP_CACHE"
    ):
        fetched("memory://test_fetched/train.jsonl", "--data")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _count_gets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    taken: list[str] = []
    real = Store.get

    def get(self: Store, name: str, path: Path) -> None:
        taken.append(name)
        real(self, name, path)

    monkeypatch.setattr(Store, "get", get)
    return taken
