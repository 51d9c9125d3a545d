"""Length, entropy, truncation and group shares, against loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import make_problems, make_rollout

from rloop_lightning.evaluation import RolloutOutcomes, group_shares
from rloop_lightning.types import Group


def make_groups(seed, count=12):
    rng = np.random.default_rng(seed)
    groups = []
    for problem in make_problems(count):
        rate = rng.choice([0.0, 0.5, 1.0])
        rollouts = [
            make_rollout(
                problem.id,
                rng.integers(2, 9, length).tolist(),
                reward=float(rng.random() < rate),
                finish_reason=rng.choice(["stop", "length"]),
                sampling_logprobs=(-rng.random(length)).tolist(),
            )
            for length in rng.integers(1, 7, 4)
        ]
        groups.append(Group(problem, tuple(rollouts)))
    return groups


def slow(groups):
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    result = {}
    for name, success in (("wrong", False), ("right", True)):
        kind = [rollout for rollout in rollouts if rollout.success == success]
        result[f"length_{name}_tokens"] = np.mean([len(rollout.completion_ids) for rollout in kind])
        result[f"entropy_{name}_nats"] = -np.mean([x for rollout in kind for x in rollout.sampling_logprobs.tolist()])
    result["truncated_rate"] = np.mean([rollout.finish_reason == "length" for rollout in rollouts])
    result["all_right_rate"] = np.mean([all(rollout.success for rollout in group.rollouts) for group in groups])
    result["all_wrong_rate"] = np.mean([not any(rollout.success for rollout in group.rollouts) for group in groups])
    return result


def computed(metric):
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("seed", range(4))
def test_is_what_loops_say_whatever_the_ranks(seed):
    groups = make_groups(seed)
    ranks = [RolloutOutcomes() for _ in range(2)]
    ranks[0].update(groups[:2])
    ranks[0].update(groups[2:5])
    ranks[1].update(groups[5:])
    both = RolloutOutcomes()
    for state, reduce in both._reductions.items():
        setattr(both, state, reduce(torch.stack([getattr(rank, state) for rank in ranks])))
    both._update_count = 1
    assert computed(both) == pytest.approx(slow(groups))


def test_what_was_not_seen_is_nan():
    metric = RolloutOutcomes()
    (problem,) = make_problems(1)
    metric.update([Group(problem, (make_rollout(problem.id, (3, 4), reward=1.0),))])
    result = computed(metric)
    assert (result["length_right_tokens"], result["entropy_right_nats"], result["all_right_rate"]) == (2, 1, 1)
    assert np.isnan([result["length_wrong_tokens"], result["entropy_wrong_nats"]]).all()
    metric.reset()
    metric.update([Group(problem, ())])
    assert np.isnan(list(computed(metric).values())).all()


def test_replayed_rollouts_do_not_count():
    (problem,) = make_problems(1)
    own, replayed = make_rollout(problem.id, (3, 4)), replace(make_rollout(problem.id, (3,), reward=1.0), replayed=True)
    metric = RolloutOutcomes()
    metric.update([Group(problem, (own, replayed))])
    assert computed(metric)["all_wrong_rate"] == 1
    assert np.isnan(computed(metric)["length_right_tokens"])


def test_group_shares():
    right, wrong = group_shares(torch.tensor([4, 0, 2, 0, 0]), torch.tensor([4, 4, 4, 2, 0]))
    assert (right.item(), wrong.item()) == (0.25, 0.5)
    assert [share.item() for share in group_shares(torch.tensor([3, 1]), 3)] == [0.5, 0]
    assert all(share.isnan() for share in group_shares(torch.zeros(0), 4))
    with pytest.raises(ValueError, match=r"0 \.\. samples"):
        group_shares(torch.tensor([5]), 4)
