"""One update of `benchmarks.memory` in a process of its own. Prints the bytes held after loading, and at most."""

from __future__ import annotations

import gc
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measure import memory_bytes, peak_bytes
from benchmarks.memory import Case
from rloop_lightning.algorithms.bfloat16 import float32_sums
from rloop_lightning.algorithms.optimizer import make_optimizer
from rloop_lightning.batching import collate
from rloop_lightning.model.attention_memory import PackedRows
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Rollout, RolloutBatch

_FEW = PackedRows(prompts=1, prompt=4, rollouts=2, completion=4)


def main() -> None:
    settings = json.loads(sys.argv[1])
    case = Case(**{**settings["case"], "rows": PackedRows(**settings["case"]["rows"])})
    device = torch.device(settings["device"])
    policy = Policy.load(case.config(settings["folder"])).to(device)
    policy.mixed_precision = torch.bfloat16 if case.mixed else None
    gc.collect()
    loaded = memory_bytes(device.type)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = make_optimizer("adamw", weights, lr=1e-6, weight_decay=0.1, betas=(0.9, 0.999), options={})
    _update(policy, weights, optimizer, [_batch(_FEW, 0)], device)
    _forget_peak(device)
    _update(policy, weights, optimizer, [_batch(case.rows, seed) for seed in range(2)], device)
    print(json.dumps({"loaded_bytes": loaded, "peak_bytes": peak_bytes(device.type)}))


def _update(
    policy: Policy, weights: list[Any], optimizer: Any, batches: list[RolloutBatch], device: torch.device
) -> None:
    """One optimizer step, accumulated over micro-batches as `PolicyModule.update` does."""
    mixed = policy.mixed_precision is not None
    # Without a cache, as in Lightning's precision plugin.
    cast = torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if mixed else nullcontext()
    with float32_sums(weights), cast:
        for batch in batches:
            scores = policy.logprobs(batch.to(device))
            (scores.logprobs.sum() / batch.loss_mask.sum()).backward()
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _batch(rows: PackedRows, seed: int) -> RolloutBatch:
    rng = np.random.default_rng(seed)
    prompts = rng.integers(2, 50, (rows.prompts, rows.prompt))
    rollouts = [
        Rollout(
            problem_id="",
            prompt_ids=prompts[number % rows.prompts],
            completion_ids=rng.integers(2, 50, rows.completion),
            sampling_logprobs=np.full(rows.completion, -1.0, dtype=np.float32),
            text="",
            finish_reason="length",
        )
        for number in range(rows.rollouts)
    ]
    return collate(rollouts, np.ones(rows.rollouts))


def _forget_peak(device: torch.device) -> None:
    """Let the peak begin at what is held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
