"""The copy of a run folder in a store: its order, what fails, and which of the two is further."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rloop_lightning.errors import StateError
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.mirror import RunMirror, UploadError
from rloop_lightning.run.resume import restart
from rloop_lightning.run.state import LoopState, plan
from rloop_lightning.run.store_lock import LOCK, StoreLock
from rloop_lightning.system import store as store_module
from rloop_lightning.system.store import Store

URL = "memory://test_mirror/run"
STATE = LoopState("id", round=0, phase="explore", stages_done=1)


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(store_module, "_PAUSES_S", (0.0, 0.0))
    files = fsspec.filesystem("memory")
    files.pipe("/test_mirror/other", b"")
    yield files
    files.rm("/test_mirror", recursive=True)


def begun(folder: Path) -> tuple[RunFolder, RunMirror]:
    """A run folder whose saves are uploaded."""
    store = Store.at(URL, "--out")
    lock = StoreLock(store)
    lock._id = "the same owner in every machine of a test"
    store.write(LOCK, lock._content())
    mirror = RunMirror(folder, store, URL, lock)
    return RunFolder(folder, URL, mirror), mirror


def written(folder: RunFolder, *names: str, content: str = "x") -> None:
    for name in names:
        path = folder.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def stored(memory: Any) -> dict[str, bytes]:
    found = memory.find("/test_mirror/run")
    return {path.removeprefix("/test_mirror/run/"): memory.cat(path) for path in found if not path.endswith(LOCK)}


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is put and removed, in order."""
    made: list[str] = []
    put, removed = Store._sent, Store._removed

    def sent(self: Store, path: Path, place: str) -> Any:
        made.append(place.removeprefix("/test_mirror/run/"))
        return put(self, path, place)

    def gone(self: Store, place: str) -> None:
        made.append("- " + place.removeprefix("/test_mirror/run/"))
        removed(self, place)

    monkeypatch.setattr(Store, "_sent", sent)
    monkeypatch.setattr(Store, "_removed", gone)
    return made


