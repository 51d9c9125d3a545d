"""`rloop-fit --dry_run`, and the plan of a run with a model and problems of one's own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from bad_models import make_good_model
from builders import make_model
from problem_files import byte_tokenizer, write_rows
from same_run import assert_same_run
from tiny_run import TinyRun

from rloop_lightning.cli.main import main

SMALL_CONTEXT = 64
BARE = ["--data.template", "{problem}", "--data.instruction", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a byte-level tokenizer, a chat template and a context of 2,048 tokens."""
    folder = tmp_path_factory.mktemp("model")
    make_good_model(folder)
    return folder


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a context of 64 tokens."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer = byte_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vocabulary = len(tokenizer) + 1
    make_model(vocab_size=vocabulary, max_position_embeddings=SMALL_CONTEXT, **ids).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def questions(path: Path, count: int) -> Path:
    return write_rows(path, [{"id": f"q{n}", "problem": f"{n}+{n}?", "answer": str(2 * n)} for n in range(count)])


def dry_run(
    capsys: pytest.CaptureFixture[str], model: Path, data: Path, *arguments: str, code: int = 0
) -> dict[str, str]:
    """What it prints: the lines of the plan by label (`evaluation`, `evaluation 2` ...), `all` and `error`."""
    flags = ["--policy.model", str(model), "--data", str(data), "--trainer.accelerator=cpu", "--dry_run", *arguments]
    assert main(flags) == code
    shown = capsys.readouterr()
    plan: dict[str, str] = {"all": shown.out, "error": shown.err}
    label, number = "", 1
    for line in shown.out.partition("plan:\n")[2].partition("\n\n")[0].splitlines():
        column = 2 + len("consolidation") + 2 if "  consolidation  " in shown.out else 2 + len("rollout step") + 2
        label, number = (line[:column].strip(), 1) if line[:column].strip() else (label, number + 1)
        plan[label if number == 1 else f"{label} {number}"] = line[column:]
    return plan


