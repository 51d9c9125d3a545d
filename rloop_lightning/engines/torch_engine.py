"""Rollouts from the policy's own model in this process: any Hugging Face causal LM with a KV cache, on CPU or GPU.

    engine = TorchEngine(max_new_tokens=64)
    engine.bind(policy)
    rollouts = engine.generate(problems, n=8, sampling=engine.sampling(seed=0))

Rows (one row = one rollout) are decoded together, at most `max_rows` at once:

    prefill     computes each prompt once, then copies its keys and values to its rows
    decode      computes one token per row and forward pass; rows that wait enter in the place of ended ones
    collect     makes one transfer to the host and one tokenizer call

decoding.py runs the batch, rows.py computes the logits, sampling.py samples from them, stops.py finds the ends. The
only device sync per token is counting unfinished rows; with stop strings, another one finds the rows that may have
completed one, and with top-k or top-p, another one collects the tokens that these kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.engines.decoding import Completions, Decoding, check_finite
from rloop_lightning.engines.products import products_in
from rloop_lightning.engines.prompts import check_prompts
from rloop_lightning.engines.rows import can_replace, most_prompts
from rloop_lightning.engines.stops import Stops
from rloop_lightning.engines.trial import trial_fault
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import gather_weights, is_sharded, whole_copy
from rloop_lightning.system.fields import LeftOpenUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt
from rloop_lightning.types import Problem, Rollout, SamplingParams

# A part of a request is as many rollouts as this many batches. An evaluation that is interrupted repeats one part, and
# the batch runs empty at the end of each. On a CPU, a part is a batch: the time of a step follows its live rows, and
# where all rows have the same age, attention computes no column that a row does not see.
BATCHES_PER_PART = {"cpu": 1, "cuda": 4}


class TorchEngine(RolloutEngine):
    """Generates with the policy's own model, so no weights need to be transferred. A sharded one is copied whole.

    Args:
        max_new_tokens: completion length limit, tokens; null takes what the longest prompt leaves of the policy's
            context, at most 2,048.
        temperature: sampling temperature of exploration; 0 is greedy.
        top_k: sample from the k most likely tokens; 0 is off.
        top_p: sample from the most likely tokens whose probabilities reach this sum; 1 is off.
        stop: texts that end a completion, such as ["</answer>", "\\n\\nProblem:"]; it includes the token that completes
            the text. The name of a special token, such as <|im_end|>, stands for that token. Completions end at the
            model's EOS tokens and at the end of a turn in its chat template in any case.
        max_rows: rollouts decoded at once; others enter as these end. Bounds memory: each needs 2 * layers * kv_heads *
            head_dim numbers of KV cache per token of the longest one's prompt and completion, plus up to half of that
            in reserve. `auto` takes the figure of the memory plan (rloop-fit --plan).
        dtype: dtype of the products and the KV cache; `auto` is that of the policy's updates: bfloat16 under
            --trainer.precision bf16-mixed, else that of the weights. If it differs from the weights' dtype, a cast copy
            of them exists during generation. With bfloat16, sampling logprobs differ from those of a float32 update by
            hundredths of a nat, and by tenths where logits are large (policy/engine_gap_nats_max).
    """

    def __init__(
        self,
        *,
        max_new_tokens: PositiveInt | None = None,
        temperature: NonNegativeFloat = 1.0,
        top_k: NonNegativeInt = 0,
        top_p: LeftOpenUnitInterval = 1.0,
        stop: tuple[str, ...] = (),
        max_rows: PositiveInt | Literal["auto"] = 512,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        self.max_rows = max_rows
        self.dtype = dtype
        super().__init__(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop)
        self._bound: Policy | None = None
        self._policy: Policy | None = None  # that generates: the bound one, or a whole copy of a sharded one
        self._stops: dict[tuple[str, ...], Stops] = {}  # of the bound policy, by its stop strings

    reports_routed_experts = True
    reports_kept_tokens = True

    def validate_with(self, policy: Policy) -> list[str]:
        """Conflicts with this policy, such as a model that can't be decoded row by row."""
        flash_on_cpu = "flash" in (policy.model.config._attn_implementation or "") and policy.device.type == "cpu"
        fault = None if flash_on_cpu else trial_fault(policy)  # flash attention runs only on a GPU
        return [*super().validate_with(policy), *([] if fault is None else [fault])]

    def bind(self, policy: Policy) -> None:
        """Generate with this policy from now on."""
        self._bound = self._policy = policy
        self._stops.clear()

    def sync(self) -> None:
        """Gather the weights of a sharded policy into a whole copy; all ranks call it.

        Of any other policy, the engine uses the tensors that the optimizer updates.
        """
        if self._bound is None or not is_sharded(self._bound):
            return
        is_new = self._policy is self._bound
        if is_new:
            self._policy = whole_copy(self._bound)
        assert self._policy is not None
        gather_weights(self._bound, self._policy, trained_only=not is_new)

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        """n rollouts of each problem, problem-major: rollout g of problem p is element p * n + g.

        A rollout depends on its place in the request and on the seed. It does not depend on `max_rows`, apart from the
        rounding of different batch shapes. The global random state is neither read nor changed.

        Raises:
            RuntimeError: no policy is bound, or a sharded one was not gathered by `sync`.
            ValueError: a prompt is empty, or does not fit the model together with `max_new_tokens`.
            TypeError: the model has no KV cache.
            NonFiniteError: logits are NaN or infinite.
        """
        return [rollout for part in self.generate_parts(problems, n, sampling) for rollout in part]

    def generate_parts(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, done: int = 0
    ) -> Iterator[list[Rollout]]:
        """The rollouts of `generate`, a few batches at a time, or a problem at a time if n exceeds that."""
        yield from self._parts_of(problems, n, sampling, done)

    def generate_share(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, first: int
    ) -> list[Rollout]:
        """The rollouts of `generate` from problem `first` on."""
        parts = self._parts_of(problems[first:], n, sampling, rows_before=first * n)
        return [rollout for part in parts for rollout in part]

    def _parts_of(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, done: int = 0, rows_before: int = 0
    ) -> Iterator[list[Rollout]]:
        """As `generate_parts`.

        Args:
            rows_before: rows of the request that another process decodes; their random numbers are drawn first.
        """
        if self._policy is None:
            raise RuntimeError("TorchEngine.generate needs a policy; call bind(policy) first")
        policy = self._policy
        if is_sharded(policy):
            raise RuntimeError("TorchEngine.generate can't use a sharded policy; call sync() first, on all ranks")
        prompts = [policy.prompt_ids(problem) for problem in problems]
        check_prompts(problems, prompts, sampling, policy.context)
        prompt_ids = [np.array(prompt, dtype=np.int64) for prompt in prompts]
        dtype, stops = self._compute_dtype(policy), self._stops_of(policy, sampling.stop).to(policy.device)
        generator = torch.Generator().manual_seed(sampling.seed)
        for _ in range(rows_before):
            torch.rand(sampling.max_new_tokens, generator=generator)
        rollouts: list[Rollout] = []
        batch_rows, part_rows = _rows_at_once(policy, prompts, n, self.max_rows)
        for start, end in _parts(len(problems), n, part_rows):
            # Drawn on the CPU, row by row, so that a row's numbers depend neither on the parts nor on the device.
            drawn = torch.rand(end - start, sampling.max_new_tokens, generator=generator)
            if end <= done * n:
                continue
            first, last = start // n, (end - 1) // n
            sources = [(problems[row // n], prompt_ids[row // n]) for row in range(start, end)]
            # Not around the yield: whoever takes a part would compute in them, and PyTorch would leave autocast there.
            with torch.inference_mode(), products_in(policy.model, dtype):
                decoding = Decoding(
                    policy,
                    prompts[first : last + 1],
                    torch.arange(start, end) // n - first,
                    drawn.to(policy.device),
                    sampling,
                    stops,
                    dtype=dtype,
                    batch_rows=batch_rows,
                )
                rollouts += _collect(policy, sources, decoding.run(self.report))
            if end % n == 0:
                yield rollouts[max(0, done * n - start) :]
                rollouts = []

    def _stops_of(self, policy: Policy, stop: tuple[str, ...]) -> Stops:
        if stop not in self._stops:
            self._stops[stop] = Stops(policy, stop)
        return self._stops[stop]

    def _compute_dtype(self, policy: Policy) -> torch.dtype:
        return policy.compute_dtype if self.dtype == "auto" else getattr(torch, self.dtype)


def _rows_at_once(policy: Policy, prompts: list[list[int]], n: int, max_rows: int | Literal["auto"]) -> tuple[int, int]:
    """Rows of a batch, and of a part of the request. A batch whose rows can't be replaced is a part."""
    if max_rows == "auto":
        raise RuntimeError("TorchEngine: max_rows is auto, which a run replaces by a figure; give it a number")
    if can_replace(policy):
        return max_rows, BATCHES_PER_PART.get(policy.device.type, 1) * max_rows
    rows = min(max_rows, n * most_prompts(prompts))
    return rows, rows


def _parts(problems: int, n: int, part_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges [start, end) of rows: as many whole problems each as fit, or a problem in several if none fits."""
    if n <= part_rows:
        count = -(-problems // (part_rows // n))
        borders = [n * (problems * part // count) for part in range(count + 1)] if problems else []
    else:
        borders = [first + start for first in range(0, problems * n, n) for start in range(0, n, part_rows)]
        borders.append(problems * n)
    yield from pairwise(borders)


def _collect(policy: Policy, sources: list[tuple[Problem, np.ndarray]], completions: Completions) -> list[Rollout]:
    """The rollouts of R problems and prompts, each truncated after its first end."""
    tokens, logprobs, ends, routed_experts, kept_tokens = completions
    stopped = ends.any(-1)
    lengths = torch.where(stopped, ends.int().argmax(-1) + 1, tokens.shape[1]).tolist()
    # Copies, so that a stored rollout does not keep its whole part in memory.
    completion_ids = [row[:length].copy() for row, length in zip(tokens.cpu().numpy(), lengths, strict=True)]
    sampling_logprobs = [row[:length].copy() for row, length in zip(logprobs.cpu().numpy(), lengths, strict=True)]
    check_finite(torch.tensor([float(row.sum()) for row in sampling_logprobs]))
    experts = [None] * len(lengths) if routed_experts is None else routed_experts.of_rows(lengths)
    kept = [(None, None)] * len(lengths) if kept_tokens is None else kept_tokens.of_rows(lengths)
    texts = policy.decode([row.tolist() for row in completion_ids])
    return [
        Rollout(
            problem_id=problem.id,
            prompt_ids=prompt_ids,
            completion_ids=row_ids,
            sampling_logprobs=row_logprobs,
            text=text,
            finish_reason="stop" if stop else "length",
            routed_experts=row_experts,
            kept_tokens=row_kept[0],
            kept_counts=row_kept[1],
        )
        for (problem, prompt_ids), row_ids, row_logprobs, text, stop, row_experts, row_kept in zip(
            sources, completion_ids, sampling_logprobs, texts, stopped.tolist(), experts, kept, strict=True
        )
    ]
