"""The memory plan in `rloop-fit`: what --plan prints, and the check and the figures of `auto` before a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.refusal import of_policy, refuse
from rloop_lightning.model.adapter_folder import base_of
from rloop_lightning.model.config import PolicyConfig, lora_faults, lora_target_faults, model_source
from rloop_lightning.model.folder import faults_for_a_plan, hub_faults
from rloop_lightning.run.memory_setup import AUTO
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.planned_run import PlannedRun
from rloop_lightning.run.trainer import sharding_faults
from rloop_lightning.system.store_errors import StoreError

if TYPE_CHECKING:
    from rloop_lightning.cli.fit import RLoopCLI


def plan_lines(cli: RLoopCLI) -> Iterator[str]:
    """What --plan prints.

    Raises:
        UsageError: the plan can't be made; names all errors.
    """
    policy, parts = cli.policy_config, cli.parts
    try:
        wrong = lora_faults(policy) or faults_for_a_plan(_base(policy)) or lora_target_faults(policy)
    except StoreError as error:
        wrong = str(error).splitlines()
    wrong = of_policy(policy, wrong)
    modules = [one for one in (parts.algorithm, parts.consolidation) if isinstance(one, PolicyModule)]
    if cli.plan.strategy in ("fsdp2", "hsdp"):
        faults = sharding_faults("fsdp2", policy, modules)
        wrong += [fault.replace("--trainer.strategy", "--plan.strategy") for fault in faults]
    device = _device_to_plan_for(cli, wrong)
    refuse(wrong)
    planned = _planned(cli, policy, parts, device, knows_problems=False)
    try:
        simulated = planned.simulated(cli.plan)
    except ValueError as error:
        raise UsageError(str(error)) from error
    yield from planned.lines()
    if simulated is not None:
        yield ""
        yield from simulated.lines()


def planned(cli: RLoopCLI, policy: PolicyConfig, parts: Parts, device: torch.device) -> PlannedRun:
    """The plan of a run on its device.

    Raises:
        UsageError: the model's files can't be used.
    """
    refuse(of_policy(policy, hub_faults(_base(policy))))
    return _planned(cli, policy, parts, device, knows_problems=True)


def _planned(
    cli: RLoopCLI, policy: PolicyConfig, parts: Parts, device: torch.device, *, knows_problems: bool
) -> PlannedRun:
    trainer = cli.config.trainer
    try:
        return PlannedRun.of(
            parts,
            policy,
            cli.plan,
            precision=trainer.precision,
            device=device,
            knows_problems=knows_problems,
            ranks=cli.plan.ranks(trainer),
        )
    except (ValueError, OSError) as error:
        raise UsageError("\n".join(of_policy(policy, str(error).splitlines()))) from error


def _base(policy: PolicyConfig) -> str:
    return base_of(model_source(policy.model))


def with_figures(cli: RLoopCLI, plan: PlannedRun) -> PolicyConfig:
    """The policy's settings with the token budget that `auto` stands for, which config.yaml then has.

    Raises:
        UsageError: the run does not fit.
    """
    policy = plan.policy
    # A run that has begun did fit, perhaps closely; what may be changed then are the two budgets.
    if not cli.config.resume:
        refuse(plan.faults())
    if policy.max_tokens_per_micro_batch != AUTO:
        return policy
    tokens = _figure(plan.tokens)
    cli.config.policy.max_tokens_per_micro_batch = tokens
    return replace(policy, max_tokens_per_micro_batch=tokens)


def set_rows(cli: RLoopCLI, plan: PlannedRun) -> None:
    """Check the plan of rendered parts, and set the engine's `max_rows` to what `auto` stands for.

    config.yaml then has the figure.

    Raises:
        UsageError: the run does not fit.
    """
    if not cli.config.resume:
        refuse(plan.faults())
    engine = plan.parts.engine
    if getattr(engine, "max_rows", None) == AUTO:
        engine.max_rows = _figure(plan.rows)  # type: ignore[attr-defined]  # of engines that have it
        if "max_rows" in cli.config.engine:  # not if the engine is a Python object
            cli.config.engine.max_rows = engine.max_rows  # type: ignore[attr-defined]


def _figure(find: Callable[[], int]) -> int:
    try:
        return find()
    except ValueError as error:
        raise UsageError(str(error)) from error


def _device_to_plan_for(cli: RLoopCLI, wrong: list[str]) -> torch.device:
    """The device of --plan, which need not be here. Takes errors into `wrong`."""
    accelerator = cli.config.trainer.accelerator
    if cli.plan.device is not None:
        kind = cli.plan.device
    elif accelerator == "auto" and cli.plan.memory is None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        kind = "cpu" if accelerator == "cpu" else "cuda"
    if kind == "cuda" and cli.plan.memory is None and not torch.cuda.is_available():
        wrong.append("--plan: there is no GPU here to ask for its memory; give its size, such as --plan.memory 24GiB")
    return torch.device(kind)