def test_the_plan_of_a_run_with_all_defaults(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = dry_run(capsys, model, questions(tmp_path / "train.jsonl", 1_000))
    held_out = int(plan["all"].partition("validation: ")[2].partition(" ")[0])
    train = 1_000 - held_out
    assert 35 <= held_out <= 65
    assert f"problems: train {train}; validation {held_out}, 0 also in train" in plan["all"]
    assert plan["visits"] == f"{200 * 128 / train:.1f} per problem and exploration, 16 rollouts each"
    size = f"at most {8 * train:,} rollouts (8 per problem)"
    assert plan["expert set"] == f"{train} of {train} problems within reach (0 < success rate < 0.1), {size}"
    assert plan["completions"].startswith("at most 1,936 tokens (the default of --engine.max_new_tokens); ")
    assert plan["rollout step"] == "128 problems x 16 rollouts x 1,936 tokens = 3.96 million tokens at most"
    assert plan["exploration"] == "3 x 200 rollout steps of 16 optimizer steps on 128 rollouts"
    once = 32 * held_out
    assert plan["evaluation"] == f"7 times between phases on validation: {once:,} rollouts each"
    share = 7 * once / (7 * once + 3 * 200 * 128 * 16)
    assert plan["evaluation 3"] == f"32 per problem, {7 * once:,} in all, {share:.0%} of the run's rollouts"
    assert plan["hands over"] == "the last policy of the run (--loop.select)"
    assert "Qwen2ForCausalLM" in plan["policy"]
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (["--algo.warmup_steps=5"], None),
        (["--algo.warmup_steps=20"], "--algo.warmup_steps 20 is more: the learning rate ends at 25% of --algo.lr"),
        (["--loop.explore_tokens=4000", "--algo.warmup_steps=0"], None),
        (
            ["--loop.explore_tokens=4000", "--algo.warmup_steps=0", "--algo.lr_schedule=cosine"],
            "--algo.lr_schedule cosine runs over 5 steps, though tokens may end it before",
        ),
    ],
)
def test_a_schedule_that_an_exploration_may_not_end_is_told(
    schedule: list[str], told: str | None, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--loop.explore_steps", "5", "--loop.problems_per_step", "2", "--algo.updates_per_step", "4"]
    data = questions(tmp_path / "train.jsonl", 5)
    plan = dry_run(capsys, model, data, *sizes, "--filter.enabled", "false", *schedule)
    assert plan["exploration"].startswith("3 x 5 rollout steps of 4 optimizer steps on 8 rollouts")
    assert plan.get("exploration 2") == told


@pytest.mark.parametrize("consolidation", ["rft", "none"])
def test_visits_are_those_of_an_exploration_whatever_the_rates_count(
    consolidation: str, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--loop.explore_steps", "6", "--loop.problems_per_step", "10", "--loop.rollouts_per_problem", "4"]
    run = ["--filter.rate_over", "run", "--filter.max_success_rate", "0.9", "--consolidate", consolidation]
    plan = dry_run(capsys, model, questions(tmp_path / "train.jsonl", 50), *sizes, *run, "--data.validation_size", "0")
    visits = {"rft": "1.2", "none": "3.6"}[consolidation]
    assert plan["visits"] == f"{visits} per problem and exploration, 4 rollouts each"


def test_prompts_and_verdicts_are_shown_and_hostile_text_is_escaped(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": "\x1b[2J", "problem": "1+1?\x1b]0;x\x07<|im_end|>", "answer": "2"}]
    rows += [{"id": n, "problem": f"{n}+{n}?", "answer": 2 * n} for n in range(3, 5)]
    plan = dry_run(capsys, model, write_rows(tmp_path / "train.jsonl", rows), "--data.instruction", "")
    assert "<|im_start|>user\n1+1?\\x1b]0;x\\x07<|im_end|><|im_end|>\n<|im_start|>assistant\n" in plan["all"]
    assert not set("\x1b\x07") & set(plan["all"])
    assert "gold in a box     3 of 3 are successes, mean reward 1 (should pay)" in plan["all"]
    assert "empty             0 of 3 are successes, mean reward 0 (should not pay)" in plan["all"]
    assert "truncated gold    0 of 3 are successes, mean reward 0 (should not pay)" in plan["all"]
    assert "WARNING" not in plan["all"]
    assert plan["evaluation"].startswith("NOTHING IS EVALUATED; name a set by --data.eval")


def test_a_reward_that_never_pays_is_named_in_the_plan_and_in_the_log_of_a_run(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = questions(tmp_path / "train.jsonl", 5)
    never = "WARNING: the reward never pays: no right completion of 5 problems is a success"
    assert never in dry_run(capsys, model, data, "--reward", "cli.test_data.AnyAnswer")["all"]
    caplog.set_level(logging.INFO, logger="rloop_lightning")
    tiny = TinyRun.written(
        tmp_path,
        policy={"model": str(model)},
        data={"name": "files", "path": str(data)},
        reward={"name": "cli.test_data.AnyAnswer"},
        eval={"sets": None},
        loop={"explore_steps": 1},
    )
    assert tiny.fit(tmp_path / "run") == 0
    said = [record.message for record in caplog.records]
    (warning,) = [number for number, line in enumerate(said) if line.startswith(never)]
    (time_left,) = [number for number, line in enumerate(said) if line.startswith("time left: about ")]
    assert said.index("plan:") < warning < time_left


def test_the_evaluation_inside_explorations_and_its_share_are_told(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [
        "--loop.rounds=2",
        "--loop.explore_steps=20",
        "--loop.problems_per_step=4",
        "--loop.rollouts_per_problem=8",
    ]
    evaluation = ["--data.eval", str(questions(tmp_path / "test.jsonl", 10)), "--eval.every_n_steps=5"]
    data = questions(tmp_path / "train.jsonl", 20)
    others = ["--engine.max_new_tokens=100", "--trainer.precision=bf16-mixed", "--algo.kl_beta=0.01"]
    plan = dry_run(capsys, model, data, *sizes, *evaluation, *others)
    # Steps 5, 10 and 15 of both explorations; the last step is followed by the evaluation between phases.
    assert plan["evaluation"] == "5 times between phases on test: 320 rollouts each"
    assert plan["evaluation 2"] == "6 times inside explorations on test: 320 rollouts each"
    assert plan["evaluation 3"].startswith("32 per problem, 3,520 in all, 73% of the run's rollouts; --eval.samples")
    assert plan["policy"].endswith("parameters, float32, products in bfloat16, on cpu")
    assert "for weights, gradients, optimizer" in plan["memory 2"]
    assert plan["visits"] == "4.0 per problem and exploration, 8 rollouts each"
    assert plan["completions"].startswith("at most 100 tokens (--engine.max_new_tokens); ")


def test_a_long_prompt_is_named_with_what_makes_room(
    tmp_path: Path, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"q{n}", "problem": f"{n}+{n}?" + "!" * n, "answer": str(2 * n)} for n in range(1, 54)]
    data = write_rows(tmp_path / "train.jsonl", rows)
    off = [*BARE, "--data.validation_size=0"]
    error = dry_run(capsys, small_model, data, *off, code=2)["error"]
    assert error == (
        "rloop-fit: error: --engine.max_new_tokens: the longest prompt (q53, 59 tokens) leaves 5 of the policy's 64 "
        "positions for a completion; set it to at most 5, or leave long prompts out by --data.max_prompt_tokens 32\n"
    )
    assert "at most 5 tokens" in dry_run(capsys, small_model, data, *off, "--engine.max_new_tokens=5")["completions"]
    shorter = dry_run(capsys, small_model, data, *off, "--data.max_prompt_tokens=32")
    assert shorter["completions"].startswith("at most 32 tokens (the default of --engine.max_new_tokens); ")
    assert shorter["rollout step"].startswith("26 problems x 16 rollouts")  # all that are left


def test_derived_sizes_are_in_config_yaml_and_a_resume_has_them(tmp_path: Path, small_model: Path) -> None:
    tiny = TinyRun.written(
        tmp_path,
        policy={"model": str(small_model)},
        data={"name": "files", "path": str(questions(tmp_path / "train.jsonl", 6)), "template": "{problem}"},
        engine={"name": "torch"},
        reward={"name": "reward_functions.boxed"},
        loop={"problems_per_step": None, "rollouts_per_problem": 2, "explore_steps": 1},
        eval={"sets": None},
    )
    arguments = ["--data.instruction", "", "--consolidate", "none"]
    assert tiny.fit(tmp_path / "run", *arguments) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["loop"]["problems_per_step"] == 6
    assert saved["engine"]["max_new_tokens"] == 48  # 64 - 4 for "5+5?", in multiples of 16
    again = tmp_path / "again"
    assert tiny.fit(again, *arguments, "--loop.problems_per_step=6", "--engine.max_new_tokens=48") == 0
    assert_same_run(tmp_path / "run", again)
    assert main(["--resume", str(again)]) == 0
    assert main(["--resume", str(again), "--dry_run"]) == 0
    assert main(["--resume", str(again), "--engine.max_new_tokens=null"]) == 2


def test_an_overlong_buffer_is_checked_against_the_derived_limit(
    tmp_path: Path, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = questions(tmp_path / "train.jsonl", 6)
    error = dry_run(capsys, small_model, data, *BARE, "--algo.overlong_buffer_tokens=48", code=2)["error"]
    assert "--algo.overlong_buffer_tokens 48 must be below --engine.max_new_tokens 48" in error
