"""What several tests build: tiny random policies, rollouts, a fake engine and reward, one fit on Lightning's Trainer.

`slow_logprobs` and `slow_entropies` are the independent reference: one row at a time, no padding, full logits.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
import numpy as np
import torch
import transformers
from torch import Tensor

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.batching import collate
from rloop_lightning.data.countdown_policy import make_tokenizer
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rollouts.sampler import GroupSampler
from rloop_lightning.rollouts.step_sampler import Explorer, StepSampler
from rloop_lightning.rollouts.stream import RolloutStream
from rloop_lightning.types import Group, Problem, Rollout, RolloutBatch, SamplingParams

PROMPT_IDS = (3, 4, 5)


def make_model(
    architecture: str = "Qwen2", *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any
) -> Any:
    """A random causal LM of two layers; a large initializer range makes its distributions far from uniform."""
    settings = {
        "vocab_size": len(make_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{architecture}Config")(**{**settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config).to(dtype)


def make_policy(architecture: str = "Qwen2", *, max_tokens: int = 16384, **changes: Any) -> Policy:
    return Policy(make_model(architecture, **changes), make_tokenizer(), max_tokens)


def make_rollout(
    problem_id: str = "a",
    completion: Sequence[int] = (6, 7, 1),
    *,
    prompt: Sequence[int] = PROMPT_IDS,
    reward: float = 0.0,
    finish_reason: Any = "stop",
    sampling_logprobs: Sequence[float] | None = None,
    success: bool | None = None,
) -> Rollout:
    logprobs = np.full(len(completion), -1.0) if sampling_logprobs is None else sampling_logprobs
    return Rollout(
        problem_id=problem_id,
        prompt_ids=np.array(prompt, dtype=np.int64),
        completion_ids=np.array(completion, dtype=np.int64),
        sampling_logprobs=np.array(logprobs, dtype=np.float32),
        text="".join(map(str, completion)),
        finish_reason=finish_reason,
        reward=reward,
        success=reward >= 1 if success is None else success,
    )


def random_rollouts(lengths: Sequence[tuple[int, int]], *, seed: int = 0, vocabulary: int = 25) -> list[Rollout]:
    """Rollouts of the given prompt and completion lengths, random tokens and sampling logprobs."""
    rng = np.random.default_rng(seed)
    return [
        make_rollout(
            prompt=rng.integers(0, vocabulary, prompt),
            completion=rng.integers(0, vocabulary, completion),
            sampling_logprobs=-rng.random(completion) * 3,
        )
        for prompt, completion in lengths
    ]


RAGGED = ((3, 5), (1, 9), (6, 1), (4, 12), (2, 2), (5, 7), (3, 3), (7, 4))


def random_batch(
    lengths: Sequence[tuple[int, int]] = RAGGED, *, seed: int = 0, temperature: float = 1.0, **changes: Any
) -> RolloutBatch:
    """Ragged rows with random advantages, positive and negative."""
    advantages = np.random.default_rng(seed + 1).normal(size=len(lengths))
    return collate(random_rollouts(lengths, seed=seed), advantages, temperature=temperature, **changes)


def slow_distributions(policy: Policy, batch: RolloutBatch) -> list[Tensor]:
    """Log-distributions that each row's completion tokens were drawn from, [T_row, V] a row, with gradients."""
    rows = []
    for row in range(len(batch)):
        prompt, completion = int(batch.prompt_lengths[row]), int(batch.completion_lengths[row])
        logits = policy.model(input_ids=batch.input_ids[row : row + 1, : prompt + completion]).logits[0]
        rows.append(torch.log_softmax(logits[prompt - 1 : prompt + completion - 1] / batch.temperature, dim=-1))
    return rows


def slow_logprobs(policy: Policy, batch: RolloutBatch) -> list[Tensor]:
    """Logprobs of each row's completion tokens, [T_row] a row, with gradients."""
    return [
        row[torch.arange(len(row)), batch.input_ids[i, int(batch.prompt_lengths[i]) :][: len(row)]]
        for i, row in enumerate(slow_distributions(policy, batch))
    ]


def slow_entropies(policy: Policy, batch: RolloutBatch) -> list[Tensor]:
    return [-(row.exp() * row).sum(dim=-1).detach() for row in slow_distributions(policy, batch)]


def gradients(module: torch.nn.Module) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).clone()


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


class Stream:
    """Training data from a list; Lightning would take a bare list for several loaders."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class GradientRecorder(L.Callback):
    """Keeps the gradient of every optimizer step as it is before clipping."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append(gradients(pl_module.policy))


class UpdateOnlyDAPO(DAPO):
    """One `update` a batch. It stands here, like the next two, because processes that Lightning starts import it."""

    def setup(self, stage: str) -> None:
        for parameter in self.parameters():  # which processes of a fork server would share
            parameter.data = parameter.data.clone()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.update(batch)


