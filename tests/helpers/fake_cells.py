"""Complete cells of a study as a run leaves them, without a run: the state, and the records of evaluations."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from rloop_lightning.evaluation.record import RECORD_SCHEMA, EvaluatedPolicy, write_record
from rloop_lightning.run.state import Budget, LoopState, Stage
from rloop_lightning.run.study import Cell

SAMPLES = 4


def problems(name: str, successes: Mapping[str, int]) -> pa.Table:
    """The rows of a set, by problem id."""
    count = len(successes)
    columns = {
        "set": [name] * count,
        "problem_id": list(successes),
        "samples": [SAMPLES] * count,
        "successes": list(successes.values()),
        "truncated": [0] * count,
        "length_mean": [5.0] * count,
        "lengths": [[5] * SAMPLES] * count,
        "right": [[place < right for place in range(SAMPLES)] for right in successes.values()],
        "temperature": [1.0] * count,
        "top_k": [0] * count,
        "top_p": [1.0] * count,
        "max_new_tokens": [8] * count,
        "seed": [0] * count,
    }
    return pa.table(columns, schema=pa.schema([RECORD_SCHEMA.field(column) for column in columns]))


def complete(
    cell: Cell,
    policies: Mapping[str, Mapping[str, Mapping[str, int]]],
    *,
    selected: str,
    tokens: int = 1000,
    seconds: float = 60.0,
    notes: tuple[str, ...] = (),
    entropy: float = 0.5,
) -> None:
    """Make the cell's run complete.

    Args:
        policies: by policy, by set, the successes of each problem.
    """
    results = {}
    for name, sets in policies.items():
        round, which = (0, "base") if name == "base" else (int(name.split()[1]) - 1, name.split()[2])
        stage = Stage(round, "evaluate", which)  # type: ignore[arg-type] # a test's own names
        record = EvaluatedPolicy(name, round, "evaluate", 0)
        write_record(cell.run.evaluation(stage), record, [problems(*one) for one in sets.items()])
        results[name] = {
            **{f"eval/{one}/pass@{k}": 0.0 for one in sets for k in (1, 2)},
            **{f"eval/{one}/entropy_nats": entropy for one in sets},
        }
    LoopState(
        "id",
        stages_done=3,
        phase="done",
        selected=selected,
        notes=notes,
        results=results,
        budget=Budget(10, 20, 300, tokens, seconds),
    ).save(cell.run.state)
