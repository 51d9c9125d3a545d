"""A complete run with damaged files, or without its base policy: a resume mends what can be made again, and says what
can't."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killing import Kill, run_fit
from safetensors.torch import load_file
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning.model.config import model_source

EXPLORING = Kill("os:replace", 1, "round-0/pool/step-000004.parquet")
EVALUATING = Kill("rloop_lightning.run.evaluation:result_step", 3)  # the consolidated policy
WEIGHTS = "model.safetensors"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def contents(run: Path) -> dict[Path, bytes]:
    """All files but the lock, which says who has it."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}


def same_weights(ours: Path, theirs: Path) -> bool:
    one, other = load_file(ours / WEIGHTS), load_file(theirs / WEIGHTS)
    return all(one[name].equal(other[name]) for name in other)


def test_a_damaged_final_policy_and_the_phase_it_is_from_are_made_again(finished: Path, tmp_path: Path) -> None:
    out, log = shutil.copytree(finished, tmp_path / "run"), tmp_path / "log"
    flip(out / "final" / WEIGHTS)
    flip(out / "round-0" / "policy" / WEIGHTS)
    assert resume(out, log) == 0, log.read_text()
    said = log.read_text()
    assert f"{out / 'round-0' / 'policy' / WEIGHTS} is damaged" in said
    assert "round 1 consolidate is repeated" in said
    assert_same_run(out, finished)


def test_damage_before_the_phase_that_is_repeated_leads_back_to_an_earlier_one(finished: Path, tmp_path: Path) -> None:
    out, log = shutil.copytree(finished, tmp_path / "run"), tmp_path / "log"
    shutil.rmtree(out / "final")
    (out / "round-0" / "policy" / WEIGHTS).unlink()
    flip(out / "round-0" / "pool" / "step-000003.parquet")
    assert resume(out, log) == 0, log.read_text()
    assert "round 1 consolidate is repeated" in log.read_text()
    assert "round 1 explore is repeated" in log.read_text()
    assert_same_run(out, finished)


def test_a_complete_run_is_left_as_it_is(finished: Path, tmp_path: Path) -> None:
    out, log = shutil.copytree(finished, tmp_path / "run"), tmp_path / "log"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "tensorboard" not in path.parts}
    assert resume(out, log) == 0, log.read_text()
    assert not [word for word in ("damaged", "missing", "repeated", "before:") if word in log.read_text()]
    assert before.items() <= {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}.items()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base policy in a folder of the user's."""
    return shutil.copytree(model_source("countdown"), tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def of_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun.written(tmp_path_factory.mktemp("of-base"), policy={"model": str(base)})


@pytest.fixture(scope="module")
def killed(of_base: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kill], Path]:
    folder = tmp_path_factory.mktemp("killed")
    runs: dict[Kill, Path] = {}

    def run(kill: Kill) -> Path:
        if kill not in runs:
            out = runs[kill] = folder / f"run-{len(runs)}"
            assert of_base.fit_apart(out, out.with_suffix(".log"), kill) == -9
        return runs[kill]

    return run


@pytest.fixture
def spoiled(base: Path, tmp_path: Path) -> Iterator[Callable[[Callable[[Path], None]], None]]:
    """Does something to the base policy, which is put back afterwards."""
    kept = shutil.copytree(base, tmp_path / "kept")
    yield lambda deed: deed(base)
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(kept, base)


