"""Files that are damaged while a run is down: each is named, and the resumed run gives what an undamaged one gives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from killing import Kill
from safetensors.torch import load_file
from same_run import assert_same_run, deterministic_rows
from tiny_run import TinyRun, resume

# A round of four rollout steps on the embedded policy, a checkpoint after each.
RENAME = "os:replace"
EXPLORING = Kill(RENAME, 1, "round-0/pool/step-000004.parquet")
CONSOLIDATING = Kill(RENAME, 1, "round-0/consolidate/checkpoints/step-000003.ckpt")
EVALUATING = Kill("rloop_lightning.run.evaluation:result_step", 3)  # the consolidated policy


def flip(path: Path) -> None:
    """One bit in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@dataclass(frozen=True)
class Damage:
    """What is done to a run that was killed, and what the resumed one says.

    Args:
        kill: when the run was killed.
        deed: done to each of the files.
        files: of the run folder.
        said: parts of the log.
    """

    kill: Kill
    deed: Callable[[Path], None]
    files: tuple[str, ...]
    said: tuple[str, ...]


CASES = {
    "the last shard": Damage(
        EXPLORING,
        flip,
        ("round-0/pool/step-000003.parquet",),
        ("pool/step-000003.parquet is damaged", "round 1 explore resumes from its step 2"),
    ),
    "an early shard": Damage(
        EXPLORING,
        os.unlink,
        ("round-0/pool/step-000001.parquet",),
        ("pool/step-000001.parquet is missing", "round 1 explore resumes from its step 0"),
    ),
    "the newest checkpoint": Damage(
        EXPLORING,
        flip,
        ("round-0/explore/checkpoints/step-000003.ckpt",),
        ("step-000003.ckpt is damaged", "round 1 explore resumes from its step 2"),
    ),
    "all checkpoints": Damage(
        EXPLORING,
        cut,
        ("round-0/explore/checkpoints/step-000002.ckpt", "round-0/explore/checkpoints/step-000003.ckpt"),
        ("step-000002.ckpt is not a complete checkpoint", "round 1 explore resumes from its step 0"),
    ),
    "the state": Damage(
        CONSOLIDATING,
        cut,
        ("state.json",),
        ("state.json is damaged", "the run resumes from state.previous.json"),
    ),
    "both states": Damage(
        CONSOLIDATING,
        cut,
        ("state.json", "state.previous.json"),
        ("state.previous.json is damaged", "the run resumes from round-0/consolidate/state.json"),
    ),
    "the previous state alone": Damage(
        CONSOLIDATING,
        cut,
        ("state.previous.json",),
        ("state.previous.json is damaged (its checksum differs); the run does not need it",),
    ),
    "the settings": Damage(
        EXPLORING,
        flip,
        ("config.yaml",),
        ("config.yaml is missing, damaged or was changed; it is written again",),
    ),
    "the settings, deleted": Damage(
        CONSOLIDATING,
        os.unlink,
        ("config.yaml",),
        ("config.yaml is missing, damaged or was changed; it is written again",),
    ),
    "the record of the problems": Damage(
        EXPLORING,
        cut,
        ("problems.parquet",),
        ("problems.parquet was damaged or missing; it is written again, and is what it was",),
    ),
    "the state before a finished phase": Damage(
        CONSOLIDATING,
        flip,
        ("round-0/explore/state.json",),
        ("round-0/explore/state.json is damaged", "--restart_from can't go back to it"),
    ),
    "a shard, and the state before its exploration": Damage(
        CONSOLIDATING,
        flip,
        ("round-0/pool/step-000002.parquet", "round-0/explore/state.json"),
        ("pool/step-000002.parquet is damaged", "the run is repeated from its beginning"),
    ),
    "a shard that the consolidation reads": Damage(
        CONSOLIDATING,
        cut,
        ("round-0/pool/step-000004.parquet",),
        ("pool/step-000004.parquet is damaged", "round 1 explore is repeated"),
    ),
    "the checksums of the pool": Damage(
        CONSOLIDATING,
        cut,
        ("round-0/pool/_SHA256SUMS",),
        ("has no checksum in _SHA256SUMS", "round 1 explore is repeated"),
    ),
    "a checkpoint of the consolidation": Damage(
        CONSOLIDATING,
        flip,
        ("round-0/consolidate/checkpoints/step-000002.ckpt",),
        ("step-000002.ckpt is damaged", "round 1 consolidate resumes from its step 1"),
    ),
    "the consolidated policy": Damage(
        EVALUATING,
        flip,
        ("round-0/policy/model.safetensors",),
        ("round-0/policy/model.safetensors is damaged", "round 1 consolidate is repeated"),
    ),
}


