"""What an update makes of replayed rollouts: ratios, metrics, the stream's step, and the record of a skipped one."""

import pyarrow.parquet as pq
import pytest
import torch
from builders import (
    StepMetrics,
    fit,
    make_policy,
    make_problems,
    make_rollout,
    make_sampler,
    make_stream,
    one_right,
    slow_logprobs,
)
from replaying import make_module, new_group, store, successes
from slow_algorithms import SAMPLING, Slow, assert_update_is, random_groups

from rloop_lightning.algorithms.replay import Replay
from rloop_lightning.callbacks.faulty_rollouts import FaultyRollouts
from rloop_lightning.types import RolloutStep


def replayed_groups(tmp_path, **settings):
    groups = random_groups()
    for group in groups:
        lengths = (3, 7) if group.problem.id == "p0" else (2, 5)
        stored = [
            make_rollout(
                group.problem.id, range(2, 2 + n), reward=n / 4, sampling_logprobs=[-1.5 - t for t in range(n)]
            )
            for n in lengths
        ]
        store(tmp_path, *stored, step=1 + int(group.problem.id[1:]))
    module = make_module(tmp_path, replay_successes_only=False, **settings)
    return module, module.replayed(groups, SAMPLING)


@pytest.mark.parametrize("how", ["joint", "split"])
def test_an_update_equals_the_slow_implementation(how, tmp_path):
    """The ratios of replayed rollouts are against the logprobs that they were recorded with."""
    module, groups = replayed_groups(tmp_path, replay_advantages=how)
    assert sum(rollout.replayed for group in groups for rollout in group.rollouts) == 6
    assert len(groups) == (3 if how == "joint" else 6)
    assert_update_is(module, Slow(high=0.28), groups)


class Spy(Replay):
    """Notes the old logprobs of replayed and of new rows that come to each update."""

    def on_fit_start(self):
        self.seen = []

    def loss(self, scores, batch):
        current = scores.logprobs.detach()
        for i in range(len(batch)):
            recorded = torch.equal(batch.old_logprobs[i], batch.sampling_logprobs[i])
            self.seen.append((bool(batch.replayed[i]), recorded, torch.equal(batch.old_logprobs[i], current[i])))
        return super().loss(scores, batch)


@pytest.mark.parametrize("updates", [1, 2])
def test_every_update_takes_ratios_against_the_record(updates, tmp_path):
    """Without old logprobs in the batch, as a run has it: in the first update, and in a later one."""
    module, groups = replayed_groups(tmp_path)
    spy = Spy(updates_per_step=updates, lr=0.05, warmup_steps=0)
    batch = module.make_batch(groups, SAMPLING)
    metrics = StepMetrics()
    fit(spy, make_policy(max_tokens=40), [RolloutStep(0, tuple(groups), batch, {})], [metrics])
    assert len(spy.seen) == len(batch)
    for replayed, recorded, current in spy.seen:
        assert recorded is replayed
        assert not (replayed and current)
    on_policy = [current for replayed, _, current in spy.seen if not replayed]
    assert all(on_policy) is (updates == 1)
    assert metrics.steps[0]["replay/share"] == pytest.approx(6 / len(batch))


def test_metrics_of_the_policy_leave_out_how_far_replayed_rollouts_are(tmp_path):
    """Before an update, the policy is its own reference and has not moved, whatever it replays."""
    module, groups = replayed_groups(tmp_path, kl_beta=0.1, kl_in="reward")
    batch = module.make_batch(groups, SAMPLING)
    assert batch.replayed.any()
    metrics = StepMetrics()
    fit(module, make_policy(max_tokens=40), [RolloutStep(0, tuple(groups), batch, {})], [metrics])
    assert metrics.steps[0]["policy/kl_nats"] == pytest.approx(0, abs=1e-6)
    assert metrics.steps[0]["policy/update_kl_nats"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("how", ["joint", "split"])
def test_a_step_of_the_stream_trains_on_replayed_rollouts_and_counts_none_of_them_as_generated(how, tmp_path):
    store(tmp_path, *successes("p1", 2), make_rollout("p1", (5, 1)))
    module = make_module(tmp_path, replay_advantages=how, replay_successes_only=False)
    stream = make_stream(
        make_sampler(one_right), module, make_problems(3), problems_per_step=3, rollouts_per_problem=2, steps=1, seed=0
    )
    (step,) = stream
    assert [len(group.rollouts) for group in step.groups] == [2, 2, 2]
    assert not any(rollout.replayed for group in step.groups for rollout in group.rollouts)
    assert step.metrics["rollout/generated_rollouts"] == 6
    assert stream.cost.rollouts == 6
    assert len(step.rollouts) == len(step.batch) == 8
    assert [rollout.replayed for rollout in step.rollouts] == step.batch.replayed.tolist()
    assert sum(step.batch.replayed.tolist()) == 2
    for row, rollout in zip(step.batch.input_ids, step.rollouts, strict=True):
        ids = [*rollout.prompt_ids.tolist(), *rollout.completion_ids.tolist()]
        assert row[: len(ids)].tolist() == ids
    again = [rollout.problem_id for rollout in step.rollouts if rollout.replayed]
    assert again == ["p1", "p1"]


def test_metrics_say_how_much_was_replayed_and_is_stored(tmp_path):
    store(tmp_path, *successes("a", 3))
    module = make_module(tmp_path)
    groups = module.replayed([new_group("a", size=2)], SAMPLING)
    metrics = StepMetrics()
    fit(module, make_policy(), [RolloutStep(0, (), module.make_batch(groups, SAMPLING), {})], [metrics])
    assert (metrics.steps[0]["replay/share"], metrics.steps[0]["replay/stored"]) == (0.5, 3)


def test_the_rollouts_of_a_skipped_update_hold_what_was_recorded(tmp_path):
    """The old logprobs of a replayed rollout are those of its record, of the others those of the policy."""
    module, groups = replayed_groups(tmp_path / "pool")
    batch = module.make_batch(groups, SAMPLING)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    module.policy = make_policy()
    faults = FaultyRollouts(tmp_path / "faults", round=0, run_id="r")
    path, bad = faults.save(module, batch, rollouts, step=1, update=1)
    assert bad == 0
    current = slow_logprobs(make_policy(), batch)
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == len(rollouts)
    for i, (row, rollout) in enumerate(zip(rows, rollouts, strict=True)):
        now = current[i].tolist()
        assert row["logprobs"] == pytest.approx(now, rel=1e-4, abs=1e-5)
        old = rollout.sampling_logprobs.tolist() if rollout.replayed else now
        assert row["old_logprobs"] == pytest.approx(old, rel=1e-4, abs=1e-5)
        assert row["sampling_logprobs"] == pytest.approx(rollout.sampling_logprobs.tolist())
        assert row["text"]
        # The loss is -min(rho A, clip(rho) A), summed over the rollout.
        tokens = Slow(high=0.28).tokens(float(batch.advantages[i]), now, old, old)
        assert row["loss"] == pytest.approx(sum(value for value, _ in tokens), rel=1e-3, abs=1e-4)
