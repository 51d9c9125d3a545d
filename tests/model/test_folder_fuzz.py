"""Seeded damage of a model's folder: it loads and works, or ends with a message, within limits, and nothing else.

RLOOP_FUZZ=3000 makes so many mutations instead of a few; RLOOP_FUZZ_SEED=7 begins at another one.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from bad_models import make_good_model
from guarded import guarded
from model_mutations import copied, mutate

from rloop_lightning.engines.trial import trial_fault
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy

MUTATIONS = int(os.environ.get("RLOOP_FUZZ", "60"))
FIRST = int(os.environ.get("RLOOP_FUZZ_SEED", "0"))
LONGEST_MESSAGE = 3000  # characters


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "good"
    make_good_model(path)
    return path


def outcome(folder: Path, out: Path) -> list[str]:
    """The messages with which the command refuses a model; none if it loads, generates and is saved."""
    try:
        policy = Policy.load(PolicyConfig(model=str(folder)))
        fault = trial_fault(policy)
        policy.decode([policy.encode("1 + 1 = größer")])
    except (ValueError, OSError) as error:  # what the command turns into messages
        return str(error).splitlines() or [""]
    if fault is None:
        policy.save(out)
    return [] if fault is None else [fault]


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else "special"
        for path in folder.rglob("*")
    }


def wrong_with(ended: tuple[str, Any]) -> str:
    """What is wrong with an outcome; empty if nothing."""
    kind, value = ended
    if kind != "returned":
        return f"{kind}: {value}"
    for message in value:
        if not message.strip() or len(message) > LONGEST_MESSAGE or not message.isprintable():
            return f"message {message[:500]!r}"
    return ""


@pytest.mark.timeout(120 + 20 * MUTATIONS)
def test_a_damaged_folder_works_or_ends_with_messages(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    problems, works = [], 0
    for seed in range(FIRST, FIRST + MUTATIONS):
        folder = copied(good, tmp_path / "model")
        did = mutate(folder, random.Random(seed))
        before = contents(folder)
        ended = guarded(lambda folder=folder: outcome(folder, tmp_path / "saved"))  # type: ignore[misc]
        works += ended == ("returned", [])
        if problem := wrong_with(ended):
            problems.append(f"seed {seed}: {did}: {problem}")
        if contents(folder) != before or list((tmp_path / "here").iterdir()):
            problems.append(f"seed {seed}: {did}: wrote files")
        if os.environ.get("RLOOP_FUZZ_LOG"):
            print(seed, did, "->", ended if problem else ended[1], flush=True)
    assert problems == []
    assert 0 < works < MUTATIONS
