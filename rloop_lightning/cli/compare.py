"""`rloop-compare`: runs the same budget with several settings and seeds, and compares the policies.

    rloop-compare --algos dapo,grpo --consolidate none,rft --seeds 0,1,2
    rloop-compare studies/filter.yaml --jobs 2 --loop.explore_steps 100

Options that are not its own are those of `rloop-fit`, for every run. Exit codes: 0 done, 1 a cell failed, 2 wrong
input, 130 or 143 stopped by Ctrl-C or SIGTERM. The same command goes on where a study was stopped or killed.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from jsonargparse import ArgumentParser

from rloop_lightning.callbacks.run_estimate import duration
from rloop_lightning.cli.arguments import UsageError, pairs
from rloop_lightning.cli.arms import CheckedArm, checked_arms
from rloop_lightning.cli.parse_errors import no_option, parse
from rloop_lightning.cli.quiet import quiet_lightning
from rloop_lightning.cli.study_file import StudyPlan, plan_of_names, read_plan
from rloop_lightning.errors import RunFault, Stopped
from rloop_lightning.run.cell_runner import CellRunner, Outcome
from rloop_lightning.run.cells import COMMAND, Launch
from rloop_lightning.run.comparison_table import write_comparison
from rloop_lightning.run.study import Budget, Study
from rloop_lightning.run.study_time import measured_speed, plan_lines, seconds_by_arm, seconds_left
from rloop_lightning.system.fields import PositiveInt, Seed
from rloop_lightning.system.lock import FolderLock, LockedError
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.terminal import log_handler, printable, printable_lines

USAGE = "rloop-compare [STUDY.yaml] [--algos NAME,...] [--consolidate NAME,...] [--seeds 0,1,2] [--OPTION VALUE ...]"

_DEFAULT_SEEDS = (0, 1, 2)
_LOOKS_ONLY = ("--dry_run", "--table_only")
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
        budget: what all arms have in equal amounts: `rollout_steps`, `tokens`, or nothing (`free`); null takes the
            study file's, or rollout_steps.
        dry_run: list the runs and the expected time, and end.
        table_only: compare the runs that are complete, and start none.
    """

    algos: list[str] | None = None
    consolidate: list[str] | None = None
    seeds: list[Seed] | None = None
    out: str | None = None
    jobs: PositiveInt = 1
    launcher: str = ""
    budget: Budget | None = None
    dry_run: bool = False
    table_only: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The `rloop-compare` command. Returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, handlers=[log_handler()])
    with quiet_lightning(), StopSignals() as signals:
        try:
            return _compare(arguments, signals)
        except UsageError as error:
            return _complain(str(error), code=2)
        except (LockedError, OSError) as error:
            return _complain(str(error), code=2 if isinstance(error, LockedError) else 1)
        except Stopped as stopped:
            print(f"\nrloop-compare: {stopped}; run the same command again to go on", file=sys.stderr)
            return stopped.exit_code


def _compare(arguments: Sequence[str], signals: StopSignals) -> int:
    options, plan, of_runs = parsed(arguments)
    seeds = [int(seed) for seed in options.seeds or plan.seeds or _DEFAULT_SEEDS]  # plain, for YAML
    arms = checked_arms(plan, of_runs, seeds[0])
    study = Study(
        Path(options.out or _default_out(plan)),
        [one.arm for one in arms],
        seeds,
        options.budget or plan.budget or "rollout_steps",
        shlex.join(["rloop-compare", *(word for word in arguments if not word.startswith(_LOOKS_ONLY))]),
    )
    wrong = study.place_faults()
    wrong += [fault for one in arms if (fault := study.fault(one.arm, one.defaults))]
    wrong += _unequal(study, arms)
    if wrong:
        raise UsageError("\n".join(wrong))
    if options.dry_run:
        for line in _plan(study, arms, options):
            print(printable(line))
        return 0
    study.out.mkdir(parents=True, exist_ok=True)
    with FolderLock(study.lock):
        study.write()
        code = 0 if options.table_only else _run(study, options, signals)
        print(f"\n{printable(write_comparison(study))}")
        print(f"the table is in {study.results}, its figures with all digits in {study.results_csv}")
        return code


