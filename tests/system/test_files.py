"""Files and folders that appear whole or not at all, and seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.files import WriteError, append, atomic_path, write_text


def test_a_file_is_there_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_path(path) as partial:
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk is full"):
        _fail_to_write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_appears_whole_in_place_of_the_leftover_of_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "folder.partial" / "leftover").touch()
    with atomic_path(path) as partial:
        partial.mkdir()
        (partial / "new").touch()
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_never_replaces_one_that_holds_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "theirs").touch()
    with pytest.raises(WriteError, match="not empty"), atomic_path(tmp_path / "folder") as partial:
        partial.mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/theirs"]


@pytest.mark.parametrize("target", ["theirs", "missing"])
def test_a_link_is_not_appended_to(tmp_path: Path, target: str) -> None:
    (tmp_path / "theirs").write_text("mine")
    (tmp_path / "sums").symlink_to(tmp_path / target)
    with pytest.raises(WriteError, match=r"can't write .*/sums: Too many levels of symbolic links$"):
        append(tmp_path / "sums", b"more")
    assert (tmp_path / "theirs").read_text() == "mine"
    assert not (tmp_path / "missing").exists()
    write_text(tmp_path / "sums", "new")  # replaces the link, not what it leads to
    append(tmp_path / "sums", b", more")
    assert (tmp_path / "sums").read_text() == "new, more"
    assert (tmp_path / "theirs").read_text() == "mine"


def test_seeds_depend_on_every_part_and_are_the_same_everywhere() -> None:
    names = [(0, "explore", 0), (0, "explore", 1), (1, "explore", 0), (0, "x", 0)]
    seeds = {derive_seed(*name) for name in names}
    assert len(seeds) == 4
    assert derive_seed(0, "explore", 0) == 9126700554509472744
    assert all(0 <= seed < 2**63 for seed in seeds)


def _fail_to_write(path: Path) -> None:
    with atomic_path(path) as partial:
        partial.write_text("new")
        raise OSError("disk is full")
