"""`rloop-eval`: evaluates saved policies, and compares two evaluations.

    rloop-eval runs/NAME --policies all                         every policy of a run, on its own sets
    rloop-eval Qwen/Qwen2.5-0.5B --data math500.jsonl aime.jsonl --eval.samples 64
    rloop-eval --resume evaluations/NAME
    rloop-eval compare A B                                      (eval_compare.py)

Exit codes: 0 done, 1 a fault during the evaluation, 2 wrong input, 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.eval_arguments import EvalArguments, StoredSettings, Words
from rloop_lightning.cli.eval_compare import compare
from rloop_lightning.cli.eval_settings import EvalSettings
from rloop_lightning.cli.instant import eval_answer
from rloop_lightning.cli.quiet import quiet_lightning
from rloop_lightning.cli.trust import remember, strange_paths
from rloop_lightning.errors import ClaimError, DamagedError, RunFault, StateError, Stopped
from rloop_lightning.rewards.workers import WorkerStartError
from rloop_lightning.run.evaluated_policies import changed_policy, policies_of, run_at
from rloop_lightning.run.evaluation_folder import EvaluationClaim, EvaluationFolder, EvaluationState
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.machine import other_machine, this_machine
from rloop_lightning.run.offline_evaluation import EvaluationParts, OfflineEvaluation, PolicyRefused, fitted
from rloop_lightning.run.precision import slow_bfloat16
from rloop_lightning.run.settings import recorded_settings, settings_text
from rloop_lightning.system.files import write_text
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.store_errors import StoreError
from rloop_lightning.system.store_urls import local_only
from rloop_lightning.system.terminal import log_handler, one_line, printable, printable_lines

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """The `rloop-eval` command. Returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if (code := eval_answer(arguments)) is not None:
        return code
    logging.basicConfig(level=logging.WARNING, handlers=[log_handler()])
    logging.getLogger("rloop_lightning").setLevel(logging.INFO)
    debug = "--debug" in arguments
    try:
        if arguments[0] == "compare":
            for line in compare(arguments[1:]):
                print(printable(line))
            return 0
        with quiet_lightning(), StopSignals() as signals:
            return _evaluate(arguments, signals, debug)
    except BrokenPipeError:  # the reader has closed the pipe
        sys.stdout = None  # otherwise the interpreter would flush into the pipe again
        return 0
    except (UsageError, ClaimError, StateError, StoreError, PolicyRefused) as error:
        return _complain(error, debug, code=2)
    except OSError as error:
        return _complain(error, debug, code=1)


def _evaluate(arguments: Sequence[str], signals: StopSignals, debug: bool) -> int:
    words = Words.of(arguments)
    claim = _claim(words)
    try:
        with claim:
            if words.value("--resume") is None:
                state, parts = _begin(words, claim)
            else:
                claim.take(resumes=True)
                state, parts = _stored(words, claim.folder)
            tables = OfflineEvaluation(claim.folder, state, parts, signals).run()
    except Stopped as stopped:
        print(f"\nrloop-eval: {stopped}; {_go_on(claim) or 'nothing was evaluated'}", file=sys.stderr)
        return stopped.exit_code
    except torch.OutOfMemoryError as error:
        return _complain(error, debug, 1, "evaluate again with a lower --engine.max_rows, in another folder")
    except (RunFault, WorkerStartError, OSError) as error:
        return _complain(error, debug, 1, _go_on(claim))
    print(f"\n{printable(tables)}")
    print(f"tables, figures and every rollout are in {one_line(str(claim.folder.out), limit=0)}")
    return 0


def _go_on(claim: EvaluationClaim) -> str:
    """How to continue an evaluation; empty if nothing of it is left."""
    folder = claim.folder
    if not folder.state.exists():
        return ""
    return f"continue with: rloop-eval --resume {shlex.quote(str(folder.out))}"


def _claim(words: Words) -> EvaluationClaim:
    """The folder of the evaluation, not yet taken."""
    named = words.value("--resume") or words.value("--out")
    if remote := local_only(named, "--resume" if words.value("--resume") else "--out"):
        raise UsageError("\n".join(remote))
    if named:
        return EvaluationClaim(EvaluationFolder(Path(named).expanduser()))
    policy = re.sub(r"[^\w.-]+", "-", Path(words.policies[0]).name if words.policies else "", flags=re.ASCII)
    name = "-".join([time.strftime("%Y%m%d-%H%M%S"), policy[:60].strip("-.") or "policy"])
    return EvaluationClaim(EvaluationFolder(Path("evaluations") / name), named=False)


