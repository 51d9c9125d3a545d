"""`rloop-eval compare A B`: the paired difference between two evaluations, and the problems gained and lost.

rloop-eval compare evaluations/base/00-base evaluations/rloop/00-final --set test --k 1,8
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from rloop_lightning.cli.arguments import UsageError, pairs
from rloop_lightning.cli.parse_errors import parse
from rloop_lightning.cli.stored_run_options import as_list
from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.evaluation.comparison import Comparison, compare_records, sets_of
from rloop_lightning.run.evaluation_folder import EVALUATION_VERSION
from rloop_lightning.run.evaluation_record import EvaluationRecord, changed_between, find_record
from rloop_lightning.run.evaluation_results import interval_values, with_interval
from rloop_lightning.system.fields import NonNegativeInt, PositiveInt
from rloop_lightning.system.json_file import read_json, write_json
from rloop_lightning.system.markdown import escaped, table
from rloop_lightning.system.terminal import one_line

USAGE = "rloop-eval compare A B [--sets SET,...] [--k 1,8] [--shown N] [--out FILE.json]"
_LISTS = ("--sets", "--k")
_KEYS = {"first", "second", "sets"}
"""What the file of a comparison holds."""


@dataclass(frozen=True)
class CompareOptions:
    """How two evaluations are compared.

    Args:
        sets: the sets, as in test,ood; null takes all that both have.
        k: the values of k for pass@k, as in 1,8; null takes those of 1, 8 and 32 that both have enough rollouts for.
        shown: ids that are printed of the problems gained, and of those lost; 0 prints all. `--out` has all of them.
        out: a JSON file to write. It may exist if a comparison wrote it.
    """

    sets: list[str] | None = None
    k: list[PositiveInt] | None = None
    shown: NonNegativeInt = 20
    out: str | None = None


def compare(arguments: Sequence[str]) -> list[str]:
    """The lines to print.

    Raises:
        UsageError: the input is wrong; names all errors.
        OSError: the file can't be written.
    """
    first, second, options = _parse(arguments)
    known = [sets_of(one.path) for one in (first, second)]
    names = options.sets or [name for name in known[0] if name in known[1]]
    wrong = [
        f"--sets: {one.word} has no set {one_line(name)}, it has {', '.join(map(one_line, found))}"
        for one, found in zip((first, second), known, strict=True)
        for name in names
        if name not in found
    ]
    if not names:
        listed = [", ".join(map(one_line, found)) for found in known]
        wrong.append(f"no set is in both: {first.word} has {listed[0]}, and {second.word} has {listed[1]}")
    wrong += [] if wrong else [fault for name in names for fault in changed_between(first, second, name)]
    if wrong:
        raise UsageError("\n".join(wrong))
    try:
        found = [compare_records(first.path, second.path, name, options.k) for name in names]
    except ValueError as error:
        raise UsageError(str(error)) from error
    if options.out is not None:
        sides = {"first": str(first.path), "second": str(second.path)}
        values = {**sides, "sets": {one.name: _values(one) for one in found}}
        write_json(Path(options.out).expanduser(), values, version=EVALUATION_VERSION)
    return [f"A: {first}", f"B: {second}", *(line for one in found for line in _lines(one, options.shown))]


def _parse(arguments: Sequence[str]) -> tuple[EvaluationRecord, EvaluationRecord, CompareOptions]:
    """The two evaluations, and the options.

    Raises:
        UsageError: names all errors.
    """
    words: list[str] = []
    flags: list[str] = []
    for flag, value in pairs(arguments):
        if not flag.startswith("-"):
            words.append(flag if value is None else f"{flag}={value}")
        elif value is None:
            flags.append(flag)
        else:
            flags.append(f"{flag}={as_list(value) if flag in _LISTS else value}")
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(CompareOptions)
    settings, wrong = parse(parser, {}, flags)
    if len(words) != 2:
        wrong.insert(0, f"give two evaluations, got {len(words)}: {USAGE}")
    records: list[EvaluationRecord] = []
    for word in words:
        try:
            records.append(find_record(word))
        except ValueError as error:
            wrong += str(error).splitlines()
    if settings is None or wrong:
        raise UsageError("\n".join(dict.fromkeys(wrong)))
    options = CompareOptions(**{name: settings[name] for name in CompareOptions.__dataclass_fields__})
    if options.out is not None and (fault := _place_fault(Path(options.out).expanduser())):
        raise UsageError(f"--out {one_line(options.out, limit=200)}: {fault}")
    return records[0], records[1], options


def _place_fault(out: Path) -> str:
    if out.suffix != ".json":
        return "the file must end in .json"
    if out.is_dir():
        return "it is a folder; give a file"
    if not out.exists():
        return ""
    try:
        values, _ = read_json(out, newest=EVALUATION_VERSION, checked_since=EVALUATION_VERSION)
    except (DamagedError, StateError):
        values = {}
    return "" if values.keys() >= _KEYS else "it exists and is no comparison of rloop-eval; give another name"


def _lines(found: Comparison, shown: int) -> Iterator[str]:
    yield f"\n**{escaped(found.name)}**, {found.problems:,} problem{'' if found.problems == 1 else 's'}\n"
    rows = [
        [
            f"pass@{k}",
            *(with_interval(interval_values(one), 3) for one in found.intervals[k]),
            with_interval(interval_values(one.interval), 3, signed=True),
            {"better": "B is higher", "worse": "B is lower"}.get(one.verdict, one.verdict),
        ]
        for k, one in found.differences.items()
    ]
    yield table(["", "A", "B", "B - A", ""], rows)
    yield "\nIn brackets: 95% intervals over the problems of the set. B - A is paired by problem."
    rollouts = "its rollout" if found.samples == 1 else f"any of {found.samples} rollouts"
    yield f"\nA problem is solved if {rollouts} is a success:"
    for what, ids in (
        ("gained (B only)", found.gained),
        ("lost (A only)", found.lost),
    ):
        some = ids if not shown else ids[:shown]
        more = f" and {len(ids) - len(some):,} more" if len(ids) > len(some) else ""
        yield f"  {what}: {len(ids):,}" + (f": {', '.join(map(one_line, some))}{more}" if ids else "")
    yield f"  both: {len(found.both):,}"
    yield f"  neither: {len(found.neither):,}"


def _values(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "problems": found.problems,
        "samples": found.samples,
        "pass@k": {
            f"pass@{k}": {
                "first": interval_values(found.intervals[k][0]),
                "second": interval_values(found.intervals[k][1]),
                "second minus first": {**interval_values(one.interval), "verdict": one.verdict},
            }
            for k, one in found.differences.items()
        },
        **{name: list(asdict(found)[name]) for name in ("gained", "lost", "both", "neither")},
    }
