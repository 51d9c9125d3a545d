"""What a diagnosis is made from, besides metrics, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

# Most Adam runs diverge above this learning rate, whatever the model.
_SAFE_LR = 1e-4


@dataclass(frozen=True)
class Phase:
    """What the metrics of a phase do not say.

    Args:
        flag: the group of its settings, `--algo` or `--consolidate`.
        lr: its learning rate.
        max_new_tokens: completion length limit, tokens.
        problems_per_step: groups that a rollout step needs.
        rollouts_per_problem: rollouts per group.
        max_generation_batches: limit of dynamic sampling, in rollout steps.
        unsolved_below: `--algo.unsolved_below`, a fraction.
        stop_above: the gradient norm that ends the phase.
        not_finite: weights or logits are NaN or infinite.
        too_few_groups: the last step had too few groups to train on.
        ended_by_gradient: a skipped update ended the phase.
        share_changed: the share of the weights that the phase changed; None if it made no step.
    """

    flag: str
    lr: float
    max_new_tokens: int = 0
    problems_per_step: int = 1
    rollouts_per_problem: int = 1
    max_generation_batches: int = 1
    unsolved_below: float = 0.0
    stop_above: float | None = None
    not_finite: bool = False
    too_few_groups: bool = False
    ended_by_gradient: bool = False
    share_changed: float | None = None

    @property
    def lower_lr(self) -> str:
        """A learning rate to try after a divergence."""
        return f"{self.flag}.lr {min(self.lr / 10, _SAFE_LR):.0e}"

    @property
    def more_rollouts(self) -> str:
        """A number of rollouts per problem with which more groups have both right and wrong ones."""
        return f"--loop.rollouts_per_problem {2 * self.rollouts_per_problem}"


@dataclass(frozen=True)
class Diagnosis:
    """A cause and what helps.

    Args:
        cause: a sentence with its numbers, without a full stop.
        at_resume: options that help and that a resume accepts; alternatives.
        in_new_run: options that help in a new run only; alternatives.
        last_good_step: the last training step before the cause showed; None if it was there from the start or does not
            spoil the policy. A resume from a later checkpoint repeats the failure.
    """

    cause: str
    at_resume: tuple[str, ...] = ()
    in_new_run: tuple[str, ...] = ()
    last_good_step: int | None = None
