"""The options of all algorithms, of every algorithm by value: updates against the slow implementation, rows by hand."""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from builders import (
    GradientRecorder,
    StepMetrics,
    fit,
    make_group,
    make_policy,
    make_problems,
    make_rollout,
    make_sampler,
    make_stream,
    random_batch,
    relative_difference,
    slow_logprobs,
)
from slow_algorithms import SAMPLING, SLOW, assert_update_is, off_policy, random_groups
from slow_updates import MoveTo, moved_policy, step_of

from rloop_lightning.algorithms import ALGORITHMS
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.registry import find_class
from rloop_lightning.types import RolloutStep, SamplingParams

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def make(name, **settings):
    """An algorithm of one update a step; MiniRL without its own weight where it is to be corrected."""
    if name == "minirl" and "importance_correction" in settings:
        settings["importance_weight"] = False
    module = find_class("algorithms", name, Algorithm)(**{"updates_per_step": 1, **settings})
    assert module.invalid() == []
    return module


def test_every_algorithm_has_a_slow_one():
    assert set(SLOW) == set(ALGORITHMS)


def test_the_table_of_the_docs_names_every_option():
    text = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
    table = text.split("## Options of all algorithms")[1].split("###")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| [")]
    options = {
        name
        for cls in (Algorithm, PolicyModule)
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == options


# --- gradients --------------------------------------------------------------------------------------------------------

KL = {"kl_beta": 0.5, "kl_estimator": "k2"}, {"beta": 0.5, "estimator": "k2"}
KL_IN_REWARD = (
    {"kl_beta": 0.5, "kl_estimator": "k1", "kl_in": "reward"},
    {"beta": 0.5, "estimator": "k1", "kl_in": "reward"},
)
BY_TOKEN = {"importance_correction": "truncate", "importance_cap": 1.3}, {"correction": "truncate", "cap": 1.3}
BY_ROLLOUT = (
    {"importance_correction": "mask", "importance_level": "sequence", "importance_cap": 4.0},
    {"correction": "mask", "level": "sequence", "cap": 4.0},
)
ENTROPY = {"entropy_coef": 0.3}, {"entropy_coef": 0.3}
OVERLONG = {"overlong_buffer_tokens": 6, "mask_truncated": True}, {"buffer": 6}


def together(*options):
    return tuple({name: value for option in options for name, value in option[side].items()} for side in (0, 1))


GEOMETRIC = (
    {"importance_correction": "truncate", "importance_level": "geometric", "importance_cap": 1.05},
    {"correction": "truncate", "level": "geometric", "cap": 1.05},
)
ALONE = {
    "KL in the loss": KL,
    "KL in the reward": KL_IN_REWARD,
    "token weights": BY_TOKEN,
    "rollout weights": BY_ROLLOUT,
    "geometric weights": GEOMETRIC,
    "entropy bonus": ENTROPY,
    "overlong": OVERLONG,
}
TOGETHER = {
    "KL in the loss": together(KL, BY_TOKEN, ENTROPY, OVERLONG),
    "KL in the reward": together(KL_IN_REWARD, BY_ROLLOUT, ENTROPY, OVERLONG),
}


@pytest.mark.parametrize("option", ALONE)
def test_an_update_with_an_option_equals_the_slow_implementation(option):
    ours, theirs = ALONE[option]
    assert_update_is(make("grpo", **ours), replace(SLOW["grpo"], **theirs))


@every_algorithm
@pytest.mark.parametrize("options", TOGETHER)
def test_an_update_with_all_options_of_the_command_line_equals_the_slow_implementation(name, options):
    ours, theirs = TOGETHER[options]
    if name == "minirl":
        ours, theirs = {**ours, "importance_weight": "false"}, {**theirs, "weighs": False}
    flags = [f"--algo.{option}={value}" for option, value in {"updates_per_step": 1, **ours}.items()]
    module = RLoopCLI(["--algo", name, *flags]).parts.algorithm
    metrics = assert_update_is(module, replace(SLOW[name], **theirs))
    assert {"policy/kl_nats", "policy/importance_weight", "policy/entropy_nats"} <= set(metrics)


@pytest.mark.parametrize("architecture", ["Qwen2", "GPTNeoX"])
def test_an_entropy_bonus_makes_a_policy_more_random(architecture):
    """With equal rewards nothing else moves it."""
    batch = random_batch()
    batch.advantages.zero_()

    def entropies(**settings):
        metrics = StepMetrics()
        module = GRPO(lr=0.003, warmup_steps=0, weight_decay=0.0, **settings)
        fit(module, make_policy(architecture), [step_of(batch, index) for index in range(6)], [metrics])
        return [step["policy/entropy_nats"] for step in metrics.steps]

    assert entropies() == pytest.approx([entropies()[0]] * 6)
    rising = entropies(entropy_coef=0.1)
    assert rising == sorted(rising)
    assert rising[-1] > rising[0] + 0.1


# --- rows -------------------------------------------------------------------------------------------------------------


@every_algorithm
def test_dynamic_sampling_trains_on_mixed_groups_alone(name):
    """Of six problems the rollouts of two are all right, those of two all wrong, and of two half and half."""
    answers = {0: "11", 1: "01", 2: "00", 3: "11", 4: "10", 5: "00"}

    def step(**settings):
        stream = make_stream(
            make_sampler(lambda problem, g, call: answers[problem][g] + "x"),
            make(name, **settings),
            make_problems(6),
            problems_per_step=4,
            rollouts_per_problem=2,
            steps=1,
            seed=0,
        )
        (only,) = stream
        return only

    sampled = step(dynamic_sampling=True)
    assert len(sampled.groups) > 4
    assert {rollout.problem_id for rollout in sampled.rollouts} == {"p1", "p4"}
    assert len(sampled.batch) == 8
    assert (sampled.batch.advantages.abs() > 0.4).all()
    plain = step(dynamic_sampling=False)
    assert len(plain.groups) == 4
    assert plain.metrics["rollout/kept_rate"] == 1


@every_algorithm
def test_overlong_filtering_masks_truncated_rollouts_alone(name):
    cut, whole = make_rollout(finish_reason="length"), make_rollout(completion=(6, 1), reward=1.0)
    batch = make(name, mask_truncated=True).make_batch([make_group(cut, whole)], SAMPLING)
    assert batch.loss_mask.tolist() == [[False, False, False], [True, True, False]]
    assert make(name).make_batch([make_group(cut, whole)], SAMPLING).loss_mask.sum() == 5


@every_algorithm
def test_the_overlong_punishment_is_added_before_advantages_are_taken(name):
    # 10 tokens at most, buffer 4: 6 tokens cost nothing, 8 half a point, 10 a whole one.
    group = make_group(
        *[make_rollout("a", range(2, 2 + n), reward=r) for n, r in ((6, 2.0), (8, 1.0), (10, 1.0), (5, 0.5))]
    )
    module = make(name, overlong_buffer_tokens=4)
    assert module.rewards([group], SAMPLING).tolist() == [2.0, 0.5, 0.0, 0.5]
    # mean 3/4, squared deviations 25/16 + 1/16 + 9/16 + 1/16 = 9/4, over 3 is 3/4
    scale = {"std": (3 / 4) ** 0.5, "mean": 3 / 4, "none": 1.0}[SLOW[name].divisor]
    advantages = module.make_batch([group], SAMPLING).advantages.tolist()
    assert advantages == pytest.approx([a / scale for a in (1.25, -0.25, -0.75, -0.25)], abs=1e-5)


@every_algorithm
@pytest.mark.parametrize(
    ("rewards", "successes"),
    [((1.0, 1.0, 1.0), (0, 1, 2)), ((0.0, 0.0, 0.0), ()), ((-1.0, -1.0, -1.0), ()), ((0.5, 0.5, 0.5), (1,))],
)
def test_the_overlong_punishment_never_decides_alone(name, rewards, successes):
    """In a group that the task does not tell apart, the longest rollout got an advantage of -1."""
    rollouts = [
        make_rollout("a", range(2, 2 + n), reward=reward, success=i in successes)
        for i, (n, reward) in enumerate(zip((6, 8, 10), rewards, strict=True))
    ]
    module = make(name, overlong_buffer_tokens=4, dynamic_sampling=False)
    assert module.make_batch([make_group(*rollouts)], SAMPLING).advantages.tolist() == [0.0, 0.0, 0.0]


@every_algorithm
def test_in_a_group_without_a_success_the_tasks_own_rewards_decide(name):
    """Partial credit of 0.1: shaped before it is normalised, it would be a tenth of what length is."""
    rewards = [0.1, 0.0, 0.0]
    group = make_group(
        *[make_rollout("a", range(2, 2 + n), reward=r) for n, r in zip((10, 6, 6), rewards, strict=True)]
    )
    shaped = make(name, overlong_buffer_tokens=4).make_batch([group], SAMPLING).advantages
    assert torch.equal(shaped, make(name).make_batch([group], SAMPLING).advantages)
    assert shaped[0] > 0


@every_algorithm
def test_a_buffer_as_long_as_a_completion_is_refused(name):
    module = make(name, overlong_buffer_tokens=10)
    assert module.validate(SamplingParams(max_new_tokens=11)) == []
    assert module.validate(SAMPLING) == ["--algo.overlong_buffer_tokens 10 must be below --engine.max_new_tokens 10"]


# --- KL in the reward ---


def kl_advantages(name, groups, beta):
    """Advantages with k1 in the reward, and each rollout's KL, by the slow logprobs of a policy that has moved."""
    module = make(name, kl_beta=beta, kl_estimator="k1", kl_in="reward")
    module.policy = make_policy()
    module.setup("fit")
    module.configure_model()
    moved = moved_policy()
    batch = off_policy(module.make_batch(groups, SAMPLING), moved)
    module.policy.load_state_dict(moved.state_dict())
    module.record = lambda metrics: None
    old = batch.old_logprobs
    reference = slow_logprobs(make_policy(), batch)
    divergences = [float((old[i, : len(row)].double() - row).sum()) for i, row in enumerate(reference)]
    return module.prepare(batch).advantages.tolist(), divergences


@every_algorithm
@pytest.mark.parametrize("beta", [1e-3, 0.5])
def test_kl_in_the_reward_is_added_to_the_advantages_of_the_task(name, beta):
    """-beta (KL - the group's mean KL), whether the task's rewards are normalised or not, equal or not."""
    rollouts = [("a", 1.0, 3), ("a", 0.0, 5), ("a", 0.0, 2), ("b", 1.0, 4), ("b", 1.0, 7), ("b", 1.0, 1)]
    made = [make_rollout(p, range(3 + n, 3 + 2 * n), reward=reward) for p, reward, n in rollouts]
    groups = [make_group(*made[:3]), make_group(*made[3:])]
    advantages, divergences = kl_advantages(name, groups, beta)
    scale = {"std": (1 / 3) ** 0.5, "mean": 1 / 3, "none": 1.0}[SLOW[name].divisor]
    of_task = [2 / 3 / scale, -1 / 3 / scale, -1 / 3 / scale, 0.0, 0.0, 0.0]
    for start in (0, 3):
        mean = sum(divergences[start : start + 3]) / 3
        expected = [of_task[i] - beta * (divergences[i] - mean) for i in range(start, start + 3)]
        assert advantages[start : start + 3] == pytest.approx(expected, abs=1e-4 * max(beta, 0.01) + 1e-5)
    assert max(abs(a) for a in advantages[3:]) > 0.1 * beta
    assert max(abs(a) for a in advantages[3:]) < 10 * beta


# --- KL --------------------------------------------------------------------------------------------------------------


@every_algorithm
def test_a_kl_target_moves_beta_and_a_reset_the_reference(name):
    module = make(name, kl_beta=0.5, kl_target=1e-4, reference_reset_steps=2, lr=0.01, warmup_steps=0)
    metrics = StepMetrics()
    steps = [step_of(random_batch(seed=seed, max_new_tokens=12), seed) for seed in range(3)]
    fit(module, make_policy(), steps, [MoveTo(moved_policy()), metrics])
    measured = [step["policy/kl_nats"] for step in metrics.steps]
    # The first two steps are far above the target, which counts as a fifth; the third begins at its reference.
    assert min(measured[:2]) > 0.01
    assert measured[2] == pytest.approx(0.0, abs=1e-9)
    assert [step["train/kl_beta"] for step in metrics.steps] == pytest.approx([0.51, 0.5202, 0.5202 * 0.98])


# --- importance weights ---


@pytest.mark.parametrize(
    ("settings", "gap", "said"),
    [
        (
            {"importance_correction": "truncate", "importance_level": "sequence"},
            0.5,
            "--algo.importance_level sequence multiplies the weights of all tokens of a rollout",
        ),
        ({"importance_correction": "mask"}, 3.0, "the policy is far from the engine's (policy/engine_gap_nats_max)"),
        ({"importance_correction": "truncate", "importance_level": "geometric"}, 0.5, None),
        ({}, 3.0, None),
    ],
)
def test_lost_weight_is_told_once(settings, gap, said, recwarn):
    """An engine that makes each token likelier by `gap` than the trainer does."""
    policy, metrics = make_policy(), StepMetrics()
    batch = random_batch()
    engine = (policy.scores_no_grad(batch).logprobs + gap) * batch.completion_mask
    batch = replace(batch, sampling_logprobs=engine)
    fit(GRPO(lr=1e-30, **settings), policy, [step_of(batch, index) for index in range(3)], [metrics])
    told = [str(warning.message) for warning in recwarn if "importance weights are" in str(warning.message)]
    assert len(told) == (said is not None)
    if said is not None:
        assert told[0].startswith("rollout step 1: importance weights are 0.")
        assert said in told[0]
        assert metrics.steps[0]["policy/importance_vanished_share"] > 0.4
        assert metrics.steps[0]["policy/importance_capped_share"] == 0


# --- passes -----------------------------------------------------------------------------------------------------------


class Updates(L.Callback):
    """Notes rows, old logprobs and weights of every update."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        batch, policy = pl_module.pending.batch, make_policy()
        policy.load_state_dict(pl_module.policy.state_dict())
        self.seen.append((batch.rows.tolist(), batch, policy))


@every_algorithm
def test_passes_go_through_the_same_mini_batches_again(name):
    groups, updates = random_groups(), Updates()
    module = make(name, passes=3, updates_per_step=2, lr=0.01, warmup_steps=0)
    batch = module.make_batch(groups, SAMPLING)
    trainer = fit(module, make_policy(), [RolloutStep(0, tuple(groups), batch, {})], [updates])
    assert trainer.global_step == 6
    assert [rows for rows, _, _ in updates.seen] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]] * 3
    generated = make_policy()
    for rows, mini, policy in updates.seen[2:]:
        for row, old in zip(rows, mini.old_logprobs, strict=True):
            expected = slow_logprobs(generated, batch.select(torch.tensor([row])))[0]
            torch.testing.assert_close(old[: len(expected)].double(), expected.detach(), rtol=1e-5, atol=1e-5)
        now = policy.scores_no_grad(mini).logprobs
        assert float((now - mini.old_logprobs).abs().max()) > 0.01


def test_a_later_pass_equals_the_slow_implementation():
    """The second update on all rollouts: at the weights after the first, against the logprobs before it."""
    groups, recorder, updates = random_groups(), GradientRecorder(), Updates()
    module = GRPO(passes=2, lr=0.02, warmup_steps=0, entropy_coef=0.1, kl_beta=0.2)
    batch = off_policy(module.make_batch(groups, SAMPLING), make_policy())
    batch = replace(batch, old_logprobs=None)
    fit(module, make_policy(), [RolloutStep(0, tuple(groups), batch, {})], [recorder, updates])
    old = make_policy().scores_no_grad(batch).logprobs
    _, (_, _, policy) = updates.seen
    slow = replace(SLOW["grpo"], entropy_coef=0.1, beta=0.2)
    expected, _ = slow.update(policy, make_policy(), groups, replace(batch, old_logprobs=old))
    assert relative_difference(recorder.gradients[1], expected) < 1e-5
    assert relative_difference(recorder.gradients[0], expected) > 0.1
