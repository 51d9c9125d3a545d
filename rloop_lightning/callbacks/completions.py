"""Sample completions in the log, and a loud warning if the first rollout step of a run gives nothing to learn from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rloop_lightning.callbacks.diagnosis import first_step_faults
from rloop_lightning.callbacks.findings import Diagnosis, Phase
from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.listener import StreamListener
from rloop_lightning.system.terminal import one_line, printable
from rloop_lightning.types import Group, Problem, Rollout

_log = logging.getLogger(__name__)

# Characters of a text that are shown.
_PROMPT_TAIL = 300
_COMPLETION_HEAD = 400
_COMPLETION_TAIL = 200
_ANSWER = 200


class CompletionLog(StreamListener):
    """Logs a right and a wrong completion every few rollout steps, and warns about the first step of a run.

    Args:
        policy: the policy, whose tokenizer decodes completions together with their special tokens.
        phase: the settings of the exploration.
        title: title of the phase, such as "round 1/3 explore".
        every_n_steps: rollout steps between two logs, in addition to the first step; 0 is off.
        checks_first_step: whether the phase's first step is the run's.
    """

    def __init__(
        self, policy: Policy, phase: Phase, title: str, every_n_steps: int, *, checks_first_step: bool = False
    ) -> None:
        self.policy = policy
        self.phase = phase
        self.title = title
        self.every_n_steps = every_n_steps
        self.checks_first_step = checks_first_step

    def sampled(self, step: int, groups: Sequence[Group], metrics: Mapping[str, float]) -> None:
        faults = first_step_faults(metrics, self.phase) if step == 0 and self.checks_first_step else []
        due = self.every_n_steps > 0 and (step == 0 or (step + 1) % self.every_n_steps == 0)
        if not faults and not due:
            return
        samples = "".join(self._sample(*one) for one in _right_and_wrong(groups))
        if not faults:
            _log.info(f"{self.title}: completions of rollout step {step + 1}{samples}")
            return
        told = "".join(f"\n  {found.cause}{self._advice(found)}" for found in faults)
        _log.warning(f"WARNING: the first rollout step gives nothing to learn from{told}{self._unknown_stops(groups)}")
        _log.warning(f"completions of that step{samples}")

    def _advice(self, found: Diagnosis) -> str:
        return "".join(f"\n    what may help: {option}" for option in [*found.at_resume, *found.in_new_run])

    def _unknown_stops(self, groups: Sequence[Group]) -> str:
        """Special tokens in truncated completions that do not end a completion, such as the end of a chat turn."""
        tokenizer = self.policy.tokenizer
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        specials = (added | set(tokenizer.all_special_ids)) - self.policy.stop_token_ids
        cut = [rollout for group in groups for rollout in group.rollouts if rollout.finish_reason == "length"]
        counts = Counter(token for rollout in cut for token in specials.intersection(rollout.completion_ids.tolist()))
        if not counts:
            return ""
        token, count = counts.most_common(1)[0]
        name = one_line(tokenizer.convert_ids_to_tokens(token))
        return (
            f"\n  {count} of {len(cut)} cut completions hold the special token {name}, which does not end a completion"
            f"\n    what may help: --engine.stop '{name}'"
        )

    def _sample(self, problem: Problem, rollout: Rollout) -> str:
        text = self.policy.tokenizer.decode(rollout.completion_ids.tolist(), skip_special_tokens=False)
        end = "ended" if rollout.finish_reason == "stop" else "cut at the limit"
        parts = "".join(f", {one_line(name)} {value:.3g}" for name, value in rollout.reward_parts.items())
        lines = [
            f"  problem {one_line(problem.id)}, gold answer {one_line(problem.answer, limit=_ANSWER)}",
            *_block("prompt", _tail(problem.prompt, _PROMPT_TAIL)),
            *_block("completion", _head_and_tail(text)),
            f"    {'right' if rollout.success else 'wrong'}, reward {rollout.reward:.3g}{parts}, "
            f"{rollout.length:,} tokens, {end}",
        ]
        return "".join(f"\n{line}" for line in lines)


def _right_and_wrong(groups: Sequence[Group]) -> Iterator[tuple[Problem, Rollout]]:
    """A right and a wrong rollout, of one problem if there is a problem with both; one of them if all are alike."""
    mixed = [group for group in groups if 0 < group.success_count < len(group.rollouts)]
    for wanted in (True, False):
        found = (
            (group.problem, rollout)
            for group in [*mixed, *groups]
            for rollout in group.rollouts
            if rollout.success == wanted
        )
        yield from [one for one in [next(found, None)] if one is not None]


def _block(label: str, text: str) -> Iterator[str]:
    """A label and a text of any lines. No line of the text can pass for a line of the log."""
    first, *rest = printable(text).split("\n")
    yield f"    {label}: {first}"
    yield from (f"    | {line}" for line in rest)


def _tail(text: str, size: int) -> str:
    return text if len(text) <= size else f"({len(text) - size:,} characters) ... {text[-size:]}"


def _head_and_tail(text: str) -> str:
    cut = len(text) - _COMPLETION_HEAD - _COMPLETION_TAIL
    if cut <= 0:
        return text
    return f"{text[:_COMPLETION_HEAD]} ... ({cut:,} characters) ... {text[-_COMPLETION_TAIL:]}"
