"""From accepted settings to a run that can begin: the checks of what is outside of them, and the run folder."""

from __future__ import annotations

import logging
from datetime import date
from typing import TYPE_CHECKING

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.loggers import user_loggers
from rloop_lightning.cli.memory_plan import planned, set_rows, with_figures
from rloop_lightning.cli.rank_settings import Settings
from rloop_lightning.cli.refusal import of_policy, refuse
from rloop_lightning.cli.trust import remember, strange_paths
from rloop_lightning.cli.yaml_text import load_yaml
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.errors import ClaimError
from rloop_lightning.model.config import PolicyConfig, model_source, policy_faults
from rloop_lightning.model.policy import Policy
from rloop_lightning.run.base_policy import Source, source_on_resume
from rloop_lightning.run.edits import Edits, Resumption, find_edits
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.loggers import RunLoggers, known_loggers
from rloop_lightning.run.loop import LoopRunner
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.precision import slow_bfloat16
from rloop_lightning.run.problem_record import changed_problems, keep_record, recorded_date
from rloop_lightning.run.start import begin
from rloop_lightning.system.hub import HubConfig, push_faults

if TYPE_CHECKING:
    from rloop_lightning.cli.fit import RLoopCLI

_log = logging.getLogger(__name__)


def prepare(cli: RLoopCLI) -> tuple[LoopRunner, Policy]:
    """See `RLoopCLI.prepare`."""
    wrong = [] if cli.config.dry_run else _claim_faults(cli)
    folder, config = cli.folder, cli.config
    edits = _edits(cli)
    wrong += [*faults_outside(cli, None if config.resume else cli.policy_config, None), *upload_faults(cli, cli.hub)]
    today = _first_day(folder) if config.resume else date.today()
    cli.parts.data.today = today
    try:
        parts, unreadable = cli.parts.readable()
        wrong += [*parts.validate(), *unreadable]
    except ValueError as error:
        wrong += str(error).splitlines()
    if wrong and cli.arguments.takes_preset and cli.choices["data"].name != cli.arguments.preset:
        wrong.append(
            f"neither --config nor --policy.model is given, so the settings are those of the preset "
            f"{cli.arguments.preset}; to train a model on these problems, give --policy.model"
        )
    try:
        runner = LoopRunner(folder.out, cli.parts, cli.make_trainer, _loggers(cli, edits), ranks=cli.ranks)
    except ValueError as error:
        wrong += str(error).splitlines()
    refuse(wrong)
    runner.folder = folder
    source = Source(cli.policy_config)
    if config.resume:
        try:
            source = source_on_resume(folder, runner.stages, runner.parts, source.config, config.restart_from)
        except ValueError as error:
            raise UsageError(str(error)) from error
        for line in source.base_fault.splitlines():
            _log.warning(line)
    plan = planned(cli, source.config, parts, runner.device)
    policy = _load_policy(with_figures(cli, plan))
    policy.source = model_source(cli.policy_config.model)
    runner.resumed = Resumption(
        edits.note, config.restart_from, edits.settings if config.resume else None, source.base_fault
    )
    try:
        runner.parts = parts.rendered(policy)
    except ValueError as error:
        raise UsageError(str(error)) from error
    set_rows(cli, plan.with_parts(runner.parts))
    refuse(runner.parts.validate_with(policy))
    _resolve_defaults(cli, runner.parts)
    if warning := slow_bfloat16(_dtypes(cli, runner), runner.device.type):
        _log.warning(warning)
    if config.resume:
        refuse(changed_problems(folder.problems, parts.data, runner.parts.data))
    if config.dry_run:
        return runner, policy
    settings = cli.settings()
    _remember_code(folder, settings)  # before there is a run that a kill could leave
    if not config.resume:
        begin(folder, settings, today)
    keep_record(folder.problems, parts.data, runner.parts.data, today)
    cli.ranks.send(Settings(settings, str(folder.out), parts.engine.longest_rollout))
    return runner, policy


