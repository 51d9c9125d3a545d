"""`rloop-report`: the page of a run, or of several runs overlaid, with differences.

rloop-report runs/NAME
rloop-report runs/dapo-0 runs/dapo-1 runs/rloop-0 runs/rloop-1 --out study.html
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser

from rloop_lightning.cli.arguments import UsageError, pairs
from rloop_lightning.cli.export import ProblemOptions
from rloop_lightning.cli.instant import report_answer
from rloop_lightning.cli.parse_errors import parse
from rloop_lightning.cli.report_usage import USAGE
from rloop_lightning.cli.stored_run import StoredRun
from rloop_lightning.cli.stored_run_options import made
from rloop_lightning.run.export_problems import export_problems
from rloop_lightning.run.report.compared import in_arms
from rloop_lightning.run.report.comparison_page import write_comparison_page
from rloop_lightning.run.report.page import is_page
from rloop_lightning.run.report.run_page import write_report
from rloop_lightning.run.report.stored import ReportedRun, read_run
from rloop_lightning.system.fetched import fetched_run
from rloop_lightning.system.store_urls import is_url, local_only
from rloop_lightning.system.terminal import printable, printable_lines

_SUFFIX = ".html"


@dataclass(frozen=True)
class ReportOptions:
    """Where the page is written, and how runs are grouped.

    Args:
        out: the HTML file; null is report.html of the run (of a run in a store: here), or
            comparison.html here.
        arms: the arm of each run.
    """

    out: str | None = None
    arms: list[str] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """The `rloop-report` command. Exit codes: 0 the page was written, 2 the input is wrong or it can't be written."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if (code := report_answer(arguments)) is not None:
        return code
    try:
        for line in _report(arguments):
            print(printable(line))
        return 0
    except BrokenPipeError:  # the reader has closed the pipe
        sys.stdout = None  # otherwise the interpreter would flush into the pipe again
        return 0
    except (UsageError, ValueError, OSError) as error:
        for line in printable_lines(str(error)):
            print(f"rloop-report: error: {line}", file=sys.stderr)
        return 2


def _report(arguments: Sequence[str]) -> list[str]:
    """Write the page, and return what to say about it."""
    paths = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    if not paths:
        raise UsageError(f"give the folder of a run: {USAGE}")
    options, reading = _options(arguments[len(paths) :])
    single = len(paths) == 1
    folder = "." if is_url(paths[0]) else paths[0]
    default = Path(folder) / "report.html" if single else Path("comparison.html")
    out = Path(options.out).expanduser() if options.out else default
    runs, wrong = _runs(
        paths, local_only(options.out, "--out") or _place_faults(out) + _arm_faults(options.arms, paths)
    )
    if not single and reading != ProblemOptions():
        wrong.append("--data and --trust belong to the report of one run; leave them out")
    if wrong:
        raise UsageError("\n".join(wrong))
    if single:
        problems = _Problems(paths[0], reading)
        write_report(ReportedRun(runs[0].folder, runs[0].state, problems.read), out)
        return [f"{out}: the report of {paths[0]}, {_size(out)}", *problems.told]
    comparison = in_arms(runs, options.arms)
    write_comparison_page(comparison, out)
    arms = ", ".join(f"{arm.name} ({len(arm.runs)})" for arm in comparison.arms)
    return [f"{out}: {len(runs)} runs, arms and their number of runs: {arms}, {_size(out)}"]


def _options(words: Sequence[str]) -> tuple[ReportOptions, ProblemOptions]:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(ReportOptions)
    parser.add_class_arguments(ProblemOptions)
    flags = []
    for flag, value in pairs(words):
        if flag == "--arms" and value is not None:
            value = f"[{', '.join(_quoted(name) for name in value.split(','))}]"
        if flag == "--trust" and value is None:
            value = "true"
        flags.append(flag if value is None else f"{flag}={value}")
    settings, wrong = parse(parser, {}, flags)
    if settings is None or wrong:
        raise UsageError("\n".join(wrong))
    return made(ReportOptions, settings), made(ProblemOptions, settings)


def _quoted(name: str) -> str:
    return "'" + name.strip().replace("'", "''") + "'"


def _runs(paths: Sequence[str], wrong: list[str]) -> tuple[list[ReportedRun], list[str]]:
    """The runs, and all errors."""
    runs = []
    for path in paths:
        try:
            runs.append(read_run(fetched_run(path) if is_url(path) else Path(path)))
        except ValueError as error:
            wrong += str(error).splitlines()
    twice = {path for path in paths if sum(Path(path).resolve() == Path(other).resolve() for other in paths) > 1}
    return runs, [*wrong, *(f"{path} is given twice; leave one out" for path in sorted(twice))]


def _place_faults(out: Path) -> list[str]:
    if out.suffix != _SUFFIX:
        return [f"--out {out}: the name must end in {_SUFFIX}"]
    if out.is_dir():
        return [f"--out {out}: it is a folder; give a file"]
    if out.exists() and not is_page(out):
        return [f"--out {out}: it exists and is no page of rloop-report; give another name"]
    return []


def _arm_faults(arms: Sequence[str] | None, paths: Sequence[str]) -> list[str]:
    if arms is None or len(arms) == len(paths) > 1:
        return []
    if len(paths) == 1:
        return ["--arms belongs to the report of several runs; leave it out"]
    return [f"--arms names {len(arms)} arms for {len(paths)} runs; give one name for each run, in order"]


class _Problems:
    """Reads the problems of a run from its data. If that fails, the page is without prompts, and `told` says why."""

    def __init__(self, path: str, reading: ProblemOptions) -> None:
        self._path = path
        self._reading = reading
        self.told: list[str] = []

    def read(self, ids: Collection[str]) -> Mapping[str, tuple[str, str]]:
        """Prompt and gold answers by id."""
        try:
            run = StoredRun.at(self._path)
            source = run.source(self._reading.data, trusted=self._reading.trust)
            found = export_problems(run.folder, source, run.tokenizer(), ids)
        except (UsageError, ValueError, OSError) as error:
            self.told = [f"the page is without prompts: {line}" for line in str(error).splitlines()]
            return {}
        return {name: (problem.prompt, " or ".join(problem.golds)) for name, problem in found.items()}


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"
