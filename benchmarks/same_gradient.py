"""Computes the gradient of one mini-batch in TRL and in this package.

    python -m benchmarks.same_gradient REQUEST      REQUEST as for side_trl.py

TRL does one whole step: it generates, scores, weighs and differentiates. Its rollouts then pass through our reward,
advantages and loss. The last line of the output is a JSON object: `cosine` between both gradients, and their norms
before clipping. TRL divides by a standard deviation that is larger by 1e-4; nothing else should differ.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from benchmarks.side_trl import make_trainer
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.cli.registry import find_class
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import Group, Problem, Rollout, SamplingParams


class _Recorder(TrainerCallback):
    """Replaces the gate: records TRL's gradient, ordered by parameter name."""

    def __init__(self) -> None:
        self.gradient = torch.empty(0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradient = _gradient(model)


def _gradient(model: torch.nn.Module) -> Tensor:
    named = sorted(model.named_parameters())
    return torch.cat([p.grad.flatten().double().cpu() for _, p in named if p.grad is not None])


def gradient_of_trl(request: dict[str, Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """TRL's gradient of its first step, and its rollouts, as one dict of tensors per piece of the mini-batch."""
    request["config"] |= {"max_grad_norm": 0.0, "bf16": False}
    trainer = make_trainer(request, gate=None)
    recorder = _Recorder()
    trainer.add_callback(recorder)
    seen: list[dict[str, Tensor]] = []
    compute_loss = trainer._compute_loss

    def recorded(model: Any, inputs: dict[str, Tensor]) -> Tensor:
        seen.append(inputs)
        return compute_loss(model, inputs)

    trainer._compute_loss = recorded
    trainer.train()
    return recorder.gradient, seen


def groups_of(seen: list[dict[str, Tensor]], problems: dict[str, Problem], policy: Policy) -> list[Group]:
    """TRL's rollouts as groups, without rewards. TRL shuffles rollouts, so they are grouped by prompt."""
    by_prompt: dict[str, list[Rollout]] = defaultdict(list)
    for inputs in seen:
        for row in range(len(inputs["prompt_ids"])):
            prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].cpu().numpy()
            completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].cpu().numpy()
            (text,) = policy.decode([completion.tolist()])
            (prompt_text,) = policy.decode([prompt.tolist()])
            logprobs = np.zeros(len(completion), dtype=np.float32)
            rollout = Rollout(problems[prompt_text].id, prompt, completion, logprobs, text, "length")
            by_prompt[prompt_text].append(rollout)
    return [Group(problems[prompt], tuple(rollouts)) for prompt, rollouts in by_prompt.items()]


def gradient_of_ours(request: dict[str, Any], seen: list[dict[str, Tensor]]) -> Tensor:
    """Our gradient of the same mini-batch."""
    source: ProblemSource = find_class("data", request["data"], ProblemSource)(**request["data_settings"])
    reward: Reward = find_class("rewards", source.reward, Reward)()
    policy = Policy.load(PolicyConfig(model=request["model"])).to(seen[0]["prompt_ids"].device)
    groups = []
    for group in groups_of(seen, {problem.prompt: problem for problem in source.train()}, policy):
        scored = reward([group.problem] * len(group.rollouts), [rollout.text for rollout in group.rollouts])
        values = [verdict.reward for verdict in scored]
        rollouts = [replace(rollout, reward=value) for rollout, value in zip(group.rollouts, values, strict=True)]
        groups.append(Group(group.problem, tuple(rollouts)))
    algorithm = DAPO(dynamic_sampling=False)
    batch = algorithm.make_batch(groups, SamplingParams(max_new_tokens=request["config"]["max_completion_length"]))
    batch = batch.to(policy.device)
    scores = policy.logprobs(batch)
    # Strictly on-policy: these are the logprobs of the generating policy.
    output = algorithm.loss(scores, replace(batch, old_logprobs=scores.logprobs.detach()))
    ((output.loss * batch.loss_mask).sum() / algorithm.loss_count(batch)).backward()
    return _gradient(policy.model)


def main() -> None:
    request = json.loads(sys.argv[1])
    theirs, seen = gradient_of_trl(request)
    ours = gradient_of_ours(request, seen)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
    found = {"cosine": float(cosine), "norm_ours": float(ours.norm()), "norm_trl": float(theirs.norm())}
    print(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
