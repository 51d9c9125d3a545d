"""The options of `rloop-compare`, and what is left for its runs.

options, plan, of_runs = parsed(["--algos", "dapo,grpo", "--seeds", "0,1", "--loop.rounds", "2"])
# CompareOptions(algos=["dapo", "grpo"], ...), the arms, ["--loop.rounds=2"]
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from jsonargparse import ArgumentParser

from rloop_lightning.cli.arguments import UsageError, pairs
from rloop_lightning.cli.parse_errors import no_option, parse
from rloop_lightning.cli.study_file import StudyPlan, plan_of_names, read_plan
from rloop_lightning.run.cells import COMMAND
from rloop_lightning.run.study import BudgetRule
from rloop_lightning.system.fields import PositiveInt, Seed
from rloop_lightning.system.store_urls import local_only
from rloop_lightning.system.terminal import one_line

USAGE = "rloop-compare [STUDY.yaml] [--algos NAME,...] [--consolidate NAME,...] [--seeds 0,1,2] [--OPTION VALUE ...]"

DEFAULT_SEEDS = (0, 1, 2)
LOOKS_ONLY = ("--dry_run", "--table_only")
_LISTS = ("--algos", "--consolidate", "--seeds")


@dataclass(frozen=True)
class CompareOptions:
    """The options of `rloop-compare`.

    Args:
        algos: algorithms, short names or class paths; each is run with each consolidation.
        consolidate: consolidations, `none` among them.
        seeds: seeds that every arm runs with; null takes those of the study file, or 0, 1 and 2.
        out: folder of the study; null takes runs/NAME-OF-THE-FILE, or runs/compare without a study file.
        jobs: runs at a time, between which the threads of this machine are divided.
        launcher: a command that starts a run, as in `srun -c 8 {command}`; {command} stands for the script of the run,
            {cell} for its name, {log} for its log.
        budget: what all arms spend in equal amounts, `rollout_steps` or `tokens`, or `free` for no check; null takes
            the study file's, or rollout_steps.
        dry_run: list the runs and the expected time, and end.
        table_only: compare the runs that are complete, and start none.
    """

    algos: list[str] | None = None
    consolidate: list[str] | None = None
    seeds: list[Seed] | None = None
    out: str | None = None
    jobs: PositiveInt = 1
    launcher: str = ""
    budget: BudgetRule | None = None
    dry_run: bool = False
    table_only: bool = False


def parsed(arguments: Sequence[str]) -> tuple[CompareOptions, StudyPlan, list[str]]:
    """The options, what the study compares, and the options of its runs.

    Raises:
        UsageError: names all errors.
    """
    rest = list(arguments)
    file = rest.pop(0) if rest and not rest[0].startswith("-") else None
    own_names = {f"--{field.name}" for field in fields(CompareOptions)}
    own_names -= {"--consolidate"} if file else set()  # it is the option of rloop-fit then
    own, of_runs, configs, wrong = [], [], [], []
    for flag, value in pairs(rest):
        if flag in own_names:
            own.append(_own_flag(flag, value))
        elif flag in ("--config", "-c") and value:
            configs.append(value)
        elif flag.startswith("--"):
            of_runs.append(flag if value is None else f"{flag}={value}")
        else:
            wrong.append(no_option(flag))
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(CompareOptions, None)
    settings, refused = parse(parser, {}, own)
    wrong += refused
    if settings is not None:
        options = CompareOptions(**{field.name: settings[field.name] for field in fields(CompareOptions)})
        wrong += _faults(options, file)
    if wrong or settings is None:
        raise UsageError("\n".join(wrong))
    plan = read_plan(file) if file else plan_of_names(options.algos or [], options.consolidate or [])
    return options, replace(plan, configs=[*plan.configs, *configs]), of_runs


def _own_flag(flag: str, value: str | None) -> str:
    if value is None:
        return f"{flag}=true" if flag in LOOKS_ONLY else flag
    return f"{flag}=[{value}]" if flag in _LISTS and not value.startswith("[") else f"{flag}={value}"


def _faults(options: CompareOptions, file: str | None) -> list[str]:
    wrong = local_only(options.out, "--out")
    if file and options.algos is not None:
        wrong.append(f"--algos: {file} has its arms; leave one of them out")
    if not file and not options.algos and not options.consolidate:
        wrong.append(f"give a study file, or --algos and --consolidate: {USAGE}")
    if options.seeds is not None and len(set(options.seeds)) < max(1, len(options.seeds)):
        wrong.append("--seeds: give at least one seed, and each once")
    return [*wrong, *_launcher_faults(options.launcher)]


def _launcher_faults(launcher: str) -> list[str]:
    if not launcher:
        return []
    try:
        program = (shlex.split(launcher) or [""])[0]
    except ValueError as error:
        return [f"--launcher: its quotes don't match ({error})"]
    if COMMAND not in launcher:
        return [f"--launcher: it needs {COMMAND}, where the command of a run is to be"]
    if program != COMMAND and shutil.which(program) is None:
        return [f"--launcher: no program {one_line(program)!r} is on this machine"]
    return []


def default_out(plan: StudyPlan) -> Path:
    """The folder of a study without --out."""
    path = Path(plan.source)
    return Path("runs") / (path.stem if path.suffix else "compare")
