"""RLoop on one page: one round of exploration by DAPO, the hard-problem filter, and consolidation by RFT.

    python examples/one_file.py         # on one CPU core, no download; --help lists the sizes

    theta_0 = base policy
    EXPLORE      phi = theta_0, trained by DAPO (arXiv 2503.14476); every rollout goes to the pool
    FILTER       p_q = success rate of problem q over the pool; expert set = successes where 0 < p_q < max_success_rate
    CONSOLIDATE  theta_1 = theta_0 (not phi), fine-tuned on the expert set by maximum likelihood (RFT)

This is one round of RLoop (arXiv 2511.04285). `rloop_lightning.train` runs several, with checkpoints, resume and logs.
Shapes: P problems, G rollouts per problem, B = P * G rows, T completion tokens. Logprobs are in nats.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jsonargparse import auto_cli
from torch import Tensor

import rloop_lightning as rl

CLIP_EPS_LOW, CLIP_EPS_HIGH = 0.2, 0.28  # DAPO's clip-higher
LR, WEIGHT_DECAY, MAX_GRAD_NORM = 2e-4, 0.01, 1.0
UPDATES_PER_STEP = 2  # optimizer steps on the rollouts of one rollout step
EPOCHS, ROLLOUTS_PER_UPDATE, MAX_PER_PROBLEM = 4, 32, 8  # for filter and consolidation
TokenLoss = Callable[[Tensor, rl.RolloutBatch], Tensor]  # (logprobs [B, T], batch) -> loss per token [B, T]


def sample(engine: rl.TorchEngine, problems: Sequence[rl.Problem], n: int, seed: int) -> list[rl.Group]:
    """Sample a group of n rollouts per problem and score them. A reward of at least 1 is a success."""
    engine.sync()  # required after every change of the weights
    rollouts = engine.generate(problems, n, engine.sampling(seed))  # problem-major, with the logprob of each token
    scores = rl.CountdownReward()([p for p in problems for _ in range(n)], [rollout.text for rollout in rollouts])
    scored = [replace(r, reward=s.reward, success=s.success) for r, s in zip(rollouts, scores, strict=True)]
    return [rl.Group(problem, tuple(scored[i * n : (i + 1) * n])) for i, problem in enumerate(problems)]


def group_advantages(rewards: Tensor) -> Tensor:
    """A = (r - mean(r)) / std(r) over each group: [P, G] -> [P, G] (GRPO, arXiv 2402.03300)."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)


def dapo_loss(logprobs: Tensor, batch: rl.RolloutBatch) -> Tensor:
    """L_t = -min(rho_t A, clip(rho_t, 1 - eps_low, 1 + eps_high) A), rho_t = exp(logp_t - logp_old_t)

    [B, T] (arXiv 2503.14476, eq. 8). Engine and trainer share the weights, so sampling logprobs serve as old logprobs.
    """
    advantages, rho = batch.advantages[:, None], (logprobs - batch.sampling_logprobs).exp()
    return -torch.minimum(rho * advantages, rho.clamp(1 - CLIP_EPS_LOW, 1 + CLIP_EPS_HIGH) * advantages)


def rft_loss(logprobs: Tensor, batch: rl.RolloutBatch) -> Tensor:
    """L_t = -logp_t, [B, T]: maximum likelihood (arXiv 2511.04285, with the binary reward as weight)."""
    return -logprobs


def update(policy: rl.Policy, optimizer: torch.optim.Optimizer, batch: rl.RolloutBatch, token_loss: TokenLoss) -> float:
    """One optimizer step on a mini-batch. Returns its loss, L = sum_t L_t / number of tokens.

    The count covers the whole mini-batch, so the gradient does not depend on micro-batch size.
    """
    tokens, total = batch.loss_mask.sum(), 0.0  # known before the first micro-batch
    for _, micro in policy.micro_batches(batch):  # bounds the tokens per pass, and so the memory
        loss = (token_loss(policy.logprobs(micro).logprobs, micro) * micro.loss_mask).sum() / tokens
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return total


