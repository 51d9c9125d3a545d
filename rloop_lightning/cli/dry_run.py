"""`rloop-fit --dry_run`: the plan of a run, prompts, and the reward's verdicts, without a run folder."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.probes import RewardCheck
from rloop_lightning.run.forecast import plan_lines, sampled_check, spread
from rloop_lightning.run.parts import Parts
from rloop_lightning.system.terminal import one_line, printable

_PROMPTS = 3
_PROMPT_CHARACTERS = 2000
_IDS_SHOWN = 20


def dry_run(parts: Parts, policy: Policy, device: torch.device) -> Iterator[str]:
    """The lines to print, for parts that are rendered for the policy."""
    yield from parts.data.notes()
    yield from plan_lines(parts, policy, device)
    shown = spread(parts.problems, _PROMPTS)
    yield f"\n{len(shown)} prompts of train, as the policy sees them:"
    for problem in shown:
        tokens = len(policy.prompt_ids(problem))
        yield f"\n--- {one_line(problem.id)}, {tokens:,} tokens, answer: {one_line(problem.answer, limit=200)}"
        yield printable(problem.prompt, limit=_PROMPT_CHARACTERS)
    check = sampled_check(parts)
    yield f"\nthe reward's verdicts on completions of {check.problems:,} problems:"
    yield from verdict_lines(check)
    yield "\n--dry_run: nothing was written; leave it out to start the run"


def verdict_lines(check: RewardCheck) -> Iterator[str]:
    """A reward's verdicts, the problems whose gold answers do not pay, and what is wrong with the reward."""
    yield from (f"  {line}" for line in check.table())
    if unpaid := check.unpaid():
        some = ", ".join(map(one_line, unpaid[:_IDS_SHOWN])) + (" ..." if len(unpaid) > _IDS_SHOWN else "")
        yield f"  no right completion is a success: {len(unpaid):,} ({some})"
    if not check.right:
        yield "  this reward knows no right completions; override Reward.right_completions"
    yield from (f"  WARNING: {message}" for message in (*check.faults(), *check.warnings()))