def faults_outside(cli: RLoopCLI, policy: PolicyConfig | None, data: ProblemSource | None) -> list[str]:
    """Errors in the run folder, the model's folder and the problem sets."""
    wrong = [*_edits(cli).faults]
    if not cli.config.resume:
        wrong += cli.claim.faults()
        if cli.config.restart_from is not None:
            wrong.append("--restart_from needs --resume RUN")
    if policy is not None:
        wrong += of_policy(policy, policy_faults(policy))
    if data is not None:
        try:
            data.train(), data.evaluation()
        except ValueError as error:
            wrong += str(error).splitlines()
    return wrong


def upload_faults(cli: RLoopCLI, hub: HubConfig) -> list[str]:
    """Errors in the upload of the final policy. Those of one that a resumed run has recorded are warnings.

    The hub may be back at the end of the run, which reports an upload that fails.
    """
    recorded = bool(cli.config.resume) and cli.arguments.is_recorded("hub.push")
    faults = push_faults(hub, recorded=recorded)
    for fault in faults if recorded else ():
        _log.warning(f"{fault}; the run goes on, and its end tries the upload unless you give --hub.push null")
    return [] if recorded else faults


def _first_day(folder: RunFolder) -> date:
    """The date that chat templates saw when the run began."""
    state, _ = folder.newest_state()
    return date.fromisoformat(state.began) if state and state.began else recorded_date(folder.problems)


def _claim_faults(cli: RLoopCLI) -> list[str]:
    """Take the run folder. Returns why a new run can't have it.

    Raises:
        UsageError: a resume can't have it. It says nothing else, since a process that runs there changes what it reads.
    """
    resumes = bool(cli.config.resume)
    try:
        cli.claim.take(resumes=resumes)
    except ClaimError as error:
        if resumes:
            raise UsageError(str(error)) from error
        return str(error).splitlines()
    return []


def _edits(cli: RLoopCLI) -> Edits:
    """The settings that a resume changes. An unreadable run has been reported already."""
    if not (cli.config.resume and cli.arguments.resumable):
        return Edits()
    return find_edits(cli.folder, cli.settings(), cli.defaults(), cli.config.restart_from)


def _remember_code(folder: RunFolder, settings: str) -> None:
    """So that the user can resume the run without `--trust`.

    Args:
        folder: the run folder.
        settings: all settings as YAML.
    """
    paths = strange_paths(load_yaml(settings)).values()
    if paths and not remember(folder.out, paths):
        _log.warning("your state folder can't be written: a resume of this run needs --trust (docs/resume.md)")


def _loggers(cli: RLoopCLI, edits: Edits) -> RunLoggers:
    """The loggers of the run: the user's, which a resume continues, and its own.

    Raises:
        ValueError: a logger can't be made; names all of them.
    """
    logger = cli.config.trainer.logger
    users = user_loggers(cli.parser, logger, known_loggers(cli.folder).loggers)
    return RunLoggers(cli.folder, users, tensorboard=logger is not False, repeats_differ=bool(edits.changes))


def _load_policy(config: PolicyConfig) -> Policy:
    try:
        return Policy.load(config)
    except (ValueError, OSError) as error:
        raise UsageError("\n".join(of_policy(config, str(error).splitlines()))) from error


def _dtypes(cli: RLoopCLI, runner: LoopRunner) -> dict[str, str | None]:
    """The options that choose a dtype, with their values."""
    return {
        "--trainer.precision": None if runner.mixed_precision is None else "bf16-mixed",
        "--policy.dtype": cli.policy_config.dtype,
        "--policy.head_dtype": cli.policy_config.head_dtype,
        "--engine.dtype": getattr(cli.parts.engine, "dtype", None),
    }


def _resolve_defaults(cli: RLoopCLI, parts: Parts) -> None:
    """Replace settings of null by the numbers that they stand for, so that config.yaml and a resume have them."""
    cli.config.loop.problems_per_step = parts.problems_per_step
    if "max_new_tokens" in cli.config.engine:  # not if the engine is a Python object
        cli.config.engine.max_new_tokens = parts.engine.max_new_tokens
