"""The interface of rollout engines: problems in, sampled completions with their logprobs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rloop_lightning.engines.stops import stop_faults
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.fields import (
    LeftOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    check_fields,
)
from rloop_lightning.system.ranks import ALONE, Ranks
from rloop_lightning.types import Problem, Rollout, SamplingParams

LONGEST_DEFAULT_COMPLETION = 2048  # tokens


def default_completion_limit(context_tokens: int, longest_prompt: int) -> int:
    """The completion length limit that --engine.max_new_tokens null means, tokens; below 1 if a prompt has no room.

    It is what the longest prompt leaves of the policy's context, in multiples of 16, and at most
    `LONGEST_DEFAULT_COMPLETION`.
    """
    room = context_tokens - longest_prompt
    return min(LONGEST_DEFAULT_COMPLETION, room - room % 16 if room >= 16 else room)


class RolloutEngine(ABC):
    """Generates rollouts with a policy's current weights, and stores the sampling settings of exploration.

    Args:
        max_new_tokens: completion length limit, tokens; null takes what the longest prompt leaves of the policy's
            context, at most 2,048.
        temperature: sampling temperature of exploration; 0 is greedy.
        top_k: sample from the k most likely tokens; 0 is off.
        top_p: sample from the most likely tokens whose probabilities reach this sum; 1 is off.
        stop: texts that end a completion, such as ["</answer>", "\\n\\nProblem:"]; it includes the token that completes
            the text. The name of a special token, such as <|im_end|>, stands for that token. Completions end at the
            model's EOS tokens and at the end of a turn in its chat template in any case.
    """

    def __init__(
        self,
        *,
        max_new_tokens: PositiveInt | None = None,
        temperature: NonNegativeFloat = 1.0,
        top_k: NonNegativeInt = 0,
        top_p: LeftOpenUnitInterval = 1.0,
        stop: tuple[str, ...] = (),
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.stop = stop
        check_fields(self, "--engine")
        if not _are_texts(stop):
            raise ValueError(f"--engine.stop: expected a list of texts, none of them empty, got {stop!r}")

    def sampling(self, seed: int) -> SamplingParams:
        """The engine's sampling settings with a seed.

        Raises:
            RuntimeError: `max_new_tokens` is None. A run sets it once it knows the policy and the prompts.
        """
        if self.max_new_tokens is None:
            raise RuntimeError(f"{type(self).__name__}: max_new_tokens is not set; give it a number")
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
            stop=tuple(self.stop),
        )

    reports_routed_experts = False
    """Whether the engine can report `Rollout.routed_experts`, which routing replay R3 needs."""

    reports_kept_tokens = False
    """Whether rollouts carry the tokens that top-k and top-p kept. An engine that does not is refused with either."""

    works_beside_updates = False
    """Whether `generate` may be called in a thread while the policy is updated: the engine has weights of its own."""

    takes_updates_in_flight = False
    """Whether `sync` may be called while `generate` runs in a thread: its completions go on with the new weights."""

    ranks: Ranks = ALONE
    """The ranks among which the policy may be sharded, if this engine serves all of them. Set by whoever has them."""

    updates_in_flight = False
    """Set by whoever calls `sync` while `generate` runs. Its rollouts then carry the `versions` of their tokens."""

    sync_metrics: Mapping[str, float] = MappingProxyType({})
    """Measured when the engine last got new weights, for the metrics of rollout steps."""

    version = 0
    """Number of the weights that the engine has, which `Rollout.versions` refers to."""

    longest_rollout: int | None = None
    """Tokens of the longest prompt and completion that will be requested, if whoever binds the policy knows it. An
    engine that starts late can then do so in `sync`, so that `generate` never reads the policy's weights."""

    on_progress: Callable[[int, int], None] | None = None
    """Called during `generate`, in its thread, with the numbers of tokens and of complete rollouts since the last call,
    for progress bars. An engine that can't tell before the end need not call it."""

    def report(self, tokens: int, rollouts: int) -> None:
        """Report progress to whoever follows it."""
        if self.on_progress is not None:
            self.on_progress(tokens, rollouts)

    def validate_with(self, policy: Policy) -> list[str]:
        """Conflicts of the settings with this policy, one message each, naming the flag and the fix."""
        return list(stop_faults(self.stop, policy.tokenizer))

    def beside_faults(self) -> list[str]:
        """Settings that contradict generation beside the updates, one message each."""
        return []

    @property
    def one_per_rank(self) -> bool:
        """Whether each process of a job has an engine of its own. Otherwise the engine of the first serves all."""
        return True

    @abstractmethod
    def bind(self, policy: Policy) -> None:
        """Generate with this policy from now on."""

    @abstractmethod
    def sync(self) -> None:
        """Update the engine to the policy's current weights. Call it after every change of the weights."""

    @abstractmethod
    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        """n rollouts of each problem, problem-major: rollout g of problem p is element p * n + g.

        Each token's logprob is under the distribution it was sampled from, after temperature, top-k and top-p. With
        top-k or top-p, rollouts carry the tokens that were kept, unless `sampling` does not ask for them. The same
        seed, weights and engine give the same rollouts.
        """

    def cancel(self) -> None:  # noqa: B027 -- most engines generate in the thread that would call it
        """Make a `generate` that runs in another thread raise soon. Later ones are not affected."""

    def close(self) -> None:  # noqa: B027 -- most engines hold nothing
        """Free what the engine holds outside of this process. It can be used again."""

    def generate_parts(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, done: int = 0
    ) -> Iterator[list[Rollout]]:
        """The rollouts of `generate`, bit for bit, in parts of whole problems, as soon as each part is there.

        An evaluation writes each part, so that a resume repeats one part only. By default there is a single part.

        Args:
            problems, n, sampling: as `generate`.
            done: leave out the first `done` problems, which parts of an earlier call contained.

        Raises:
            As `generate`.
        """
        yield self.generate(problems, n, sampling)[done * n :]

    def generate_share(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, first: int
    ) -> list[Rollout]:
        """The rollouts of `generate` from problem `first` on, for a process that generates its share of a request.

        A rollout is the one of `generate`, apart from the rounding of other batch shapes.

        Raises:
            As `generate`.
        """
        return [rollout for part in self.generate_parts(problems, n, sampling, first) for rollout in part]


def _are_texts(stop: Any) -> bool:
    return isinstance(stop, list | tuple) and all(isinstance(text, str) and text for text in stop)
