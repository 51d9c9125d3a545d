"""What all algorithms share: their options, and how groups of rollouts become mini-batches and updates.

A new algorithm subclasses `Algorithm`, implements `advantages` and `loss`, and declares its hyper-parameters as
documented arguments of `__init__`. Everything else has a default here. Each option has its formula in its own file:
dynamic_sampling.py, overlong.py, kl_term.py, importance.py, entropy_bonus.py, aggregation.py, optimizer.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from rloop_lightning.algorithms.advantages import by_group, centred
from rloop_lightning.algorithms.dynamic_sampling import has_right_and_wrong
from rloop_lightning.algorithms.entropy_bonus import entropy_bonus
from rloop_lightning.algorithms.importance import (
    ImportanceCorrection,
    ImportanceLevel,
    ImportanceMode,
    LostWeight,
    gap_metrics,
)
from rloop_lightning.algorithms.kl_term import KLEstimator, KLTerm, kl
from rloop_lightning.algorithms.overlong import Overlong
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.algorithms.ranks import decided_by_rank_0
from rloop_lightning.algorithms.reference import ReferenceKind
from rloop_lightning.algorithms.shares import scores_no_grad
from rloop_lightning.batching import check_kept_tokens, collate
from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.unsolved import CountedOver, UnsolvedOnly
from rloop_lightning.system.fields import (
    AtLeastOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RightOpenUnitInterval,
)
from rloop_lightning.types import Group, LossOutput, Rollout, RolloutBatch, RolloutStep, SamplingParams, TokenScores


class Algorithm(PolicyModule):
    """Reinforcement learning on groups of rollouts. Subclasses implement `advantages` and `loss`.

    Args:
        updates_per_step: optimizer steps per pass over a rollout step's rollouts, each on an equal share of them.
        passes: passes over a rollout step's rollouts. All passes use the same old logprobs.
        dynamic_sampling: train only on groups with both right and wrong rollouts; sample until there are enough of
            them.
        max_generation_batches: limit of dynamic sampling per rollout step, in multiples of --loop.problems_per_step.
            --loop.on_too_few_groups decides what happens if that is not enough.
        unsolved_only: train only on groups of problems that were unsolved before the group, and sample until there are
            enough of them: problems without a success so far (BBG, arXiv 2606.15455; what is counted is ours).
        unsolved_below: with unsolved_only, a problem whose success rate so far is below this is unsolved too.
        unsolved_over: what is counted so far: the rollout steps of the `round`'s exploration, or of the whole `run`.
        mask_truncated: overlong filtering: leave rollouts truncated at the length limit out of the loss.
        overlong_buffer_tokens: soft overlong punishment: the reward falls linearly by 1 over this many tokens before
            the length limit, in groups with both right and wrong rollouts; 0 is off.
        kl_beta: weight of the KL term against the reference policy; 0 is off and keeps no reference policy.
        kl_estimator: estimator of the KL divergence at a token, with d = lp_ref - lp: `k1` -d, `k2` d^2 / 2, `k3`
            exp(d) - d - 1. k1 works in the reward only: its gradient in a loss is zero in expectation.
        kl_in: where the KL term is added: to the `loss` of each token, or to the `reward`, summed over the rollout and
            without gradient. It then changes the rollout's advantage by -kl_beta (KL - the group's mean KL).
        kl_reference: the reference policy: the policy that the `round` began with, or, with an adapter
            (--policy.lora.rank), the `base` model under it.
        kl_target: target KL divergence, nats per token: kl_beta adapts to it after each rollout step; null keeps
            kl_beta constant.
        kl_adaptation: adaptation rate: kl_beta changes by this times the relative error, clipped to +-0.2.
        reference_reset_steps: every N rollout steps, copy the policy into the reference and clear the optimizer state;
            0 never resets.
        entropy_coef: weight of the entropy bonus in each token's loss; 0 is off.
        importance_correction: truncated importance sampling: weight each token by pi_old(trainer) / pi(engine).
            `truncate` clamps weights to the cap, `mask` sets weights above the cap to 0, `none` is off. `auto` is
            `truncate` if rollouts come from older policies (--loop.staleness), else `none`.
        importance_level: one weight per `token`; or one per rollout: the product of its tokens' weights (`sequence`),
            which vanishes in long completions, or their `geometric` mean.
        importance_cap: largest weight of a token, or of a whole sequence.
    """

    pools: Sequence[Path] = ()
    """The folders of the run's pools, set by the loop. The last one is the current exploration's."""

    min_rollouts_per_problem = 2
    """The smallest group size that `advantages` accepts."""

    _lag = 0.0  # of the current rollout step

    def __init__(
        self,
        *,
        updates_per_step: PositiveInt = 1,
        passes: PositiveInt = 1,
        dynamic_sampling: bool = False,
        max_generation_batches: PositiveInt = 10,
        unsolved_only: bool = False,
        unsolved_below: RightOpenUnitInterval = 0.0,
        unsolved_over: CountedOver = "round",
        mask_truncated: bool = False,
        overlong_buffer_tokens: NonNegativeInt = 0,
        kl_beta: NonNegativeFloat = 0.0,
        kl_estimator: KLEstimator = "k3",
        kl_in: Literal["loss", "reward"] = "loss",
        kl_reference: ReferenceKind = "round",
        kl_target: PositiveFloat | None = None,
        kl_adaptation: PositiveFloat = 0.1,
        reference_reset_steps: NonNegativeInt = 0,
        entropy_coef: NonNegativeFloat = 0.0,
        importance_correction: ImportanceMode = "auto",
        importance_level: ImportanceLevel = "token",
        importance_cap: AtLeastOne = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.updates_per_step = updates_per_step
        self.passes = passes
        self.dynamic_sampling = dynamic_sampling
        self.max_generation_batches = max_generation_batches
        self.unsolved = UnsolvedOnly(unsolved_only, unsolved_below, unsolved_over)
        self.overlong = Overlong(mask_truncated, overlong_buffer_tokens)
        self.kl = KLTerm(
            beta=kl_beta,
            estimator=kl_estimator,
            place=kl_in,
            target=kl_target,
            adaptation=kl_adaptation,
            reset_steps=reference_reset_steps,
            kind=kl_reference,
        )
        self.entropy_coef = entropy_coef
        self._lost_weight = LostWeight()
        self.importance = ImportanceCorrection(importance_correction, importance_level, importance_cap)
        for fault in (*self.unsolved.faults(), *self.kl.faults(self.flag)):
            self.refuse(*fault)

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Rewards [P, G] to advantages [P, G]."""

    def shaping_advantages(self, shaping: Tensor) -> Tensor:
        """What shaping [P, G] adds to the advantages [P, G]: its difference from the group's mean, never normalised.

        Only a KL term in the reward is such shaping.
        """
        return centred(shaping)

    def configure_model(self) -> None:
        """Set the reference. The policy is the round's initial one here, also on resume: checkpoints load later."""
        super().configure_model()
        self.kl.begin(self.policy)

    def expect_lag(self, staleness: int) -> None:
        """Prepare for rollouts of policies that are up to `staleness` rollout steps older."""
        if staleness:
            self.importance = self.importance.expecting_lag()

    def keep_group(self, group: Group) -> bool:
        """Whether to train on a group. The rollout step samples until it has kept enough groups."""
        return not self.dynamic_sampling or has_right_and_wrong(group)

    def validate(self, sampling: SamplingParams) -> list[str]:
        """Conflicts with the sampling settings, one message each."""
        wrong = list(filter(None, [self.overlong.conflict(sampling)]))
        if self.trains_on_stored and sampling.truncates:
            wrong.append(
                f"--engine.top_k {sampling.top_k}, --engine.top_p {sampling.top_p:g}: the stored rollouts of "
                f"{type(self).__name__} have no record of the tokens that top-k and top-p kept, so their ratios would "
                "be biased; set --engine.top_k 0 and --engine.top_p 1, or take another --algo"
            )
        return wrong

    def conflicts(self, policy: Policy, prompt_lengths: Sequence[tuple[str, int]]) -> Iterator[str]:
        """Conflicts with the base policy and the training problems (id, tokens of the prompt), one message each."""
        if fault := self.kl.conflict(policy, self.flag):
            yield fault

    def rewards(self, groups: Sequence[Group], sampling: SamplingParams) -> Tensor:
        """The rewards [B] for the advantages, group by group. The pool stores rewards without this shaping."""
        rewards = [rollout.reward for group in groups for rollout in group.rollouts]
        punishment = self.overlong.punishment(groups, sampling.max_new_tokens)
        return torch.tensor(rewards, dtype=torch.float64) + punishment

    def in_loss(self, rollout: Rollout) -> bool:
        """Whether a rollout's tokens are loss tokens."""
        return self.overlong.in_loss(rollout)

    @property
    def trains_on_stored(self) -> bool:
        """Whether `replayed` adds rollouts from a pool. A pool stores neither routed experts nor kept tokens."""
        return False

    def replayed(self, groups: Sequence[Group], sampling: SamplingParams) -> Sequence[Group]:
        """The groups to train on in a step: the generated ones, and those replayed with them."""
        return groups

    def make_batch(self, groups: Sequence[Group], sampling: SamplingParams) -> RolloutBatch:
        """The batch of a rollout step: one row per rollout, group by group.

        Raises:
            RunFault: tokens were sampled by top-k or top-p, and a rollout does not say from which.
        """
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        check_kept_tokens(rollouts, sampling)
        numbers = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group.rollouts) for group in groups]))
        batch = collate(
            rollouts,
            by_group(self.advantages, self.rewards(groups, sampling), numbers).numpy(),
            in_loss=[self.in_loss(rollout) for rollout in rollouts],
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
        )
        return replace(batch, groups=numbers)

    def prepare(self, batch: RolloutBatch) -> RolloutBatch:
        """Prepare the batch of a rollout step for its updates. Called before the first update.

        A KL term in the reward changes the advantages by -beta (KL - the group's mean KL), after the task's rewards are
        normalised. In a normalised reward, beta cancels where task rewards are equal, so that noise in the KL would
        train at full strength.
        """
        if not self.kl.in_the("reward"):
            return batch
        batch, logprobs = self._scored(batch)
        assert batch.groups is not None
        estimate = self.kl.estimate_over_ranks(logprobs, batch) * batch.completion_mask
        self.record({"policy/kl_nats": estimate.sum().double() / batch.completion_mask.sum()})
        shaping = by_group(self.shaping_advantages, -self.kl.beta * estimate.sum(1).double(), batch.groups)
        return replace(batch, advantages=batch.advantages + shaping)

    def training_step(self, step: RolloutStep, batch_idx: int) -> None:
        """All optimizer steps of one rollout step. Stops early when a callback ends the phase."""
        started = perf_counter()
        updates = []
        self._lag = step.lag
        generated = step.batch if self.policy.routing is None else self.policy.routing.admitted(step.batch)
        for batch in self._mini_batches(self.prepare(generated)):
            updates.append(self.update(batch))
            if decided_by_rank_0(self.trainer.should_stop):
                break
        self._optimizer().zero_grad()  # frees memory for the generation that follows
        self._record_updates(updates)
        self.record({**step.metrics, "time/update_s": perf_counter() - started})
        self._lost_weight.warn(self.step_metrics, self.importance.level, step.index)
        self._step_schedule()
        self.record(self.kl.adapt(self.step_metrics))
        if self.kl.reset_if_due(step.index):
            self._optimizer().state.clear()

    def scores(self, batch: RolloutBatch) -> TokenScores:
        return self.policy.logprobs(batch, entropy_gradient=self.entropy_coef > 0)

    def micro_batch_loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """`loss` with all options applied.

        Its metrics include the gap between sampling and old logprobs, and how far the updates of the rollout step have
        moved the policy: KL(old policy || policy), estimated on its tokens; 0 on replayed rows, which have another old
        policy.
        """
        if batch.old_logprobs is None:  # no update yet: the policy is the old policy
            batch = replace(batch, old_logprobs=batch.recorded_or(scores.logprobs.detach()))
        output = self.importance.apply(self.loss(scores, batch), batch)
        output = self.kl.add_to(output, scores, batch)
        bonus = entropy_bonus(scores.entropy, self.entropy_coef) if self.entropy_coef > 0 else 0.0
        assert batch.old_logprobs is not None
        gap = gap_metrics(batch.sampling_logprobs, batch.old_logprobs, lag=self._lag)
        moved = kl(batch.old_logprobs, scores.logprobs.detach(), "k3").masked_fill(batch.replayed[:, None], 0.0)
        return LossOutput(output.loss + bonus, {**output.metrics, **gap, "policy/update_kl_nats": moved})

    def _mini_batches(self, batch: RolloutBatch) -> Iterator[RolloutBatch]:
        """Equal shares of the rows, once per pass, with their old logprobs.

        The first share of a single pass needs no old logprobs: until its optimizer step, the policy is the old policy.
        """
        rows = torch.arange(len(batch), device=batch.loss_mask.device).tensor_split(self.updates_per_step)
        shares = [batch.select(share) for share in rows if len(share)]
        first = 1 if self.passes == 1 else 0
        shares[first:] = [self._scored(share)[0] for share in shares[first:]]
        for _ in range(self.passes):
            yield from shares

    def _scored(self, batch: RolloutBatch) -> tuple[RolloutBatch, Tensor]:
        """The batch with old logprobs, and the policy's logprobs [B, T], which are others for replayed rows.

        Call it before the first update, while the policy is the old policy.
        """
        if batch.old_logprobs is not None:
            return batch, batch.old_logprobs
        old = scores_no_grad(self.policy, batch)
        if self.policy.routing is not None and old.routed_experts is not None:
            batch = self.policy.routing.recorded(batch, old.routed_experts)
        return replace(batch, old_logprobs=batch.recorded_or(old.logprobs)), old.logprobs
