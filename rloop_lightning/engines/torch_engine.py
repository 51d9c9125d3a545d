"""Rollouts from the policy's own weights, in this process: any Hugging Face causal LM with a KV cache, CPU or GPU.

    engine = TorchEngine(max_new_tokens=64)
    engine.bind(policy)
    rollouts = engine.generate(problems, n=8, sampling=engine.sampling(seed=0))

Rows (one row = one rollout) are decoded together in waves of at most `max_rows`:

    prefill     each problem's prompt goes through the model once; its keys and values are then copied to its rows
    decode      one token for every row per forward pass; rows that finished leave the batch as soon as copying the
                others together is cheaper than computing them on
    collect     one transfer to the host, one call of the tokenizer

`row_cache` holds keys and values without the copy per token that Hugging Face's own cache makes; `sample_tokens` draws
from the logits. What waits for the device is one count of the unfinished rows per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.engines.row_cache import row_cache
from rloop_lightning.policy import Policy
from rloop_lightning.types import Problem, Rollout, SamplingParams

# Finished rows stay until a quarter of the batch is idle. A compaction copies the live rows' cache, about what one
# decode step reads; at this threshold all the compactions of a wave together copy three times the first cache.
_COMPACT_BELOW = 0.75


class TorchEngine(RolloutEngine):
    """Generates with the policy's own model, so that no weights are ever copied.

    Args:
        max_new_tokens: completion length limit, tokens.
        temperature: sampling temperature of exploration; 0 is greedy.
        top_k: sample among the k most likely tokens; 0 among all.
        top_p: sample among the most likely tokens that together reach this probability; 1 among all.
        max_rows: rollouts decoded at once. Bounds memory: each needs 2 * layers * kv_heads * head_dim numbers of KV
            cache per token of prompt and completion, up to half of it more in reserve.
    """

    def __init__(
        self,
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_rows: int = 512,
    ) -> None:
        problems = [] if max_rows >= 1 else [f"--engine.max_rows must be at least 1, got {max_rows}"]
        try:
            super().__init__(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
        except ValueError as error:
            problems.insert(0, str(error))
        if problems:
            raise ValueError("\n".join(problems))
        self.max_rows = max_rows
        self._policy: Policy | None = None

    def bind(self, policy: Policy) -> None:
        """Generate with this policy from now on."""
        self._policy = policy

    def sync(self) -> None:
        """Nothing to do: the engine runs the very tensors that the optimizer updates."""

    @torch.inference_mode()
    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        """n rollouts of each problem, problem-major: rollout g of problem p is element p * n + g.

        A rollout depends on its place in the request and on the seed, not on `max_rows`, up to the rounding of
        different batch shapes. The global random state is neither read nor changed.

        Raises:
            RuntimeError: no policy is bound.
            ValueError: a prompt is empty, or does not fit the model together with `max_new_tokens`.
            TypeError: the model has no KV cache.
        """
        if self._policy is None:
            raise RuntimeError("TorchEngine.generate needs a policy; call bind(policy) first")
        policy = self._policy
        prompts = [policy.encode(problem.prompt) for problem in problems]
        _check_prompts(problems, prompts, sampling, policy.model.config.get_text_config())
        prompt_ids = [np.array(prompt, dtype=np.int64) for prompt in prompts]
        generator = torch.Generator().manual_seed(sampling.seed)
        rollouts: list[Rollout] = []
        for start, end in _waves(len(problems), n, self.max_rows):
            # On the CPU, row by row: a row's numbers depend neither on the waves nor on the device.
            uniforms = torch.rand(end - start, sampling.max_new_tokens, generator=generator).to(policy.device)
            first, last = start // n, (end - 1) // n
            prompt_of_row = torch.arange(start, end, device=policy.device) // n - first
            wave = _decode(policy, prompts[first : last + 1], prompt_of_row, uniforms, sampling)
            sources = [(problems[row // n], prompt_ids[row // n]) for row in range(start, end)]
            rollouts += _collect(policy, sources, *wave)
        return rollouts


def _check_prompts(
    problems: Sequence[Problem], prompts: list[list[int]], sampling: SamplingParams, config: Any
) -> None:
    """Raise one ValueError that names every prompt the model cannot take."""
    limit = getattr(config, "max_position_embeddings", None)
    errors = []
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            errors.append(f"problem {problem.id!r}: the prompt has no tokens")
        elif limit is not None and len(prompt) + sampling.max_new_tokens > limit:
            errors.append(
                f"problem {problem.id!r}: prompt of {len(prompt)} tokens + max_new_tokens {sampling.max_new_tokens} "
                f"exceeds the model's {limit} positions; lower --engine.max_new_tokens or drop the problem"
            )
    if errors:
        raise ValueError("\n".join(errors))


def _waves(problems: int, n: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges [start, end) of rows that are decoded together: whole problems, or pieces of one that is too large."""
    if n <= max_rows:
        step = max_rows // n * n
        yield from ((start, min(start + step, problems * n)) for start in range(0, problems * n, step))
    else:
        for first in range(0, problems * n, n):
            yield from ((start, min(start + max_rows, first + n)) for start in range(first, first + n, max_rows))


