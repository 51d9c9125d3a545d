"""Rollouts from the policy's own model in this process: any Hugging Face causal LM with a KV cache, on CPU or GPU.

    engine = TorchEngine(max_new_tokens=64)
    engine.bind(policy)
    rollouts = engine.generate(problems, n=8, sampling=engine.sampling(seed=0))

Rows (one row = one rollout) are decoded together in waves of at most `max_rows`:

    prefill     computes each prompt once, then copies its keys and values to its rows
    decode      computes one token per row and forward pass; drops finished rows once that is cheaper than computing
                them
    collect     makes one transfer to the host and one tokenizer call

rows.py computes the logits, sampling.py samples from them, stops.py finds the ends. The only device sync per token is
counting unfinished rows; with stop strings, a second one finds the rows that may have completed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.engines.kept_tokens import KeptTokensRecord
from rloop_lightning.engines.products import products_in
from rloop_lightning.engines.routed_experts import RoutedExpertsRecord
from rloop_lightning.engines.rows import Rows, rows_at_once
from rloop_lightning.engines.sampling import sample_tokens
from rloop_lightning.engines.stops import Stops
from rloop_lightning.engines.trial import trial_fault
from rloop_lightning.errors import NonFiniteError
from rloop_lightning.model.context import Context
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.shapes import rounded_up
from rloop_lightning.system.fields import LeftOpenUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt
from rloop_lightning.types import Problem, Rollout, SamplingParams

# Finished rows are dropped once a quarter of the batch is idle. A compaction copies the live rows' cache, about as much
# as one decode step reads. At this threshold, all compactions of a wave copy three times the first cache in total.
_COMPACT_BELOW = 0.75


class TorchEngine(RolloutEngine):
    """Generates with the policy's own model, so no weights need to be transferred.

    Args:
        max_new_tokens: completion length limit, tokens; null takes what the longest prompt leaves of the policy's
            context, at most 2,048.
        temperature: sampling temperature of exploration; 0 is greedy.
        top_k: sample from the k most likely tokens; 0 is off.
        top_p: sample from the most likely tokens whose probabilities reach this sum; 1 is off.
        stop: texts that end a completion, such as ["</answer>", "\\n\\nProblem:"]; it includes the token that completes
            the text. The name of a special token, such as <|im_end|>, stands for that token. Completions end at the
            model's EOS tokens and at the end of a turn in its chat template in any case.
        max_rows: rollouts decoded at once. Bounds memory: each needs 2 * layers * kv_heads * head_dim numbers of KV
            cache per token of prompt and completion, plus up to half of that in reserve. `auto` takes the figure of the
            memory plan (rloop-fit --plan).
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
        self._policy: Policy | None = None
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
        self._policy = policy
        self._stops.clear()

    def sync(self) -> None:
        """Nothing to do: the engine uses the tensors that the optimizer updates."""

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        """n rollouts of each problem, problem-major: rollout g of problem p is element p * n + g.

        A rollout depends on its place in the request and on the seed. It does not depend on `max_rows`, apart from the
        rounding of different batch shapes. The global random state is neither read nor changed.

        Raises:
            RuntimeError: no policy is bound.
            ValueError: a prompt is empty, or does not fit the model together with `max_new_tokens`.
            TypeError: the model has no KV cache.
            NonFiniteError: logits are NaN or infinite.
        """
        return [rollout for part in self.generate_parts(problems, n, sampling) for rollout in part]

    @torch.inference_mode()
    def generate_parts(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, done: int = 0
    ) -> Iterator[list[Rollout]]:
        """The rollouts of `generate`, a wave at a time, or a problem at a time if n exceeds `max_rows`."""
        if self._policy is None:
            raise RuntimeError("TorchEngine.generate needs a policy; call bind(policy) first")
        policy = self._policy
        prompts = [policy.prompt_ids(problem) for problem in problems]
        _check_prompts(problems, prompts, sampling, policy.context)
        prompt_ids = [np.array(prompt, dtype=np.int64) for prompt in prompts]
        dtype, stops = self._compute_dtype(policy), self._stops_of(policy, sampling.stop).to(policy.device)
        generator = torch.Generator().manual_seed(sampling.seed)
        rollouts: list[Rollout] = []
        with products_in(policy.model, dtype):
            for start, end in _waves(len(problems), n, rows_at_once(policy, prompts, n, self.max_rows)):
                # Drawn on the CPU, row by row, so that a row's numbers depend neither on the waves nor on the device.
                drawn = torch.rand(end - start, sampling.max_new_tokens, generator=generator)
                if end <= done * n:
                    continue
                uniforms = drawn.to(policy.device)
                first, last = start // n, (end - 1) // n
                prompt_of_row = torch.arange(start, end, device=policy.device) // n - first
                wave = _decode(
                    policy, prompts[first : last + 1], prompt_of_row, uniforms, sampling, stops, dtype, self.report
                )
                sources = [(problems[row // n], prompt_ids[row // n]) for row in range(start, end)]
                rollouts += _collect(policy, sources, prompt_of_row, *wave)
                if end % n == 0:
                    yield rollouts[max(0, done * n - start) :]
                    rollouts = []

    def _stops_of(self, policy: Policy, stop: tuple[str, ...]) -> Stops:
        if stop not in self._stops:
            self._stops[stop] = Stops(policy, stop)
        return self._stops[stop]

    def _compute_dtype(self, policy: Policy) -> torch.dtype:
        return policy.compute_dtype if self.dtype == "auto" else getattr(torch, self.dtype)


def _check_prompts(
    problems: Sequence[Problem], prompts: list[list[int]], sampling: SamplingParams, context: Context
) -> None:
    """Raise one ValueError that names every prompt the model can't take."""
    errors = []
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            errors.append(f"problem {problem.id!r}: the prompt has no tokens")
        elif len(prompt) + sampling.max_new_tokens > context.tokens:
            errors.append(
                f"problem {problem.id!r}: prompt of {len(prompt)} tokens + max_new_tokens {sampling.max_new_tokens} "
                f"exceeds the model's {context}; lower --engine.max_new_tokens or drop the problem"
            )
    if errors:
        raise ValueError("\n".join(errors))


def _waves(problems: int, n: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges [start, end) of rows to decode together: whole problems, or parts of one if n exceeds `max_rows`."""
    if n <= max_rows:
        step = max_rows // n * n
        yield from ((start, min(start + step, problems * n)) for start in range(0, problems * n, step))
    else:
        for first in range(0, problems * n, n):
            yield from ((start, min(start + max_rows, first + n)) for start in range(first, first + n, max_rows))


def _decode(
    policy: Policy,
    prompts: list[list[int]],
    prompt_of_row: Tensor,
    uniforms: Tensor,
    sampling: SamplingParams,
    stops: Stops,
    dtype: torch.dtype,
    report: Callable[[int, int], None],
) -> tuple[Tensor, Tensor, Tensor, RoutedExpertsRecord | None, KeptTokensRecord | None]:
    """Sample a completion for every row of a wave.

    Args:
        prompts: P token lists.
        prompt_of_row: [R] int64, the prompt each row continues.
        uniforms: [R, T] in [0, 1), one number per token.
        report: called after each token with the numbers of tokens and of complete rows since the last call.

    Returns:
        Tokens [R, T] int64, their logprobs [R, T] float32, and whether each ends its row [R, T] bool. Values after a
        row's first end are meaningless. Under R3, also the routed experts of all tokens, else None. With top-k or
        top-p, also the tokens that they kept, else None.
    """
    device = policy.device
    tokens = torch.zeros(uniforms.shape, dtype=torch.int64, device=device)
    logprobs = torch.zeros(uniforms.shape, device=device)
    ends = torch.zeros(uniforms.shape, dtype=torch.bool, device=device)
    rows = torch.arange(len(prompt_of_row), device=device)  # [B], the rows in the batch ...
    live = torch.ones_like(rows, dtype=torch.bool)  # [B], ... and whether each is unfinished

    report_routed_experts = sampling.report_routed_experts and policy.wants_routed_experts
    batch = Rows(policy, prompts, sampling.max_new_tokens, dtype, report_routed_experts=report_routed_experts)
    record = (
        None
        if batch.routed_experts is None
        else RoutedExpertsRecord([len(prompt) for prompt in prompts], batch.routed_experts)
    )
    kept_record = KeptTokensRecord() if sampling.truncates and sampling.report_kept_tokens else None
    batch.select(prompt_of_row)
    before = len(rows)  # unfinished rows
    for step in range(sampling.max_new_tokens):
        token, logprob, kept_tokens = sample_tokens(batch.logits, uniforms[rows, step], sampling)  # [B], [B]
        tokens[rows, step], logprobs[rows, step] = token, logprob
        if step == 0:
            _check_finite(logprob)
        ends[rows, step] = ended = stops.ended(tokens, rows, step, live)
        if kept_record is not None and kept_tokens is not None:
            kept_record.add(rows, kept_tokens)
        live &= ~ended
        live_count = int(live.sum())
        is_last = live_count == 0 or step + 1 == sampling.max_new_tokens
        report(before, before if is_last else before - live_count)
        before = live_count
        if is_last:
            break
        if live_count <= _COMPACT_BELOW * len(live):
            kept = live.sort(descending=True, stable=True).indices[
                : rounded_up(live_count, device)
            ]  # rounding keeps a few finished rows
            batch.select(kept)
            rows, live, token = rows[kept], live[kept], token[kept]
        batch.append(token)
        if record is not None and batch.routed_experts is not None:
            record.add(rows, batch.routed_experts)
    return tokens, logprobs, ends, record, kept_record


def _check_finite(logprobs: Tensor) -> None:
    """Raise NonFiniteError if a sampled token's logprob [R] is not finite, which only NaN or infinite logits cause."""
    if bad := int((~logprobs.isfinite()).sum()):
        raise NonFiniteError(f"the policy's logits are NaN or infinite, in {bad} of {len(logprobs)} rollouts")


def _collect(
    policy: Policy,
    sources: list[tuple[Problem, np.ndarray]],
    prompt_of_row: Tensor,
    tokens: Tensor,
    logprobs: Tensor,
    ends: Tensor,
    record: RoutedExpertsRecord | None,
    kept_record: KeptTokensRecord | None,
) -> list[Rollout]:
    """The rollouts of a wave, each truncated after its first end.

    Args:
        sources: R problems and prompts.
        prompt_of_row: [R] int64, the prompt each row continues.
        tokens, logprobs, ends, record, kept_record: as `_decode` returns them.
    """
    stopped = ends.any(-1)
    lengths = torch.where(stopped, ends.int().argmax(-1) + 1, tokens.shape[1]).tolist()
    # Copies, so that a stored rollout does not keep its whole wave in memory.
    completions = [row[:length].copy() for row, length in zip(tokens.cpu().numpy(), lengths, strict=True)]
    sampling_logprobs = [row[:length].copy() for row, length in zip(logprobs.cpu().numpy(), lengths, strict=True)]
    _check_finite(torch.tensor([float(row.sum()) for row in sampling_logprobs]))
    experts = [None] * len(lengths) if record is None else record.of_rows(prompt_of_row.tolist(), lengths)
    kept = [(None, None)] * len(lengths) if kept_record is None else kept_record.of_rows(lengths)
    texts = policy.decode([completion.tolist() for completion in completions])
    return [
        Rollout(
            problem_id=problem.id,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            sampling_logprobs=row_logprobs,
            text=text,
            finish_reason="stop" if stop else "length",
            routed_experts=row_experts,
            kept_tokens=row_kept[0],
            kept_counts=row_kept[1],
        )
        for (problem, prompt_ids), completion_ids, row_logprobs, text, stop, row_experts, row_kept in zip(
            sources, completions, sampling_logprobs, texts, stopped.tolist(), experts, kept, strict=True
        )
    ]
