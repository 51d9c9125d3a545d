"""The policies that the arguments of `rloop-eval` name: Hugging Face folders, hub names, and those of runs.

policies_of(["runs/NAME", "Qwen/Qwen2.5-0.5B"], "final")
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rloop_lightning.errors import StateError
from rloop_lightning.model.adapter_folder import source_faults
from rloop_lightning.model.config import model_source
from rloop_lightning.model.loading import is_folder
from rloop_lightning.run.base_policy import base_checksums, changed_base
from rloop_lightning.run.evaluation_folder import PolicyToEvaluate
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import result_step
from rloop_lightning.run.settings import recorded_settings
from rloop_lightning.run.state import LoopState, Stage
from rloop_lightning.system.checksums import damaged_files
from rloop_lightning.system.fetched import fetched_run
from rloop_lightning.system.store_urls import is_url
from rloop_lightning.system.terminal import one_line

WhichPolicies = Literal["final", "all"]


@dataclass
class FoundPolicies:
    """Policies, and what is wrong with them.

    Args:
        policies: in the order of the arguments, and of the rounds of a run.
        wrong: errors, one message each.
        notes: policies that are left out, and why.
    """

    policies: list[PolicyToEvaluate] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run_at(word: str) -> RunFolder | None:
    """The run at a path or a URL; None if there is none.

    Raises:
        StoreError: the store can't be read.
    """
    try:
        folder = RunFolder(fetched_run(word, policies=True) if is_url(word) else Path(word).expanduser())
        return folder if folder.states else None
    except (OSError, RuntimeError):  # a name that is too long, or a user without a home
        return None


def policies_of(words: Sequence[str], which: WhichPolicies) -> FoundPolicies:
    """Find the policies and check their files, without reading weights.

    Args:
        words: folders, hub names and run folders.
        which: of a run: the policy that it handed over, or every policy that it saved.
    """
    found = FoundPolicies()
    runs = [run_at(word) for word in words]
    for word, run in zip(words, runs, strict=True):
        if run is None:
            found.policies.append(PolicyToEvaluate(one_line(word, limit=0), model_source(word)))
        else:
            prefix = "" if len(words) == 1 else f"{one_line(word, limit=0)}: "
            _find_in_run(run, word, which, prefix, found)
    if which == "all" and not any(runs):
        found.wrong.append("--policies all: none of the policies is a run folder")
    names = Counter(one.name for one in found.policies)
    twice = [name for name, count in names.items() if count > 1]
    found.wrong += [f"{one_line(name, limit=200)}: it is there twice; give it once" for name in twice]
    for one in found.policies:
        found.wrong += [f"{one.name}: {fault}" for fault in source_faults(one.source)]
    if not found.wrong:
        found.policies = [_placed(one) for one in found.policies]
    return found


def _placed(one: PolicyToEvaluate) -> PolicyToEvaluate:
    """The policy with an absolute path, so that a resume finds it from any folder, and the checksums of its files."""
    source = str(Path(one.source).absolute()) if is_folder(one.source) else one.source
    return replace(one, source=source, checksums=base_checksums(source) or None)


def changed_policy(one: PolicyToEvaluate) -> list[str]:
    """How a policy's files differ from those that the evaluation began with, one message each."""
    return changed_base(one.source, one.checksums or {}, "evaluation") or source_faults(one.source)


def _find_in_run(run: RunFolder, word: str, which: WhichPolicies, prefix: str, found: FoundPolicies) -> None:
    shown = one_line(word, limit=200)
    try:
        state, _ = run.newest_state()
    except StateError as error:
        found.wrong += str(error).splitlines()
        return
    assert state is not None  # `run_at` found one
    stages = [Stage(0, "evaluate", "base"), *_trained(run)]
    final = next((stage for stage in stages if stage.name == state.selected), None)
    sources: dict[Stage, Path] = {}
    if which == "all":
        sources = {stage: run.policy(stage) for stage in stages[1:] if run.holds_policy(run.policy(stage))}
    if final is not None and final not in sources and (which == "final" or final.which != "base"):
        sources[final] = run.final
    base = _base(run, state, shown, found) if which == "all" else None
    if base is not None:
        found.policies.append(_of_stage(stages[0], base, prefix))
    if not sources and base is None:
        missing = "handed over no policy yet; --policies all takes those that it saved" if which == "final" else ""
        found.wrong.append(f"{shown}: the run has {missing or 'saved no policy yet'}")
    for stage, path in sources.items():
        found.wrong += [f"{path / name} {what}" for name, what in list(damaged_files(path).items())[:1]]
        found.policies.append(_of_stage(stage, str(path), prefix))


def _of_stage(stage: Stage, source: str, prefix: str) -> PolicyToEvaluate:
    return PolicyToEvaluate(f"{prefix}{stage.name}", source, stage.round, stage.phase, result_step(stage))


def _trained(run: RunFolder) -> list[Stage]:
    """The evaluations of trained policies that a run may have, in order."""
    rounds = sorted(
        int(match[1]) for path in run.out.glob("round-*") if (match := re.fullmatch(r"round-(\d{1,6})", path.name))
    )
    return [Stage(number, "evaluate", which) for number in rounds for which in ("explored", "consolidated")]


def _base(run: RunFolder, state: LoopState, shown: str, found: FoundPolicies) -> str | None:
    """Where the base policy of a run is; None, with a note, if it is gone or changed."""
    if run.base.is_dir() and not damaged_files(run.base):  # the copy of a policy of the hub
        return str(run.base)
    policy: Any = recorded_settings(run).get("policy")
    source = model_source(str(policy.get("model"))) if isinstance(policy, dict) and policy.get("model") else ""
    if not source:
        faults = ["the settings of the run do not name it"]
    elif not Path(source).is_dir():
        faults = [f"there is no folder {one_line(source, limit=200)}, nor a copy in the run folder"]
    else:
        faults = changed_base(source, state.base)
    if not faults:
        return source
    found.notes.append(f"{shown}: the base policy is left out: {faults[0]}")
    return None