class ScoringDAPO(UpdateOnlyDAPO):
    """Scores answers in each process of a fit before the update, and leaves what came out in a folder."""

    def __init__(self, reward: Reward, folder: Path) -> None:
        super().__init__(lr=0.01, warmup_steps=0)
        self.reward = reward
        self.folder = folder

    def training_step(self, batch: Any, batch_idx: int) -> None:
        rank = self.global_rank
        problems = [Problem(f"p{i}", "?", str(i)) for i in range(6)]
        rewards = self.reward.rewards(problems, [f"\\boxed{{{i + rank * (i % 2)}}}" for i in range(6)])
        (self.folder / f"rewards-{rank}.json").write_text(json.dumps([rewards, self.reward.metrics()]))
        super().training_step(batch, batch_idx)


class RankData:
    """One batch for each process."""

    def __init__(self, batches: Sequence[RolloutBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[RolloutBatch]:
        return iter([self.batches[torch.distributed.get_rank()]])


class SaveGradient(L.Callback):
    """Leaves each process's gradient before clipping, and its weights afterwards, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        torch.save(gradients(pl_module.policy), self.folder / f"gradient-{trainer.global_rank}.pt")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(weights(pl_module.policy), self.folder / f"weights-{trainer.global_rank}.pt")


class StepMetrics(L.Callback):
    """Keeps what each training step recorded; stands last."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(dict(pl_module.step_metrics))
        pl_module.step_metrics.clear()


def make_trainer(callbacks: Iterable[L.Callback] = (), **kwargs: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "max_epochs": 1,
    }
    return L.Trainer(**{**settings, **kwargs}, callbacks=list(callbacks))


def fit(
    module: Any,
    policy: Policy,
    data: Any,
    callbacks: Iterable[L.Callback] = (),
    fit_kwargs: Mapping[str, Any] = MappingProxyType({}),
    **kwargs: Any,
) -> L.Trainer:
    """One `Trainer.fit` of the module on the policy, as the loop does it; `kwargs` go to the Trainer."""
    module.policy = policy
    trainer = make_trainer(callbacks, **kwargs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*in eval mode|.*LeafSpec|.*does not have many workers")
        trainer.fit(module, train_dataloaders=Stream(data) if isinstance(data, list) else data, **fit_kwargs)
    return trainer


def make_problems(count: int) -> list[Problem]:
    return [Problem(id=f"p{i}", prompt=f"{i}=", answer=str(i)) for i in range(count)]


class FakeEngine(RolloutEngine):
    """Writes what `write(problem_number, g, call)` says, one token a character of it, and counts its calls."""

    def __init__(self, write: Callable[[int, int, int], str], *, max_new_tokens: int = 8, **kwargs: Any) -> None:
        super().__init__(max_new_tokens=max_new_tokens, **kwargs)
        self.write = write
        self.calls: list[tuple[list[str], int, SamplingParams]] = []

    def bind(self, policy: Policy) -> None: ...

    def sync(self) -> None: ...

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        call = len(self.calls)
        self.calls.append(([problem.id for problem in problems], n, sampling))
        rng = np.random.default_rng(sampling.seed)
        rollouts = []
        for problem in problems:
            for g in range(n):
                text = self.write(int(problem.id[1:]), g, call)[: self.max_new_tokens]
                completion = [3 + ord(character) % 20 for character in text]
                rollouts.append(
                    Rollout(
                        problem_id=problem.id,
                        prompt_ids=np.array(PROMPT_IDS, dtype=np.int64),
                        completion_ids=np.array(completion, dtype=np.int64),
                        sampling_logprobs=(-rng.random(len(completion))).astype(np.float32),
                        text=text,
                        finish_reason="length" if len(text) == self.max_new_tokens else "stop",
                    )
                )
        return rollouts


class FirstCharacterReward(Reward):
    """The reward is the text's first character as a digit: "1abc" succeeds, "0ab" does not."""

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [float(text[0]) for text in texts]


def make_sampler(write: Callable[[int, int, int], str], **kwargs: Any) -> GroupSampler:
    return GroupSampler(FakeEngine(write, **kwargs), FirstCharacterReward())


def make_stream(
    sampler: GroupSampler,
    explorer: Explorer,
    problems: Sequence[Problem],
    *,
    problems_per_step: int,
    rollouts_per_problem: int,
    seed: int = 0,
    **settings: Any,
) -> RolloutStream:
    steps = StepSampler(
        sampler,
        explorer,
        problems,
        problems_per_step=problems_per_step,
        rollouts_per_problem=rollouts_per_problem,
        seed=seed,
    )
    return RolloutStream(steps, **settings)


def small_stream(
    engine: RolloutEngine, explorer: Explorer | None = None, *, steps: int = 5, **settings: Any
) -> RolloutStream:
    """Rollout steps of three of seven problems, two rollouts each."""
    return make_stream(
        GroupSampler(engine, FirstCharacterReward()),
        explorer or DAPO(),
        make_problems(7),
        problems_per_step=3,
        rollouts_per_problem=2,
        steps=steps,
        **settings,
    )


def one_right(problem: int, g: int, call: int) -> str:
    """The first rollout of every problem is right; lengths differ."""
    return ("1" if g == 0 else "0") + "x" * ((problem + g) % 4)


def make_group(*rollouts: Rollout) -> Group:
    return Group(Problem(rollouts[0].problem_id, "?", "!"), rollouts)