def _decode(
    policy: Policy, prompts: list[list[int]], prompt_of_row: Tensor, uniforms: Tensor, sampling: SamplingParams
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample a completion for every row of a wave.

    Args:
        prompts: P token lists.
        prompt_of_row: [R] int64, the prompt each row continues.
        uniforms: [R, T] in [0, 1), one number per token.

    Returns:
        Tokens [R, T] int64 and their logprobs [R, T] float32, without meaning behind a row's first stop token; and
        which of the tokens are stop tokens [R, T] bool.
    """
    device = policy.device
    stop_token_ids = torch.tensor(sorted(policy.stop_token_ids), dtype=torch.int64, device=device)
    tokens = torch.zeros(uniforms.shape, dtype=torch.int64, device=device)
    logprobs = torch.zeros(uniforms.shape, device=device)
    rows = torch.arange(len(prompt_of_row), device=device)  # [B], those in the batch ...
    live = torch.ones_like(rows, dtype=torch.bool)  # [B], ... and whether they still need tokens

    batch = _Batch(policy.model, prompts, sampling.max_new_tokens, device)
    batch.select(prompt_of_row)
    for step in range(sampling.max_new_tokens):
        token, logprob = sample_tokens(batch.logits, uniforms[rows, step], sampling)  # [B], [B]
        tokens[rows, step], logprobs[rows, step] = token, logprob
        live &= ~torch.isin(token, stop_token_ids)
        live_count = int(live.sum())
        if live_count == 0 or step + 1 == sampling.max_new_tokens:
            break
        if live_count <= _COMPACT_BELOW * len(live):
            kept = live.nonzero().squeeze(1)
            batch.select(kept)
            rows, live, token = rows[kept], live[kept], token[kept]
        batch.append(token)
    return tokens, logprobs, torch.isin(tokens, stop_token_ids)


class _Batch:
    """Token sequences that grow by one token at a time, and the logits [B, V] of what follows each.

    Sequences end in the same column; shorter prompts are padded on the left, and the padding is masked.
    """

    def __init__(self, model: Any, prompts: list[list[int]], max_new_tokens: int, device: torch.device) -> None:
        self._model = model
        self._cache = row_cache(model.config)
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [B]
        self._columns = max(map(len, prompts))
        padding = self._columns - self._lengths[:, None]  # [B, 1]
        columns = torch.arange(self._columns + max_new_tokens, device=device)
        self._mask = columns >= padding  # [B, columns at the end]
        # Without a mask, attention takes its fastest kernel.
        self._padded = min(map(len, prompts)) < self._columns
        input_ids = torch.zeros(len(prompts), self._columns, dtype=torch.int64, device=device)
        input_ids[self._mask[:, : self._columns]] = torch.tensor(list(chain.from_iterable(prompts)), device=device)
        self.logits = self._forward(input_ids, (columns[: self._columns] - padding).clamp(min=0))

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, which may repeat."""
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]  # declared for LongTensor, which int64 tensors are
        self._lengths, self._mask, self.logits = self._lengths[rows], self._mask[rows], self.logits[rows]

    def append(self, token: Tensor) -> None:
        """Add one token [B] to the sequences."""
        self._columns += 1
        self._lengths += 1
        self.logits = self._forward(token[:, None], self._lengths[:, None] - 1)

    def _forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        output = self._model(
            input_ids=input_ids,
            attention_mask=self._mask[:, : self._columns] if self._padded else None,
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if getattr(output, "past_key_values", None) is not self._cache:
            raise TypeError(f"TorchEngine needs a model with a KV cache; {type(self._model).__name__} ignores it")
        return output.logits[:, -1]


def _collect(
    policy: Policy, sources: list[tuple[Problem, np.ndarray]], tokens: Tensor, logprobs: Tensor, stops: Tensor
) -> list[Rollout]:
    """Rollouts from the rows [R, T] of a wave, each cut behind its first stop token.

    Args:
        sources: R problems and prompts.
        tokens, logprobs, stops: as `_decode` returns them.
    """
    stopped = stops.any(-1)
    lengths = torch.where(stopped, stops.int().argmax(-1) + 1, tokens.shape[1]).tolist()
    # Copies, so that one rollout that is kept does not keep its whole wave in memory.
    completions = [row[:length].copy() for row, length in zip(tokens.cpu().numpy(), lengths, strict=True)]
    sampling_logprobs = [row[:length].copy() for row, length in zip(logprobs.cpu().numpy(), lengths, strict=True)]
    texts = policy.decode([completion.tolist() for completion in completions])
    return [
        Rollout(
            problem_id=problem.id,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            sampling_logprobs=row_logprobs,
            text=text,
            finish_reason="stop" if stop else "length",
        )
        for (problem, prompt_ids), completion_ids, row_logprobs, text, stop in zip(
            sources, completions, sampling_logprobs, texts, stopped.tolist(), strict=True
        )
    ]


def sample_tokens(logits: Tensor, uniforms: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution: no sort, no global random state.

    Args:
        logits: [B, V].
        uniforms: [B] in [0, 1), the random numbers that decide.

    Returns:
        Tokens [B] int64, never one of probability 0, and their logprobs [B] float32, nats: under the distribution that
        was sampled from, renormalised after temperature, top-k and top-p; when greedy, under the softmax of the logits.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        logprobs = logits.log_softmax(-1)
        tokens = logits.argmax(-1, keepdim=True)
    else:
        logprobs = _restrict(logits / sampling.temperature, sampling.top_k, sampling.top_p).log_softmax(-1)  # [B, V]
        probabilities = logprobs.exp()
        tokens = torch.searchsorted(probabilities.cumsum(-1), uniforms[:, None], right=True)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
        # The sum may round to less than a uniform, and a parallel sum may step at an impossible token: one draw in
        # millions, which goes to the most likely token.
        tokens = torch.where(probabilities.gather(-1, tokens) > 0, tokens, logits.argmax(-1, keepdim=True))
    return tokens.squeeze(-1), logprobs.gather(-1, tokens).squeeze(-1)


def _restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits [B, V] with -inf for what top-k, and then top-p of what is left, exclude. Ties at the k-th are kept."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token is out when those before it already reach p.
        out = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
    return logits
