"""`train`: a whole run in one call from Python.

    result = train(algo="dapo", data=[{"problem": "1+1=", "answer": "2"}, ...], reward=my_function)
    print(result.table)

It converts its arguments to flags for the parser of `rloop-fit`. Names, checks and defaults are therefore those of the
command line, and every run has a config.yaml, from which `rloop-fit --resume` continues.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.consolidation import Consolidation
from rloop_lightning.callbacks.capture import CaptureConfig
from rloop_lightning.callbacks.gradient_norm import GradientConfig
from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.python_settings import PythonSettings
from rloop_lightning.cli.quiet import quiet_lightning
from rloop_lightning.cli.registry import NONE
from rloop_lightning.cli.run_place import refuse_other_place, run_place
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.records import Records, record_faults, record_sets
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.errors import ClaimError, Stopped
from rloop_lightning.evaluation.evaluator import EvaluationConfig
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.function import RewardFunction
from rloop_lightning.rollouts.filter import FilterConfig
from rloop_lightning.run.claim import RunClaim
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.handover import push_final
from rloop_lightning.run.loop import LoopRunner
from rloop_lightning.run.state import Budget, LoopConfig
from rloop_lightning.system.hub import HubConfig
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.store_urls import is_url

Fields = Mapping[str, Any]
"""Fields of a group by name, as in `--GROUP.FIELD`. For a swappable part, `name` chooses the part, in any form that the
argument itself accepts."""


class _AsConfigured:
    """The default of `consolidate`, where None has a meaning of its own."""


AS_CONFIGURED = _AsConfigured()


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Args:
        folder: the run folder, with config.yaml, metrics.csv, plots, and the policies and rollouts of each round.
        final: the final policy, a plain Hugging Face folder.
        handed_over: its name in the table, such as "round 2 consolidated".
        results: metrics of every evaluated policy by name, in order: `eval/SET/pass@K` and others.
        budget: rollout steps, optimizer steps, rollouts, tokens and seconds spent.
        table: the policies and their metrics, in Markdown.
    """

    folder: Path
    final: Path
    handed_over: str
    results: Mapping[str, Mapping[str, float]]
    budget: Budget
    table: str


def train(
    *,
    algo: str | type[Algorithm] | Algorithm | Fields | None = None,
    consolidate: str | type[Consolidation] | Consolidation | Fields | _AsConfigured | None = AS_CONFIGURED,
    policy: str | Path | PolicyConfig | Fields | None = None,
    engine: str | type[RolloutEngine] | RolloutEngine | Fields | None = None,
    data: str | Path | Records | Mapping[str, Records] | type[ProblemSource] | ProblemSource | Fields | None = None,
    reward: str | RewardFunction | type[Reward] | Reward | Fields | None = None,
    filter: FilterConfig | Fields | None = None,
    capture: CaptureConfig | Fields | None = None,
    gradient: GradientConfig | Fields | None = None,
    eval: EvaluationConfig | Fields | None = None,
    loop: LoopConfig | Fields | None = None,
    hub: HubConfig | Fields | None = None,
    trainer: Fields | None = None,
    out: str | Path | None = None,
    seed_everything: int | None = None,
    config: str | Path | Sequence[str | Path] = (),
    resume: str | Path | None = None,
    restart_from: str | None = None,
    trust: bool = False,
) -> TrainResult:
    """Train a policy by rounds of exploration and consolidation (RLoop, arXiv 2511.04285), as `rloop-fit` does.

    The arguments are the groups of the command line. Without `policy` and `config`, the preset `countdown` applies;
    with `policy`, each class's defaults apply. A swappable part (algo, consolidate, engine, data, reward) is a short
    name, an import path, a class, an object, or a dict of its `name` and fields: `{"name": "dapo", "lr": 1e-5}`.

    `rloop-fit --resume FOLDER` resumes the run. Objects, lambdas, and anything defined in `__main__` or in a function
    have no import path, so config.yaml can't name them. Resume such a run with the object,
    `train(resume=FOLDER, reward=...)`, or with one that has an import path,
    `rloop-fit --resume FOLDER --reward module.function`. A warning at the start says so.

    Args:
        algo: the RL algorithm of the exploration.
        consolidate: what ends a round, such as the fine-tuning on the expert set; None or "none" is plain RL.
        policy: a Hugging Face name or folder, `countdown` for the policy in the package, or a dict of fields.
        engine: the engine that generates rollouts.
        data: a `datasets.Dataset` or a list of dicts; a dict of those, with `train` and evaluation sets; or a file, a
            folder or a name on the hub. Rows are written to the run folder.
        reward: a function `(problems, completions) -> list[float]`, where 1 and above is a success; or any form that
            `algo` accepts.
        filter: the selection of the expert set.
        capture: extra rollouts for the pool.
        gradient: the handling of exploding gradients.
        eval: how policies are evaluated.
        loop: rounds and sizes.
        hub: the upload of the final policy.
        trainer: arguments of `lightning.Trainer`; a callback as `{"class_path": ..., "init_args": {...}}`.
        out: run folder, absent or empty; runs/DATE-TIME by default.
        seed_everything: seed of all randomness.
        config: settings files and names of presets; later ones override earlier ones, and arguments override all.
        resume: folder of the run to resume.
        restart_from: with `resume`, repeat the run from the beginning of this phase, such as `round-1/explore`.
        trust: with `resume`, import the code that the run's settings name.

    Raises:
        UsageError: lists all errors in the arguments; no files are left.
        RunFault: a fault during the run; fix the cause and resume.
        PushError: the run is complete, and its policy could not be uploaded.
        StateError: the run can't be resumed.
        OSError: a file can't be written, or not all files could be uploaded to the store.
        KeyboardInterrupt: Ctrl-C, after the training step is done and saved; a second Ctrl-C does not wait.
        Stopped: SIGTERM, in the same way.
    """
    refuse_other_place(None if resume is None else str(resume), None if out is None else str(out))
    url = str(resume or out or "")
    place = ("--resume" if resume else "--out", url) if is_url(url) else None
    with StopSignals() as signals, quiet_lightning(), run_place(place) as stored:
        claim = stored or RunClaim(RunFolder(Path(url or _default_name())), named=bool(url))
        if stored is not None:
            resume, out = (claim.folder.out, None) if resume else (None, claim.folder.out)
        as_configured = isinstance(consolidate, _AsConfigured)
        sets, data = _split_data(data)
        given = PythonSettings()
        given.flags += ["--trust"] if trust else []
        given.options(
            {
                "resume": resume,
                "out": None if resume else out,
                "config": config,
                "seed_everything": seed_everything,
                "restart_from": restart_from,
            }
        )
        given.parts(
            {
                "algo": algo,
                "consolidate": None if as_configured else NONE if consolidate is None else consolidate,
                "engine": engine,
                "data": data,
                "reward": reward,
            }
        )
        given.groups(
            {
                "policy": {"model": policy} if isinstance(policy, str | Path) else policy,
                "filter": filter,
                "capture": capture,
                "gradient": gradient,
                "eval": eval,
                "loop": loop,
                "hub": hub,
                "trainer": trainer,
            }
        )
        with claim:
            try:
                cli, runner, base = _begin(given, claim, sets, resumes=resume is not None)
                folder = claim.folder
                state = runner.run(base, signals, claim)
                push_final(folder, cli.hub)
            except Stopped as stopped:
                if stopped.number != signal.SIGINT:
                    raise
                folder = claim.folder
                begun = folder.state.exists()
                go_on = f"resume with train(resume={str(folder)!r})" if begun else "no run was started"
                raise KeyboardInterrupt(f"{stopped.saved}; {go_on}" if stopped.saved else go_on) from None
    return TrainResult(
        folder=folder.out,
        final=folder.final,
        handed_over=state.selected,
        results=state.results,
        budget=state.budget,
        table=(folder.results).read_text(encoding="utf-8"),
    )