def test_files_go_in_the_order_of_their_writing_and_the_state_last(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = begun(tmp_path / "run")
    made = calls(monkeypatch)
    written(folder, "round-0/pool/b.parquet")
    written(folder, "round-0/pool/_SHA256SUMS", "round-0/pool/a.partial", "round-0/policy.partial/config.json")
    written(folder, "run.lock")
    folder.save_state(STATE)
    assert made == ["round-0/pool/b.parquet", "round-0/pool/_SHA256SUMS", "state.json"]
    made.clear()
    folder.save_state(STATE)
    assert made == []
    (folder.out / "round-0/pool/b.parquet").unlink()
    written(folder, "round-0/policy/config.json")
    folder.save_state(replace(STATE, stages_done=2))
    assert made == ["round-0/policy/config.json", "state.previous.json", "state.json", "- round-0/pool/b.parquet"]
    names = {"round-0/policy/config.json", "round-0/pool/_SHA256SUMS", "state.json", "state.previous.json"}
    assert stored(memory).keys() == names


def test_a_checkpoint_is_uploaded_unless_the_last_upload_was_long_and_just_now(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mirror = begun(tmp_path / "run")
    clock = [0.0]
    monkeypatch.setattr("rloop_lightning.run.mirror.time.monotonic", lambda: clock[0])
    folder.save_state(STATE)
    written(folder, "a.ckpt")
    folder.checkpoint_saved()
    assert "a.ckpt" in stored(memory)
    real = mirror._send

    def slow() -> None:
        real()
        clock[0] += 5.0

    monkeypatch.setattr(mirror, "_send", slow)
    written(folder, "b.ckpt")
    folder.checkpoint_saved()
    for seconds, there in ((5.0, False), (44.0, False), (2.0, True)):
        clock[0] += seconds
        written(folder, "c.ckpt")
        folder.checkpoint_saved()
        assert ("c.ckpt" in stored(memory)) is there


def test_a_failed_upload_is_told_and_the_next_save_takes_it_up(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, mirror = begun(tmp_path / "run")
    real = Store._sent
    monkeypatch.setattr(Store, "_sent", _cut)
    written(folder, "a")
    folder.save_state(STATE)
    assert (
        f"--out {URL}: can't write to the store: the cable is cut; check the network, and the address of a store of "
        "your own in AWS_ENDPOINT_URL, then try again; the run goes on, and the next save uploads what is missing"
    ) in caplog.text
    folder.checkpoint_saved()
    assert caplog.text.count("the cable is cut") == 1
    with pytest.raises(UploadError) as error:
        mirror.close()
    assert f"the run is whole in {folder.out}; upload the rest from this machine with: rloop-fit --resume {URL}" in str(
        error.value
    )
    assert stored(memory) == {}
    monkeypatch.setattr(Store, "_sent", real)
    mirror.close()
    assert stored(memory).keys() == {"a", "state.json"}


def test_a_process_that_was_replaced_uploads_nothing(
    tmp_path: Path, memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = begun(tmp_path / "run")
    folder.save_state(STATE)
    memory.pipe(f"/test_mirror/run/{LOCK}", b'{"id": "another", "host": "h", "process": 7}')
    written(folder, "a")
    folder.save_state(STATE)
    assert "process 7 on host h has taken the run over; stop one of the two" in caplog.text
    assert "a" not in stored(memory)


def test_a_folder_that_is_gone_is_downloaded(tmp_path: Path, memory: Any) -> None:
    folder, _ = begun(tmp_path / "run")
    written(folder, "round-0/policy/config.json")
    folder.save_state(STATE)
    there, mirror = begun(tmp_path / "elsewhere" / "run")
    mirror.download()
    assert LoopState.load(there.state) == STATE
    assert (there.out / "round-0/policy/config.json").read_text() == "x"
    written(there, "b")
    there.save_state(STATE)
    assert stored(memory).keys() == {"round-0/policy/config.json", "state.json", "b"}


def test_a_download_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = begun(tmp_path / "run")
    written(folder, "a", "b", "c")
    folder.save_state(STATE)
    there, mirror = begun(tmp_path / "elsewhere" / "run")
    taken: list[str] = []
    real = Store.get

    def get(self: Store, name: str, path: Path) -> None:
        if name == "b" and "b" not in taken:
            taken.append(name)
            raise KeyboardInterrupt
        taken.append(name)
        real(self, name, path)

    monkeypatch.setattr(Store, "get", get)
    with pytest.raises(KeyboardInterrupt):
        mirror.download()
    assert not there.state.exists()
    begun(there.out)[1].download()
    assert [name for name in taken if name != "state.json"] == ["a", "b", "b", "c"]
    assert there.state.exists()


@pytest.mark.parametrize("further", ["state", "checkpoint", "final"])
def test_a_store_that_is_further_replaces_the_folder(
    tmp_path: Path, further: str, caplog: pytest.LogCaptureFixture
) -> None:
    here, _ = begun(tmp_path / "run")
    written(here, "a", "round-0/explore/checkpoints/step-000001.ckpt")
    here.save_state(STATE)
    there, mirror = begun(tmp_path / "elsewhere" / "run")
    mirror.download()
    (there.out / "a").unlink()
    written(there, "b")
    if further == "checkpoint":
        written(there, "round-0/explore/checkpoints/step-000002.ckpt")
    there.save_state(
        {"state": replace(STATE, stages_done=2, phase="evaluate"), "final": replace(STATE, selected="base")}.get(
            further, STATE
        )
    )
    caplog.set_level("INFO")
    begun(here.out)[1].download()
    assert f"{URL} is further" in caplog.text
    files = ({path.relative_to(folder.out) for path in folder.out.rglob("*.*")} for folder in (here, there))
    assert next(files) == next(files)
    assert LoopState.load(here.state) == LoopState.load(there.state)


@pytest.mark.parametrize("change", ["another final policy", "a restart", "a restart of the phase it is in"])
def test_a_store_that_is_newer_replaces_a_folder_that_is_as_far_or_further(
    tmp_path: Path, memory: Any, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    stages = plan(1, consolidates=True)
    here, _ = begun(tmp_path / "run")
    STATE.save(here.state_before(stages[1]))
    here.save_state(STATE)
    written(here, "round-0/explore/checkpoints/step-000002.ckpt")
    here.checkpoint_saved()
    done = replace(STATE, stages_done=5, phase="done", selected="round 1 consolidated")
    if "phase" not in change:
        here.save_state(done)
    written(here, "final/README.md", content="old")
    here.save_state(LoopState.load(here.state))
    there, mirror = begun(tmp_path / "elsewhere" / "run")
    mirror.download()
    written(there, "final/README.md", content="newer")
    if change == "another final policy":
        there.save_state(replace(done, selected="round 1 explored"))
    else:
        restart(there, stages, stages[1])
        there.save_state(LoopState.load(there.state))
    expected = stored(memory)
    caplog.set_level("INFO")
    _, mirror = begun(here.out)
    mirror.download()
    mirror.close()
    assert f"{URL} is newer (" in caplog.text
    assert stored(memory) == expected
    assert {path.relative_to(here.out).as_posix() for path in here.out.rglob("*") if path.is_file()} == expected.keys()
    assert (here.out / "final/README.md").read_text() == "newer"


def test_a_folder_that_is_further_than_the_store_stays_and_is_uploaded(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = begun(tmp_path / "run")
    folder.save_state(STATE)
    with monkeypatch.context() as cut:
        cut.setattr(Store, "_sent", _cut)
        written(folder, "round-0/explore/checkpoints/step-000003.ckpt")
        folder.save_state(STATE)
    caplog.set_level("INFO")
    _, mirror = begun(folder.out)
    mirror.download()
    assert f"{folder.out} is further (1 phase and 3 training steps) than {URL} (1 phase), and goes on" in caplog.text
    mirror.close()
    assert "round-0/explore/checkpoints/step-000003.ckpt" in stored(memory)


def test_objects_that_changed_in_the_store_are_uploaded_again(tmp_path: Path, memory: Any) -> None:
    folder, _ = begun(tmp_path / "run")
    written(folder, "a")
    folder.save_state(STATE)
    memory.pipe("/test_mirror/run/a", b"damaged")
    _, mirror = begun(folder.out)
    mirror.download()
    mirror.close()
    assert stored(memory)["a"] == b"x"


def test_a_folder_of_another_run_is_not_touched(tmp_path: Path) -> None:
    folder, _ = begun(tmp_path / "run")
    folder.save_state(STATE)
    other, mirror = begun(tmp_path / "elsewhere" / "run")
    RunFolder(other.out).save_state(replace(STATE, run_id="other"))
    with pytest.raises(StateError, match="holds another run, which began at this place earlier; move that folder away"):
        mirror.download()
    assert LoopState.load(other.state).run_id == "other"


def test_a_damaged_state_in_the_store_leaves_the_folder(
    tmp_path: Path, memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = begun(tmp_path / "run")
    folder.save_state(STATE)
    memory.pipe("/test_mirror/run/state.json", b"{")
    _, mirror = begun(folder.out)
    mirror.download()
    assert f"{URL}/state.json is damaged; the run goes on from {folder.out}" in caplog.text
    mirror.close()
    assert stored(memory)["state.json"] == folder.state.read_bytes()


def test_where_there_is_no_run_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"--resume {URL}: no state.json there; give the place of an existing run"):
        begun(tmp_path / "run")[1].download()


def test_a_new_run_needs_an_empty_place(tmp_path: Path, memory: Any) -> None:
    _, mirror = begun(tmp_path / "run")
    assert mirror.begin_faults() == []
    for name in "abcdef":
        memory.pipe(f"/test_mirror/run/{name}", b"")
    assert mirror.begin_faults() == [
        f"--out {URL} is not empty, it contains a, b, c, d and 2 more; choose another place"
    ]
    memory.pipe("/test_mirror/run/state.json", b"")
    assert mirror.begin_faults() == [
        f"--out {URL} already contains a run; resume it with --resume {URL}, or choose another place"
    ]


def _cut(self: Store, path: Path, place: str) -> Any:
    raise OSError("the cable is cut")
