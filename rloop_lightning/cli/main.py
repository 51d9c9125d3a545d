"""The `rloop-fit` command: runs the command line's settings and reports how the run ended.

Exit codes: 0 done, 1 a fault during the run, 2 wrong input, 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence

import torch

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.dry_run import dry_run
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.follow import follow
from rloop_lightning.cli.instant import fit_answer, show
from rloop_lightning.cli.job import Job
from rloop_lightning.cli.memory_plan import plan_lines
from rloop_lightning.cli.quiet import quiet_lightning
from rloop_lightning.cli.run_place import place_of, run_place, with_local_folder
from rloop_lightning.errors import DiagnosedError, PushError, RunFault, StateError, Stopped
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.workers import WorkerStartError
from rloop_lightning.run.claim import RunClaim
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.handover import push_final
from rloop_lightning.run.loop import LoopRunner
from rloop_lightning.run.mirror import UploadError
from rloop_lightning.run.start import RunFolderError
from rloop_lightning.system.rank_watch import is_lost_connection
from rloop_lightning.system.ranks import launched_place
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.terminal import log_handler, printable, printable_lines

_MEMORY_ADVICE = (
    "lower --engine.max_rows, if it was generating, or --policy.max_tokens_per_micro_batch, if it was updating, and "
    "resume with: {go_on} --engine.max_rows N --policy.max_tokens_per_micro_batch N (rloop-fit --plan says what fits)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """The `rloop-fit` command. Returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if (code := fit_answer(arguments)) is not None:
        return code
    try:
        place = launched_place()
    except ValueError as error:
        _say(str(error))
        return 2
    if place is not None and place.rank:
        return follow(place)
    logging.basicConfig(level=logging.WARNING, handlers=[log_handler()])
    logging.getLogger("rloop_lightning").setLevel(logging.INFO)
    with quiet_lightning(), StopSignals() as signals, Job(_say) as job:
        try:
            job.code = _fit(arguments, "--debug" in arguments, signals, job)
        except Stopped as stopped:
            print(f"\nrloop-fit: {stopped}; no run was started", file=sys.stderr)
            job.code = stopped.exit_code
    return job.code


def _fit(arguments: Sequence[str], debug: bool, signals: StopSignals, job: Job) -> int:
    code = 1
    try:
        place = place_of(arguments)
        with run_place(place) as claim:
            local = with_local_folder(arguments, place, claim) if place and claim else arguments
            code = _fit_in(local, claim, debug, signals, job)
    except UsageError as error:
        return _complain(error, debug, code=2)
    except UploadError as error:
        return _complain(error, debug, code=code or 1)
    except (RunFolderError, RunFault) as error:
        return _complain(error, debug, code=1)
    return code


def _fit_in(arguments: Sequence[str], claim: RunClaim | None, debug: bool, signals: StopSignals, job: Job) -> int:
    cli = RLoopCLI(arguments, claim=claim)
    if cli.plan.only:
        show("\n".join(printable(line) for line in plan_lines(cli)))
        return 0
    with cli.claim:
        try:
            if not cli.config.dry_run:
                cli.join(job)
            runner, policy = cli.prepare()
        except Stopped as stopped:
            if cli.config.dry_run or not cli.folder.state.exists():
                raise
            print(f"\nrloop-fit: {stopped} before the first step; resume with: {_go_on(cli.folder)}", file=sys.stderr)
            return stopped.exit_code
        except RuntimeError as error:
            return _complain(_lost_rank(error, job), debug, code=1)
        if cli.config.dry_run:
            policy.mixed_precision = runner.mixed_precision
            show("\n".join(printable(line) for line in dry_run(runner.parts, policy, runner.device)))
            return 0
        return _run(cli, runner, policy, debug, signals, job)


def _go_on(folder: RunFolder) -> str:
    """The command that resumes a run."""
    return f"rloop-fit --resume {shlex.quote(str(folder))}"


def _run(cli: RLoopCLI, runner: LoopRunner, policy: Policy, debug: bool, signals: StopSignals, job: Job) -> int:
    go_on = _go_on(runner.folder)
    try:
        state = runner.run(policy, signals, cli.claim)
    except StateError as error:
        return _complain(error, debug, code=2)
    except (DiagnosedError, WorkerStartError) as error:
        return _complain(error, debug, code=1)
    except (RunFault, OSError) as error:
        return _complain(error, debug, code=1, advice=f"fix the cause, then resume with: {go_on}")
    except torch.OutOfMemoryError as error:
        return _complain(error, debug, code=1, advice=_MEMORY_ADVICE.format(go_on=go_on))
    except RuntimeError as error:
        return _complain(_lost_rank(error, job), debug, code=1, advice=f"fix the cause, then resume with: {go_on}")
    except Stopped as stopped:
        saved = stopped.saved or "what came after the newest checkpoint is repeated"
        print(f"\nrloop-fit: {stopped}; {saved}; resume with: {go_on}", file=sys.stderr)
        return stopped.exit_code
    folder = runner.folder
    print(f"\n{printable(folder.results.read_text(encoding='utf-8'))}")
    print(f"{state.selected} is in {folder.final}; table, plots, metrics.csv and TensorBoard logs are in {folder.out}")
    if folder.address:
        print(f"a copy of all of it is in {folder.address}")
    if folder.report.is_file():
        print(f"open {folder.report} in a browser for all of it on one page")
    try:
        push_final(folder, cli.hub)
    except PushError as error:
        return _complain(error, debug, code=1)
    except Stopped as stopped:
        print(f"\nrloop-fit: {stopped}; the run is complete, and its upload goes on with: {go_on}", file=sys.stderr)
        return stopped.exit_code
    return 0


def _lost_rank(error: RuntimeError, job: Job) -> RunFault:
    """What a lost connection to another rank means to the user, unless the watch ends this process with the reason.

    Raises:
        RuntimeError: the error itself, if it is another one.
    """
    if not is_lost_connection(error):
        raise error
    job.await_verdict()
    return RunFault(f"the connection to another rank is lost: {error}")


def _complain(error: Exception, debug: bool, code: int, advice: str = "") -> int:
    if debug:
        raise error
    _say("\n".join([str(error), *([advice] if advice else [])]))
    return code


def _say(text: str) -> None:
    for line in printable_lines(text):
        print(f"rloop-fit: error: {line}", file=sys.stderr, flush=True)
