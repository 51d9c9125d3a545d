"""Random changes of a state file: it is read, or refused with an error that names it. RLOOP_FUZZ sets how many."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mutating import fault_of, mutated_bytes, seeds

from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.run.state import Budget, LoopState

INSERTS = (b"\x00", b'"', b"{", b"[" * 5000, b"9" * 5000, b"\xff\xfe", b"NaN")
VALUES = (
    None, True, False, 0, -1, 2**63, 10**400, 0.5, float("nan"), float("inf"), "", "abc", "\ud800", "\x1b[2J", [], {},
    [None], ["a", 1], {"a": None}, {"a": {"b": []}}, [[[[]]]],
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("state") / "state.json"
    state = LoopState(
        run_id="0123456789abcdef",
        stages_done=3,
        round=1,
        phase="explore",
        notes=("a note", "another"),
        explore_steps=(200, 100),
        budget=Budget(200, 400, 51200, 1_000_000, 12.5),
        results={"base": {"eval/test/pass@1": 0.25}, "round 1 explored": {"eval/test/pass@1": 0.5}},
    )
    state.save(path)
    return path.read_text()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def changed_value(values: Any, random: Random) -> Any:
    """A value replaced, removed or added anywhere in a JSON value."""
    *path, last = random.choice(places(values)[1:])
    holder = values = copy.deepcopy(values)
    for key in path:
        holder = holder[key]
    new = random.choice(VALUES)
    match random.choice(["replace", "remove", "add"]):
        case "replace":
            holder[last] = new
        case "remove":
            del holder[last]
        case "add" if isinstance(holder, dict):
            holder[random.choice(["unknown", "", "run_id", "version"])] = new
        case "add":
            holder.append(new)
    return values


def sealed(values: dict[str, Any], key: str) -> str:
    """A state's text with the right checksum, so that nothing but its values is wrong."""
    values = {name: value for name, value in values.items() if name != key}
    content = json.dumps(values, sort_keys=True).encode()
    return json.dumps({**values, key: hashlib.sha256(content).hexdigest()})


def test_a_changed_state_is_read_or_named(text: str, tmp_path: Path) -> None:
    values = json.loads(text)
    (key,) = [name for name, value in values.items() if json.loads(sealed(values, name))[name] == value]
    path = tmp_path / "state.json"
    refused, tries = 0, seeds(few=1000)
    for number in tries:
        random = Random(number)
        if number % 2:
            path.write_bytes(mutated_bytes(text.encode(), random, INSERTS))
        else:
            path.write_text(sealed(changed_value(values, random), key))
        error = fault_of(lambda: LoopState.load(path).save(tmp_path / "again.json"))
        told = error is None or (isinstance(error, DamagedError | StateError) and str(path) in str(error))
        assert told, f"change {number}: {error!r} on {path.read_bytes()[:2000]!r}"
        refused += error is not None
    assert refused > len(tries) / 4