def _default_name() -> str:
    return f"runs/{time.strftime('%Y%m%d-%H%M%S')}"


def _split_data(data: Any) -> tuple[Mapping[str, Records], Any]:
    """The problem sets given as Python objects, and the rest of the argument."""
    fields = dict(data) if isinstance(data, Mapping) and "name" in data else {"name": data}
    sets = record_sets(fields["name"])
    if sets is None:
        return {}, data
    del fields["name"]
    return sets, fields


def _begin(
    given: PythonSettings, claim: RunClaim, sets: Mapping[str, Records], *, resumes: bool
) -> tuple[RLoopCLI, LoopRunner, Policy]:
    """Start the run folder, and return the settings, the loop and the base policy.

    Raises:
        UsageError: names all errors.
    """
    if not sets:
        return _prepare(given, claim)
    given.wrong += record_faults(sets)
    if resumes:
        given.wrong.append(f"data: the run has its problems in {claim.folder.data}; leave data out")
    else:
        try:
            claim.take(resumes=False)
        except ClaimError as error:
            given.wrong += str(error).splitlines()
    if given.wrong:
        raise UsageError("\n".join(given.wrong))
    try:
        files = claim.write_sets(sets)
    except ValueError as error:
        raise UsageError(str(error)) from error
    given.data_files({name: claim.folder.setting_of(file) for name, file in files.items()})
    return _prepare(given, claim)


def _prepare(given: PythonSettings, claim: RunClaim) -> tuple[RLoopCLI, LoopRunner, Policy]:
    """Pass the settings through the command line."""
    try:
        prepared = RLoopCLI(given.flags, given.objects, claim)
    except UsageError as error:
        raise UsageError("\n".join([*given.wrong, str(error)])) from None
    if given.wrong:
        raise UsageError("\n".join(given.wrong))
    runner, base = prepared.prepare()
    folder = claim.folder
    for group, name in given.unnamed.items():
        warnings.warn(
            f"{group}: {name} has no import path, so that config.yaml can't name it. Resume this run with it, "
            f"train(resume={str(folder)!r}, {group}=...), or with one that has a path, "
            f"rloop-fit --resume {folder} --{group} MODULE.NAME",
            stacklevel=4,
        )
    return prepared, runner, base
