"""`rloop-compare`: runs the same budget with several settings and seeds, and compares the policies.

    rloop-compare --algos dapo,grpo --consolidate none,rft --seeds 0,1,2
    rloop-compare studies/filter.yaml --jobs 2 --loop.explore_steps 100

Options that are not its own are those of `rloop-fit`, for every run. Exit codes: 0 done, 1 a cell failed, 2 wrong
input, 130 or 143 stopped by Ctrl-C or SIGTERM. The same command goes on where a study was stopped or killed. A reader
that goes away, as of a pipe to `head`, stops nothing.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rloop_lightning.callbacks.run_estimate import duration
from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.arms import CheckedArm, budget_faults, checked_arms
from rloop_lightning.cli.compare_options import DEFAULT_SEEDS, LOOKS_ONLY, CompareOptions, default_out, parsed
from rloop_lightning.cli.instant import show
from rloop_lightning.cli.quiet import quiet_lightning
from rloop_lightning.errors import RunFault, Stopped
from rloop_lightning.run.cell_runner import CellRunner, Outcome
from rloop_lightning.run.cells import Launch
from rloop_lightning.run.comparison_table import write_comparison
from rloop_lightning.run.report.study_page import write_study_page
from rloop_lightning.run.study import Study
from rloop_lightning.run.study_time import measured_speed, plan_lines, seconds_by_arm, seconds_left
from rloop_lightning.system.lock import FolderLock, LockedError
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.terminal import log_handler, printable, printable_lines


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
            show(f"\nrloop-compare: {stopped}; run the same command again to go on", sys.stderr)
            return stopped.exit_code


def _compare(arguments: Sequence[str], signals: StopSignals) -> int:
    options, plan, of_runs = parsed(arguments)
    seeds = [int(seed) for seed in options.seeds or plan.seeds or DEFAULT_SEEDS]  # plain, for YAML
    arms = checked_arms(plan, of_runs, seeds[0])
    study = Study(
        Path(options.out or default_out(plan)).expanduser(),
        [one.arm for one in arms],
        seeds,
        options.budget or plan.budget or "rollout_steps",
        shlex.join(["rloop-compare", *(word for word in arguments if not word.startswith(LOOKS_ONLY))]),
    )
    wrong = study.place_faults()
    wrong += [fault for one in arms if (fault := study.fault(one.arm, one.defaults))]
    wrong += budget_faults(study.budget, arms)
    if wrong:
        raise UsageError("\n".join(wrong))
    if options.dry_run:
        for line in _plan(study, arms, options):
            _tell(line)
        return 0
    study.out.mkdir(parents=True, exist_ok=True)
    with FolderLock(study.lock):
        study.write()
        code = 0 if options.table_only else _run(study, options, signals)
        show(f"\n{printable(write_comparison(study))}")
        _tell(f"the table is in {study.results}, its figures with all digits in {study.results_csv}")
        if write_study_page(study):
            _tell(f"the page is {study.page}")
        return code


def _run(study: Study, options: CompareOptions, signals: StopSignals) -> int:
    launch = Launch(options.launcher, _threads(options.jobs))

    ended_cells = set()

    def ended(outcome: Outcome) -> None:
        ended_cells.add(outcome.cell)
        reason = f", {outcome.reason}" if outcome.reason else ""
        by_arm = seconds_by_arm(study, None, {})
        left = sum(seconds_left(cell, by_arm) for cell in study.cells if cell not in ended_cells) / options.jobs
        about = f"; about {duration(left)} left" if left else ""
        _tell(f"{outcome.cell}: {outcome.kind}{reason}{about}")
        write_comparison(study)
        write_study_page(study)

    outcomes = CellRunner(study, launch, options.jobs, tell=_tell, ended=ended).run(signals)
    failed = [outcome for outcome in outcomes if outcome.kind == "failed"]
    for outcome in failed:
        _complain(f"{outcome.cell} failed, {outcome.reason}; its log is {outcome.cell.log}", code=1)
    if failed:
        _complain(f"{len(failed)} of {len(study.cells)} runs failed; run the same command again to try them", code=1)
    for line in _advice(outcomes):
        _tell(line)
    return 1 if failed else 0


def _advice(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What to do about runs that a launcher has only submitted."""
    submitted, waiting = (sum(outcome.kind == kind for outcome in outcomes) for kind in ("submitted", "waiting"))
    if submitted:
        yield f"{submitted} runs were submitted; the same command with --table_only compares those that are complete"
    if waiting:
        yield (
            f"{waiting} runs wait for the tokens of submitted ones; repeat the command once those jobs are done. While "
            "they are queued it would submit them again, since a queued job can't be told from a lost one. With a "
            "--launcher that waits for its job (srun, or sbatch --wait), one command is enough"
        )


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
    show(printable(line))


def _complain(message: str, code: int) -> int:
    for line in printable_lines(message):
        show(f"rloop-compare: error: {line}", sys.stderr)
    return code