def _begin(words: Words, claim: EvaluationClaim) -> tuple[EvaluationState, EvaluationParts]:
    """Check everything, take the folder, and write the first state.

    Raises:
        UsageError: names all errors.
    """
    wrong: list[str] = []
    if not words.policies:
        wrong.append("give a policy: rloop-eval POLICY... --data SET...")
    run = next(filter(None, map(run_at, words.policies)), None) if words.value("--config", "-c") is None else None
    settings = EvalSettings(EvalArguments(words, None if run is None else _settings_of(run)), _located(run))
    found = policies_of(words.policies, settings.options.policies)
    wrong += found.wrong
    try:
        claim.take(resumes=False)
    except ClaimError as error:
        wrong.append(str(error))
    began = _date_of(run)
    try:
        parts = settings.parts(began)
    except UsageError as error:
        raise UsageError("\n".join([*wrong, str(error), *_reward_of_run(words, run, str(error))])) from error
    if wrong:
        raise UsageError("\n".join(wrong))
    fits = [fitted(one, parts) for one in found.policies]
    if wrong := [fault for _, faults in fits for fault in faults]:
        raise UsageError("\n".join(wrong))
    for note in found.notes:
        _log.warning(note)
    if warning := slow_bfloat16(_dtypes(parts), parts.device.type):
        _log.warning(warning)
    groups = json.loads(json.dumps(settings.settings(), default=str))
    machine = this_machine(parts.device)
    state = EvaluationState(groups, tuple(one for one, _ in fits), began.isoformat(), machine)
    if paths := strange_paths(groups).values():
        remember(claim.folder.out, paths)  # before there is an evaluation that a kill could leave
    claim.begin(state, settings_text(groups))
    return state, parts


def _reward_of_run(words: Words, run: RunFolder | None, said: str) -> Iterator[str]:
    """What helps if the reward of a run can't judge problems that the run did not have."""
    if run is not None and words.sets and words.value("--reward") is None and "--reward" in said:
        where = one_line(str(run.out), limit=200)
        yield f"the reward is that of the run {where}; for other problems give another, such as --reward math"


def _stored(words: Words, folder: EvaluationFolder) -> tuple[EvaluationState, EvaluationParts]:
    """The state of an evaluation that goes on, and its parts.

    Raises:
        UsageError: names all errors.
    """
    out = one_line(str(folder.out), limit=200)
    others = [flag for flag in words.options if flag.partition("=")[0] not in ("--resume", "--trust", "--debug")]
    if words.policies or words.sets or others:
        given = [*words.policies, *(["--data"] if words.sets else []), *others]
        raise UsageError(
            f"--resume {out}: its policies, sets and settings are those it began with; leave out "
            f"{', '.join(one_line(one) for one in given)}"
        )
    try:
        state = EvaluationState.load(folder.state)
    except DamagedError as error:
        raise UsageError(f"--resume {out}: {error}; give the folder of an evaluation, or start a new one") from error
    stored = StoredSettings(folder.out, str(folder.state), state.settings, "--resume ")
    trust = Words(options=[flag for flag in words.options if flag == "--trust"])
    settings = EvalSettings(EvalArguments(trust, stored))
    parts = settings.parts(date.fromisoformat(state.began))
    wrong = [f"{one.name}: {fault}" for one in state.policies for fault in changed_policy(one)]
    if wrong:
        raise UsageError("\n".join(wrong))
    if not folder.config.exists():  # a kill came between the two files
        write_text(folder.config, settings_text(state.settings))
    if note := other_machine(state.machine, this_machine(parts.device)):
        _log.warning(note)
    return state, parts


def _settings_of(run: RunFolder) -> StoredSettings:
    """The settings of a run, which an evaluation of its policies takes.

    Raises:
        UsageError: they are not readable.
    """
    try:
        settings = recorded_settings(run)
    except Exception as error:  # YAML raises several kinds
        raise UsageError(f"{run.config} can't be read; give --config, or --data and the other settings") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{run.config} holds no settings; give --config, or --data and the other settings")
    return StoredSettings(run.out, str(run.config), settings)


def _located(run: RunFolder | None) -> Any:
    return (lambda settings: settings) if run is None else run.located


def _date_of(run: RunFolder | None) -> date:
    """The date that chat templates see: of a run's policies, the one that they saw in the run."""
    state = None if run is None else run.newest_state()[0]
    return date.fromisoformat(state.began) if state is not None and state.began else date.today()


def _dtypes(parts: EvaluationParts) -> dict[str, str | None]:
    """The options that choose a dtype, with their values."""
    return {
        "--trainer.precision": None if parts.mixed_precision is None else "bf16-mixed",
        "--policy.dtype": parts.policy.dtype,
        "--policy.head_dtype": parts.policy.head_dtype,
        "--engine.dtype": getattr(parts.engine, "dtype", None),
    }


def _complain(error: Exception, debug: bool, code: int, advice: str = "") -> int:
    if debug:
        raise error
    for line in [*printable_lines(str(error)), *([advice] if advice else [])]:
        print(f"rloop-eval: error: {line}", file=sys.stderr)
    return code
