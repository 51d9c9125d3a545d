"""The base policy of a run on resume: whether its files are those that the run began with, and what stands in for it.

A local folder may have changed since, and a name on the hub may give other weights, or none. Once the run has saved
policies of its own, it may not need the base policy any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rloop_lightning.model.adapter_folder import base_of, is_adapter
from rloop_lightning.model.config import PolicyConfig, model_source, policy_faults
from rloop_lightning.run.edits import restart_stage
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.resume import deleted_input, resume_point
from rloop_lightning.run.state import TRAINS, LoopState, Stage
from rloop_lightning.system.checksums import damaged_files, digest
from rloop_lightning.system.fetched import url_of

_READ = {".json", ".safetensors", ".model", ".txt", ".jinja"}
"""Suffixes of the files that a policy is loaded from."""


def base_checksums(source: str) -> dict[str, str]:
    """Checksums of a policy's files by name, with those of the model under an adapter by path.

    There are none if it is not a local folder.
    """
    folder = Path(source)
    if not folder.is_dir():
        return {}
    found = {path.name: digest(path) for path in sorted(folder.iterdir()) if path.suffix in _READ and path.is_file()}
    if not is_adapter(source):
        return found
    under = base_of(source)
    place = url_of(Path(under)) or str(Path(under).absolute())
    return found | {f"{place}/{name}": value for name, value in base_checksums(under).items()}


def changed_base(source: str, recorded: Mapping[str, str], began: str = "run") -> list[str]:
    """How a local folder differs from what the run began with, one message each; none for a name on the hub.

    Args:
        source: the folder.
        recorded: its checksums by name, when it began.
        began: what began with it.
    """
    if not recorded:
        return []
    try:
        now = base_checksums(source)
    except ValueError as error:
        return str(error).splitlines()
    if not now:
        return [f"{source} is not there any more, or holds no policy"]
    faults = [f"{Path(source) / name} is missing" for name in recorded.keys() - now.keys()]
    changed = [name for name in recorded.keys() & now.keys() if recorded[name] != now[name]]
    faults += [f"{Path(source) / name} is not what the {began} began with (its checksum differs)" for name in changed]
    return sorted(faults)


@dataclass(frozen=True)
class Source:
    """Where the policy of a run is loaded from.

    Args:
        config: how it is loaded.
        base_fault: why it is not the base policy, which the rest of the run does not need; empty if it is.
    """

    config: PolicyConfig
    base_fault: str = ""


def source_on_resume(
    folder: RunFolder, stages: Sequence[Stage], parts: Parts, config: PolicyConfig, restart_from: str | None
) -> Source:
    """The base policy, or the newest policy of the run if the base policy is not what it was and is not needed.

    Raises:
        ValueError: the base policy is not what it was, and the rest of the run needs it, or a phase to repeat reads a
            policy that was deleted.
    """
    if restart_from is not None and (fault := deleted_input(folder, stages, parts, restart_from)):
        raise ValueError(fault)
    if folder.base.is_dir() and not damaged_files(folder.base):  # the copy of a policy of the hub
        return Source(replace(config, model=str(folder.base)))
    newest, _ = folder.newest_state()
    faults = changed_base(model_source(config.model), newest.base if newest else {}) or policy_faults(config)
    if not faults:
        return Source(config)
    faults = [fault if fault.startswith("--policy.") else f"--policy.model {config.model}: {fault}" for fault in faults]
    if restart_from is None:
        state = resume_point(folder, stages, parts).state
    else:
        state = LoopState.load(folder.state_before(restart_stage(folder, stages, restart_from)))
    policies = (folder.policy(stage) for stage in reversed(stages) if stage.phase != "evaluate")
    intact = next((path for path in policies if path.is_dir() and not damaged_files(path)), None)
    # Adapters that phases saved are of no use without the model under them.
    has_adapter = bool(config.lora.rank) or is_adapter(str(intact))
    if state is None or intact is None or has_adapter or _needs_base(stages, parts, state):
        advice = f"--resume {folder}: the rest of the run needs the base policy; restore it, or start a new run"
        raise ValueError("\n".join([*faults, advice]))
    told = "\n".join(f"{fault}; the rest of the run does not need it" for fault in faults)
    return Source(replace(config, model=str(intact)), told)


def _needs_base(stages: Sequence[Stage], parts: Parts, state: LoopState) -> bool:
    """Whether a phase that is left reads the base policy. The hand-over may read it besides."""
    left = () if state.stopped else stages[state.stages_done :]
    starts_there = parts.consolidation is not None and parts.consolidation.start == "base"
    return any(
        stage.which == "base"
        or (stage.round == 0 and stage.phase in TRAINS)
        or (starts_there and stage.phase == "consolidate")
        for stage in left
    )