def _run(study: Study, options: CompareOptions, signals: StopSignals) -> int:
    launch = Launch(options.launcher, _threads(options.jobs))

    def ended(outcome: Outcome) -> None:
        reason = f", {outcome.reason}" if outcome.reason else ""
        by_arm = seconds_by_arm(study, None, {})
        left = sum(seconds_left(cell, by_arm) for cell in study.cells) / options.jobs
        about = f"; about {duration(left)} left" if left else ""
        _tell(f"{outcome.cell}: {outcome.kind}{reason}{about}")
        write_comparison(study)

    outcomes = CellRunner(study, launch, options.jobs, tell=_tell, ended=ended).run(signals)
    failed = [outcome for outcome in outcomes if outcome.kind == "failed"]
    for outcome in failed:
        _complain(f"{outcome.cell} failed, {outcome.reason}; its log is {outcome.cell.log}", code=1)
    if failed:
        _complain(f"{len(failed)} of {len(study.cells)} runs failed; run the same command again to try them", code=1)
    if submitted := sum(outcome.kind == "submitted" for outcome in outcomes):
        _tell(f"{submitted} runs were submitted; the same command with --table_only compares those that are complete")
    return 1 if failed else 0


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
        return f"{flag}=true" if flag in _LOOKS_ONLY else flag
    return f"{flag}=[{value}]" if flag in _LISTS and not value.startswith("[") else f"{flag}={value}"


def _faults(options: CompareOptions, file: str | None) -> list[str]:
    wrong = []
    if file and options.algos is not None:
        wrong.append(f"--algos: {file} has its arms; leave one of them out")
    if not file and not options.algos and not options.consolidate:
        wrong.append(f"give a study file, or --algos and --consolidate: {USAGE}")
    if options.seeds is not None and len(set(options.seeds)) < max(1, len(options.seeds)):
        wrong.append("--seeds: give at least one seed, and each once")
    if options.launcher and COMMAND not in options.launcher:
        wrong.append(f"--launcher: it needs {COMMAND}, where the command of a run is to be")
    return wrong


def _default_out(plan: StudyPlan) -> Path:
    path = Path(plan.source)
    return Path("runs") / (path.stem if path.suffix else "compare")


def _unequal(study: Study, arms: Sequence[CheckedArm]) -> list[str]:
    """A message if the arms can't have the same budget."""
    if study.budget == "tokens":
        scheduled = [one.arm.name for one in arms if one.parts.algorithm.lr_schedule != "constant"]
        return [
            f"--budget tokens: arm {name}: its learning rate would decay over a number of steps that is not known; set "
            "--algo.lr_schedule constant"
            for name in scheduled
        ]
    planned = {
        one.arm.name: one.parts.explorations
        * one.parts.explore_steps
        * one.parts.problems_per_step
        * one.parts.loop.rollouts_per_problem
        for one in arms
    }
    if study.budget != "rollout_steps" or len(set(planned.values())) == 1:
        return []
    told = ", ".join(f"{name} {count:,}" for name, count in planned.items())
    return [
        f"--budget rollout_steps: the arms differ in the rollouts that they train on: {told}; make rounds x "
        "explore_steps x problems_per_step x rollouts_per_problem equal, or give --budget tokens or free"
    ]


def _threads(jobs: int) -> int | None:
    """Threads of each run: those of OMP_NUM_THREADS, or of the machine, divided; None leaves one run alone."""
    if jobs == 1:
        return None
    given = os.environ.get("OMP_NUM_THREADS", "")
    available = int(given) if given.isdecimal() and int(given) > 0 else len(os.sched_getaffinity(0))
    return max(1, available // jobs)


def _plan(study: Study, arms: Sequence[CheckedArm], options: CompareOptions) -> list[str]:
    """What `--dry_run` shows."""
    parts = {one.arm.name: one.parts for one in arms}
    complete = sum(cell.complete for cell in study.cells)
    speed, basis = None, f"{complete} complete run{'s' if complete > 1 else ''}"
    if options.launcher and not complete:
        basis = "not known before a run is complete, since a launcher may use other machines"
    elif not complete:
        try:
            speed = measured_speed(study.arms[0], parts[study.arms[0].name], _threads(options.jobs))
            basis = "a trial of two rollout steps on this machine, without consolidations"
        except RunFault as error:
            basis = f"not known, because a trial failed: {error}"
    return plan_lines(study, seconds_by_arm(study, speed, parts), basis, options.jobs)


def _tell(line: str) -> None:
    print(printable(line), flush=True)


def _complain(message: str, code: int) -> int:
    for line in printable_lines(message):
        print(f"rloop-compare: error: {line}", file=sys.stderr)
    return code