SPOILS: dict[str, tuple[Callable[[Path], None], str]] = {
    "changed weights": (lambda base: flip(base / WEIGHTS), "is not what the run began with (its checksum differs)"),
    "a deleted file": (lambda base: (base / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "no folder": (shutil.rmtree, "is not there any more, or holds no policy"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_run_that_still_needs_a_changed_base_policy_is_refused(
    spoil: str,
    killed: Callable[[Kill], Path],
    spoiled: Callable[[Callable[[Path], None]], None],
    tmp_path: Path,
) -> None:
    out, log = shutil.copytree(killed(EXPLORING), tmp_path / "run"), tmp_path / "log"
    deed, said = SPOILS[spoil]
    spoiled(deed)
    assert resume(out, log, debug=False) == 2
    assert said in log.read_text()
    assert "the rest of the run needs the base policy; restore it" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_run_that_no_longer_needs_its_base_policy_goes_on_without(
    spoil: str,
    killed: Callable[[Kill], Path],
    spoiled: Callable[[Callable[[Path], None]], None],
    finished: Path,
    tmp_path: Path,
) -> None:
    out, log = shutil.copytree(killed(EVALUATING), tmp_path / "run"), tmp_path / "log"
    deed, said = SPOILS[spoil]
    spoiled(deed)
    assert resume(out, log) == 0, log.read_text()
    assert said in log.read_text()
    assert "the rest of the run does not need it" in log.read_text()
    assert_same_run(out, finished)
    (out / "final" / WEIGHTS).unlink()
    assert resume(out, log) == 0, log.read_text()
    assert same_weights(out / "final", finished / "final")


def test_going_back_to_a_phase_that_needs_a_changed_base_policy_is_refused(
    killed: Callable[[Kill], Path], spoiled: Callable[[Callable[[Path], None]], None], tmp_path: Path
) -> None:
    out, log = shutil.copytree(killed(EVALUATING), tmp_path / "run"), tmp_path / "log"
    before = contents(out)
    spoiled(SPOILS["changed weights"][0])
    assert run_fit(["--resume", str(out), "--restart_from", "round-0/consolidate"], log, debug=False) == 2
    assert "the rest of the run needs the base policy" in log.read_text()
    assert before == contents(out)


TRAILING = {
    "the metrics of a phase": ("round-0/evaluate/explored.jsonl", "bytes after its last line"),
    "the loggers": ("loggers.json", "a complete run does not read it"),
}


@pytest.mark.parametrize("case", TRAILING)
def test_bytes_after_the_end_of_a_file_are_named(case: str, finished: Path, tmp_path: Path) -> None:
    file, said = TRAILING[case]
    out, log = shutil.copytree(finished, tmp_path / "run"), tmp_path / "log"
    with (out / file).open("ab") as stream:
        stream.write(b"\x00\xfe7")
    assert resume(out, log) == 0, log.read_text()
    assert file in log.read_text()
    assert said in log.read_text()


def test_a_damaged_record_inside_an_exploration_that_goes_on_is_named(tmp_path: Path) -> None:
    evaluating = {"samples": 2, "k": [1, 2], "max_problems": 2, "sets": ["test"], "sets_inside": ["test"]}
    tiny = TinyRun.written(tmp_path, eval={**evaluating, "every_n_steps": 1})
    out, log = tmp_path / "run", tmp_path / "log"
    assert tiny.fit_apart(out, log, EXPLORING) == -9
    records = out / "round-0" / "evaluations"
    flip(records / "step-000001.parquet")
    (records / "step-000002.parquet").unlink()
    assert resume(out, log) == 0, log.read_text()
    assert f"{records / 'step-000001.parquet'} is damaged (its checksum differs)" in log.read_text()
    assert f"{records / 'step-000002.parquet'} is missing" in log.read_text()
    assert "--restart_from round-0/explore makes it again" in log.read_text()
    assert resume(out, log) == 0
    assert f"{records / 'step-000002.parquet'} is missing" in log.read_text()  # as often as it is looked at


def test_a_repeated_exploration_forgets_the_records_that_it_makes_again(tmp_path: Path) -> None:
    evaluating = {"samples": 2, "k": [1, 2], "max_problems": 2, "sets": ["test"], "sets_inside": ["test"]}
    tiny = TinyRun.written(tmp_path, eval={**evaluating, "every_n_steps": 1})
    out, log = tiny.finished(tmp_path / "run"), tmp_path / "log"
    again = ["--resume", str(out), "--restart_from", "round-0/explore", "--loop.explore_steps", "2"]
    assert run_fit(again, log, debug=False) == 0, log.read_text()
    assert resume(out, log) == 0
    assert "is missing" not in log.read_text()