def explore(
    policy: rl.Policy, engine: rl.TorchEngine, problems: Sequence[rl.Problem], *, steps: int, P: int, G: int, seed: int
) -> list[list[rl.Group]]:
    """Train theta_0 to phi, in place. Returns the pool: all groups sampled in each rollout step."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    rng, pool = random.Random(seed), []
    for step in range(steps):
        sampled: list[rl.Group] = []
        # Dynamic sampling: a group with equal rewards has zero advantages and no gradient.
        while len(mixed := [group for group in sampled if 0 < group.success_count < G]) < P:
            sampled += sample(engine, rng.sample(problems, P), G, seed=rng.getrandbits(32))
        rollouts = [rollout for group in mixed[:P] for rollout in group.rollouts]
        advantages = group_advantages(torch.tensor([rollout.reward for rollout in rollouts]).view(P, G))
        batch = rl.collate(rollouts, advantages.flatten().tolist())
        mini_batches = torch.arange(P * G).tensor_split(UPDATES_PER_STEP)  # rho is 1 only in the first
        losses = [update(policy, optimizer, batch.select(rows), dapo_loss) for rows in mini_batches]
        pool.append(sampled)
        reward = sum(rollout.reward for group in sampled for rollout in group.rollouts) / (len(sampled) * G)
        print(f"rollout step {step + 1:3}: reward {reward:.3f}, loss {sum(losses) / len(losses):+.4f}")
    return pool


def expert_set(pool: Sequence[Sequence[rl.Group]], max_success_rate: float) -> list[rl.Rollout]:
    """The successes of the hard problems, 0 < p_q < max_success_rate, deduplicated by text."""
    rollouts_of: dict[str, list[rl.Rollout]] = defaultdict(list)
    for group in (group for step in pool for group in step):
        rollouts_of[group.problem.id] += group.rollouts
    experts: list[rl.Rollout] = []
    for rollouts in rollouts_of.values():
        successes = [rollout for rollout in rollouts if rollout.success]
        if 0 < len(successes) / len(rollouts) < max_success_rate:
            experts += list({rollout.text: rollout for rollout in successes}.values())[:MAX_PER_PROBLEM]
    return experts


def consolidate(policy: rl.Policy, experts: Sequence[rl.Rollout]) -> list[float]:
    """Fine-tune theta_0 to theta_1, in place. Returns the loss of each update."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    batch = rl.collate(experts, [1.0] * len(experts))
    orders = [torch.randperm(len(experts), generator=torch.Generator().manual_seed(epoch)) for epoch in range(EPOCHS)]
    mini_batches = [rows for order in orders for rows in order.split(ROLLOUTS_PER_UPDATE)]
    return [update(policy, optimizer, batch.select(rows), rft_loss) for rows in mini_batches]


def evaluate(engine: rl.TorchEngine, problems: Sequence[rl.Problem], samples: int) -> dict[int, float]:
    """The unbiased estimate of pass@k for k = 1 and k = samples (arXiv 2107.03374)."""
    successes = torch.tensor([group.success_count for group in sample(engine, problems, samples, seed=0)])
    return {k: float(rl.pass_at_k(successes, samples, k).mean()) for k in (1, samples)}


def main(
    steps: int = 40, P: int = 32, G: int = 8, problems: int = 300, samples: int = 32, max_success_rate: float = 0.1
) -> dict[str, dict[int, float]]:
    """Run one round of RLoop on `problems` countdown problems. Prints and returns pass@k of its three policies."""
    data, engine = rl.Countdown(train_size=problems), rl.TorchEngine(max_new_tokens=64)

    def theta_0() -> rl.Policy:
        engine.bind(policy := rl.Policy.load(rl.PolicyConfig("countdown")))
        return policy

    phi, test = theta_0(), data.evaluation()["test"]
    results = {"base": evaluate(engine, test, samples)}
    pool = explore(phi, engine, data.train(), steps=steps, P=P, G=G, seed=0)
    results["explored"] = evaluate(engine, test, samples)
    if experts := expert_set(pool, max_success_rate):
        losses = consolidate(theta_0(), experts)  # not phi
        results["consolidated"] = evaluate(engine, test, samples)
        print(f"consolidated on {len(experts)} rollouts: loss {losses[0]:.3f} to {losses[-1]:.3f}")
    for name, passes in results.items():
        print(f"{name:12}", *(f"  pass@{k} {share:.3f}" for k, share in passes.items()))
    return results


if __name__ == "__main__":
    auto_cli(main)
