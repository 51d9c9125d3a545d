"""A trial of generation before a run: does the model decode token by token as the trainer computes it at once?

    trial_fault(policy)         # why it does not, or None

Models with a recurrent state or a cache of their own may not: their rows can't be repeated and dropped, or see the
padding of shorter prompts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rloop_lightning.batching import collate
from rloop_lightning.engines.rows import Rows
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.terminal import cause
from rloop_lightning.types import Rollout

# Lengths in tokens, short enough to be cheap.
_PROMPTS, _COMPLETION = (13, 6), 8
_PROMPT_OF_ROW = (0, 0, 1, 1)
_DROPPED_AFTER, _KEPT = 4, (3, 0)  # tokens, and the rows that go on
# Mean over the tokens, nats. In half precision, rounding parts single tokens by tenths of a nat; a wrong state parts
# all tokens by nats.
_LARGEST_GAP = {torch.float64: 0.05, torch.float32: 0.05}
_LARGEST_GAP_IN_HALF_PRECISION = 0.5


@torch.no_grad()
def trial_fault(policy: Policy) -> str | None:
    """Why the model can't be decoded row by row, naming the flag; None if it can."""
    name = f"--policy.model: TorchEngine can't generate with {type(policy.model).__name__}"
    rng = np.random.default_rng(0)
    vocabulary = policy.model.config.get_text_config().vocab_size
    prompts = [rng.integers(0, vocabulary, length).tolist() for length in _PROMPTS]
    completions = rng.integers(0, vocabulary, (len(_PROMPT_OF_ROW), _COMPLETION))
    try:
        found = _decoded_logprobs(policy, prompts, torch.tensor(completions, device=policy.device))
    except Exception as error:  # the model's code may raise anything when it gets a cache that it does not know
        return f"{name}: {cause(error)}; take another model"
    rollouts = [
        Rollout(
            problem_id="",
            prompt_ids=np.array(prompts[prompt]),
            completion_ids=completion,
            sampling_logprobs=np.zeros(_COMPLETION, dtype=np.float32),
            text="",
            finish_reason="stop",
        )
        for prompt, completion in zip(_PROMPT_OF_ROW, completions, strict=True)
    ]
    expected = policy.scores_no_grad(collate(rollouts, np.zeros(len(rollouts))).to(policy.device)).logprobs
    gap = float((found - expected)[found != 0].abs().mean())
    if gap <= _LARGEST_GAP.get(policy.model.dtype, _LARGEST_GAP_IN_HALF_PRECISION):
        return None
    return f"{name}: decoded logprobs part from those of a whole forward pass by {gap:.2g} nats; take another model"


def _decoded_logprobs(policy: Policy, prompts: list[list[int]], completions: Tensor) -> Tensor:
    """Logprobs [R, T] of completions [R, T], decoded token by token. Rows that are dropped on the way end in zeros."""
    rows = torch.tensor(_PROMPT_OF_ROW, device=policy.device)
    found = torch.zeros(completions.shape, device=policy.device)
    batch = Rows(policy, prompts, _COMPLETION, policy.model.dtype)
    batch.select(rows)
    rows = torch.arange(len(rows), device=policy.device)
    for step in range(_COMPLETION):
        tokens = completions[rows, step]
        found[rows, step] = batch.logits.float().log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
        if step == _DROPPED_AFTER:
            kept = torch.tensor(_KEPT, device=policy.device)
            batch.select(kept)
            rows, tokens = rows[kept], tokens[kept]
        batch.append(tokens)
    return found