@pytest.fixture(scope="module")
def killed(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Kill], Path]]:
    """The run that was killed at a moment; each is made once."""
    folder = tmp_path_factory.mktemp("killed")
    runs: dict[Kill, Path] = {}

    def run(kill: Kill) -> Path:
        if kill not in runs:
            out = runs[kill] = folder / f"run-{len(runs)}"
            log = out.with_suffix(".log")
            assert tiny.fit_apart(out, log, kill) == -9, log.read_text()
        return runs[kill]

    yield run
    shutil.rmtree(folder)


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumes_from_what_is_whole(
    case: str, killed: Callable[[Kill], Path], finished: Path, tmp_path: Path
) -> None:
    damage, out, log = CASES[case], tmp_path / "run", tmp_path / "log"
    shutil.copytree(killed(damage.kill), out)
    for file in damage.files:
        damage.deed(out / file)
    assert resume(out, log) == 0, log.read_text()
    for part in damage.said:
        assert part in log.read_text()
    assert_same_run(out, finished)


def test_an_undamaged_run_has_nothing_said_of_it(killed: Callable[[Kill], Path], tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(killed(CONSOLIDATING), out)
    assert resume(out, log) == 0
    assert not [word for word in ("repeated", "resumes from", "checksum", "missing") if word in log.read_text()]


@dataclass(frozen=True)
class Flip(Kill):
    """Damages a file of the run folder under the running process."""

    file: str = ""

    def strike(self) -> None:
        flip(Path(self.file))


def test_a_shard_damaged_under_a_running_run_is_named_and_a_resume_repeats_its_exploration(
    killed: Callable[[Kill], Path], finished: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(killed(EXPLORING), out)
    shard = out / "round-0" / "pool" / "step-000002.parquet"
    damage = Flip("rloop_lightning.run.fine_tuning:check_pool", 1, file=str(shard))
    assert resume(out, log, damage, debug=False) == 1
    said = log.read_text()
    assert f"rloop-fit: error: {shard} is damaged" in said
    assert f"rloop-fit --resume {out}" in said
    assert "Traceback" not in said
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, finished)


FINISHED_PHASE = {
    "its policy": ("round-0/explore/policy/model.safetensors", flip, "--restart_from round-0/explore makes it again"),
    "a deleted file of its policy": ("round-0/explore/policy/tokenizer.json", os.unlink, "tokenizer.json is missing"),
    "its rollouts": ("round-0/pool/step-000002.parquet", cut, "--restart_from round-0/explore makes it again"),
    "its evaluation": ("round-0/evaluations/explored.parquet", flip, "its policy is evaluated again"),
    "a deleted evaluation": ("round-0/evaluations/base.parquet", os.unlink, "its policy is evaluated again"),
    "its expert set": ("round-0/expert.parquet", os.unlink, "--restart_from round-0/consolidate makes it again"),
}


@pytest.mark.parametrize("case", FINISHED_PHASE)
def test_damage_of_a_finished_phase_is_named_though_the_run_goes_on_without(
    case: str, killed: Callable[[Kill], Path], finished: Path, tmp_path: Path
) -> None:
    file, deed, said = FINISHED_PHASE[case]
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(killed(EVALUATING), out)
    deed(out / file)
    assert resume(out, log) == 0, log.read_text()
    assert str(out / file) in log.read_text()
    assert said in log.read_text()
    assert deterministic_rows(out) == deterministic_rows(finished)
    ours, theirs = (load_file(run / "final" / "model.safetensors") for run in (out, finished))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_without_any_whole_state_a_run_is_not_resumed(killed: Callable[[Kill], Path], tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(killed(EXPLORING), out)
    for name in ("state.json", "state.previous.json", "round-0/explore/state.json"):
        cut(out / name)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert resume(out, log, debug=False) == 2
    said = log.read_text()
    assert f"{out / 'state.json'} is damaged" in said
    assert f"{out / 'state.previous.json'} is damaged" in said
    assert f"--resume {out}: no other record of its state exists; start a new run" in said
    assert "Traceback" not in said
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
