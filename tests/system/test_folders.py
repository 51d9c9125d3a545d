"""Folders with checksums: replaced and removed file by file, and files of others stay."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from rloop_lightning.system import folders
from rloop_lightning.system.checksums import SUMS, damaged_files
from rloop_lightning.system.files import WriteError
from rloop_lightning.system.folders import remove_folder, write_folder


def write(folder: Path, files: dict[str, str]) -> None:
    with write_folder(folder) as partial:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(content)


def content(folder: Path) -> dict[str, str]:
    """All files but the checksums."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


OLD = {"weights": "old", "weights-2": "old", "templates/a": "old"}
NEW = {"weights": "new", "more/b": "new"}


def test_a_new_folder_has_its_files_and_their_checksums(tmp_path: Path) -> None:
    write(tmp_path / "policy", OLD)
    assert content(tmp_path / "policy") == OLD
    assert damaged_files(tmp_path / "policy") == {}
    (tmp_path / "policy" / "templates" / "a").write_text("other")
    assert list(damaged_files(tmp_path / "policy")) == ["templates/a"]
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]


def test_a_new_version_replaces_the_folders_own_files_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    write(folder, OLD)
    theirs = {"notes.txt": "mine", "templates/mine": "mine", "sub/thesis.txt": "mine"}
    (folder / "sub").mkdir()
    for name, text in theirs.items():
        (folder / name).write_text(text)
    write(folder, NEW)
    assert content(folder) == {**NEW, **theirs}
    assert damaged_files(folder) == {}
    assert list(tmp_path.iterdir()) == [folder]
    remove_folder(folder)
    assert content(folder) == theirs
    assert not (folder / SUMS).exists()
    assert not (folder / "more").exists()


def test_a_folder_without_other_files_is_removed_and_a_missing_one_is_no_fault(tmp_path: Path) -> None:
    write(tmp_path / "policy", OLD)
    remove_folder(tmp_path / "policy")
    remove_folder(tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_before_the_replacement_leaves_the_old_version(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    write(folder, OLD)
    with pytest.raises(WriteError, match=f"can't write {folder}: File name too long"):
        write(folder, {"weights": "new", "x" * 256: "new"})
    assert content(folder) == OLD
    assert damaged_files(folder) == {}
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("moment", range(7))
def test_after_a_kill_in_the_replacement_the_folder_is_damaged_or_whole_and_the_next_write_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The kill comes before the operation of this number: a removal, a rename, or a flush to disk."""
    folder = tmp_path / "policy"
    write(folder, OLD)
    (folder / "notes.txt").write_text("mine")
    calls = 0

    class Killed(BaseException):
        pass

    def killing(function):
        def wrapper(*args):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return function(*args)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr("rloop_lightning.system.files._remove", lambda path: None)  # nothing tidies up after a kill
        for name in ("_remove_file", "fsync"):
            patch.setattr(folders, name, killing(getattr(folders, name)))
        patch.setattr(folders.os, "replace", killing(folders.os.replace))
        with pytest.raises(Killed):
            write(folder, NEW)
    if not damaged_files(folder):
        assert content(folder) in ({**OLD, "notes.txt": "mine"}, {**NEW, "notes.txt": "mine"})
    assert (folder / "notes.txt").read_text() == "mine"
    write(folder, NEW)
    assert content(folder) == {**NEW, "notes.txt": "mine"}
    assert damaged_files(folder) == {}
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["../thesis.txt", "link/thesis.txt", "{outside}/thesis.txt", "..", "a\0b", "", "."])
def test_checksums_that_name_files_outside_remove_none(tmp_path: Path, name: str) -> None:
    folder, outside = tmp_path / "run" / "policy", tmp_path / "run"
    write(folder, OLD)
    (outside / "thesis.txt").write_text("mine")
    (folder / "link").symlink_to(outside)
    digest = hashlib.sha256(b"mine").hexdigest()
    with (folder / SUMS).open("a") as sums:
        sums.write(f"{digest}  {name.format(outside=outside)}\n")
    write(folder, NEW)
    with (folder / SUMS).open("a") as sums:
        sums.write(f"{digest}  {name.format(outside=outside)}\n")
    remove_folder(folder)
    assert (outside / "thesis.txt").read_text() == "mine"


def test_a_link_is_never_written_through_nor_removed(tmp_path: Path) -> None:
    write(tmp_path / "theirs", OLD)
    (tmp_path / "policy").symlink_to(tmp_path / "theirs")
    with pytest.raises(WriteError, match="policy: it is a link; put a folder in its place"):
        write(tmp_path / "policy", NEW)
    remove_folder(tmp_path / "policy")
    assert content(tmp_path / "theirs") == OLD
    shutil.rmtree(tmp_path / "theirs")
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]
