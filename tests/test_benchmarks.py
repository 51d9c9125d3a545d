"""Every benchmark runs, at toy size, from its command line to its report. No time is asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import (
    generate_vs_hf,
    interval_coverage,
    learning,
    limit,
    measure,
    options,
    real,
    report,
    same_gradient,
    step_vs_trl,
    studies,
    task,
)
from benchmarks.__main__ import main
from benchmarks.models import SIZES, EvenLetters, RandomPrompts, save_model
from benchmarks.pool_of_rollouts import PoolShape, write_pool
from rloop_lightning.run.metrics_csv import read_metrics


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(SIZES["toy"], tmp_path_factory.mktemp("models") / "toy")


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def table(out: Path, part: str, title: str) -> dict[str, dict[str, str]]:
    """A table of results.json: cells by the row's first cell and by column."""
    (found,) = [t for t in results(out)[f"{part} on cpu"]["tables"] if t["title"].startswith(title)]
    return {row[0]: dict(zip(found["columns"][1:], row[1:], strict=True)) for row in found["rows"]}


def test_a_step_of_ours_and_one_of_trl_take_turns_on_the_same_amount_of_work(tmp_path: Path) -> None:
    main(["step_vs_trl", "--toy", "--out", str(tmp_path)])
    measured = results(tmp_path)["step_vs_trl on cpu"]["raw"]["toy"]
    for side in ("ours", "TRL"):
        (step,) = measured["turns"][side]
        assert step["generated_tokens"] == pytest.approx(8 * step["mean_length"])
        assert 1 <= step["mean_length"] <= 8
        assert step["peak_bytes"] > step["base_bytes"] > 0
    for step in measured["parts"]:
        assert {"generate", "reward", "old logprobs", "forward", "backward", "optimizer"} == set(step["parts"])
        assert sum(step["parts"].values()) < step["seconds"]
    assert list(table(tmp_path, "step_vs_trl", "Where our step's time goes")) == ["toy"]


def test_what_belongs_to_no_part_of_a_step_is_everything_else() -> None:
    parts = {"generate": 0.5, "reward": 0.02, "forward": 0.6, "backward": 0.7, "optimizer": 0.1}
    report = measure.StepReport(2.0, generated_tokens=8, mean_length=2, reward=0, parts=parts)
    assert step_vs_trl._share_cells([report]) == ["25.0%", "1.0%", "0.0%", "30.0%", "35.0%", "5.0%", "4.0%"]


def test_a_part_clock_counts_only_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Work:
        def do(self) -> int:
            return 7

    ticks = iter([1.0, 3.5])
    monkeypatch.setattr(measure, "now", lambda device: next(ticks))
    clock = measure.PartClock("cpu")
    clock.watch(Work, "do", "work")
    assert Work().do() == 7
    assert clock.take() == {}
    clock.running = True
    assert Work().do() == 7
    assert clock.take() == {"work": 2.5}


def test_both_sides_have_the_same_gradient_on_the_same_rollouts(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = task.Task(str(toy_model), "benchmarks.models.RandomPrompts", {"count": 8}, 4, 4, max_new_tokens=8)
    request = task.trl_request(work, {"bf16": False, "pieces": 2}, "cpu", 1, tmp_path)
    monkeypatch.setattr(sys, "argv", ["same_gradient", json.dumps(request)])
    same_gradient.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["cosine"] == pytest.approx(1, abs=1e-6)
    assert found["norm_ours"] == pytest.approx(found["norm_trl"], rel=1e-3)
    assert found["norm_ours"] > 0


def test_generation_is_compared_at_equal_and_at_spread_lengths(tmp_path: Path) -> None:
    main(["generate_vs_hf", "--toy", "--out", str(tmp_path)])
    equal, spread = results(tmp_path)["generate_vs_hf on cpu"]["raw"]["cases"]
    for side in ("ours", "generate"):
        assert equal["turns"][side][0]["lengths"] == [8] * 8
        lengths = spread["turns"][side][0]["lengths"]
        assert len(lengths) == 8
        assert 1 <= min(lengths) < max(lengths) <= 16


def test_a_turn_of_ours_and_of_generate_end_at_the_same_stop_tokens(tmp_path: Path) -> None:
    given = options.parse(["generate_vs_hf", "--toy", "--out", str(tmp_path)])
    model = save_model(SIZES["toy"], tmp_path / "model", stop_rate=0.5)
    request = generate_vs_hf.Request(RandomPrompts(count=32).train(), 16, 64, given.device)
    for side in (generate_vs_hf.ours, generate_vs_hf.hugging_face):
        lengths = side(model, "fp32", request)().lengths
        assert np.mean(lengths) == pytest.approx(55 / 28, abs=0.3)  # 28 of 55 tokens stop


def test_the_arithmetic_is_that_of_the_weights(toy_model: Path) -> None:
    size = SIZES["toy"]
    step = measure.StepReport(1, generated_tokens=6, mean_length=3, reward=0, trained_tokens=10, attended=0)
    work = task.Task("", "", {}, 1, 2, max_new_tokens=3)
    layer, head = 4 * 32 * 32 + 3 * 32 * 48, 32 * 55
    assert (size.layer_weights, size.head_weights) == (layer, head)
    assert limit.update_flop(size, step) == 3 * 2 * (10 * layer + 6 * head)
    assert limit.generation_flop(size, work, step) == 2 * ((4 / 2 + 6) * layer + 6 * head)
    assert limit.decoded_bytes(size, work, step, "bf16") == 2 * 3 * (layer + head)
    assert size.forward_flop(0, 0, attended=5) == 4 * 32 * 5


@pytest.mark.parametrize("name", ["0.86M", "11.5M", "30M-32k"])
def test_the_sizes_are_what_their_names_say(name: str) -> None:
    size = SIZES[name]
    millions = (size.layer_weights + (size.head_weights if size.vocabulary > 1000 else 0)) / 1e6
    assert millions == pytest.approx(float(name.partition("M")[0]), rel=0.02)


def test_limit_names_every_ceiling(tmp_path: Path) -> None:
    main(["limit", "--toy", "--out", str(tmp_path)])
    ceilings = table(tmp_path, "limit", "Ceilings")
    assert {"fp32, square product", "bf16, product of toy", "copy"} <= set(ceilings)
    steps = results(tmp_path)["limit on cpu"]["raw"]["steps"]["toy, fp32"]
    assert all(0 < step["update_s"] < step["seconds"] for step in steps)


def test_scaling_filters_the_pools_that_it_wrote_and_starts_the_command(tmp_path: Path) -> None:
    main(["scaling", "--toy", "--out", str(tmp_path)])
    assert list(table(tmp_path, "scaling", "The pool filter")) == ["1,000", "2,000"]
    assert set(table(tmp_path, "scaling", "Start-up")) == {"rloop-fit --help", "to the first rollout"}
    assert set(table(tmp_path, "scaling", "A rollout step as it grows")) == {"vocabulary"}


def test_a_generated_pool_has_all_success_rates_and_repeats_its_successes(tmp_path: Path) -> None:
    write_pool(tmp_path / "small", PoolShape(rollouts=4000, problems=125))
    write_pool(tmp_path / "large", PoolShape(rollouts=2000, problems=125))
    write_pool(tmp_path / "large", PoolShape(rollouts=4000, problems=125))
    small, large = (pq.read_table(tmp_path / name).to_pylist() for name in ("small", "large"))
    assert small == large  # a larger pool is the smaller one and more
    assert len(small) == 4000
    rates = sorted(
        np.mean([row["success"] for row in small if row["problem_id"] == f"problem-{i:06d}"]) for i in range(125)
    )
    assert np.mean(np.array(rates) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert rates[-1] > 0.9
    successes = [(row["problem_id"], row["text"]) for row in small if row["success"]]
    assert len(set(successes)) < len(successes)
    assert all(row["length"] == len(row["completion_ids"]) == len(row["text"]) for row in small)


def test_answers_are_checked_as_often_as_there_are_responses(tmp_path: Path) -> None:
    responses = tmp_path / "responses.jsonl"
    lines = [{"gold": "4", "pred": rf"so \boxed{{{n}}}", "expected": n == 4} for n in (4, 5)]
    responses.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["reward_throughput", "--toy", "--out", str(tmp_path), "--responses", str(responses)])
    rows = table(tmp_path, "reward_throughput", "Checking answers")
    assert rows["MathReward, auto, 1 workers"]["agreement"] == "100.00%"
    assert rows["plain math-verify, sequential"]["agreement"] == "100.00%"


def test_what_is_not_measured_is_said(tmp_path: Path) -> None:
    main(["reward_throughput", "--toy", "--out", str(tmp_path), "--responses", str(tmp_path / "none.jsonl")])
    assert (
        "Not measured: there is no none.jsonl; name the file by --responses." in (tmp_path / "results.md").read_text()
    )


def test_a_part_that_is_measured_again_replaces_its_own_result_only(tmp_path: Path) -> None:
    for part, cell in (("limit", "1"), ("scaling", "2"), ("limit", "3")):
        report.save(tmp_path, part, "cpu", report.Result([report.Table(f"of {part}", ["a"], [[cell]])]))
    assert {name: entry["tables"][0]["rows"] for name, entry in results(tmp_path).items()} == {
        "limit on cpu": [["3"]],
        "scaling on cpu": [["2"]],
    }
    assert "### of scaling\n\n| a |\n| --- |\n| 2 |" in (tmp_path / "results.md").read_text()


def test_random_text_earns_the_reward_half_of_the_time() -> None:
    problems = RandomPrompts(count=400, seed=1).train()
    rewards = EvenLetters().rewards(problems, [problem.prompt for problem in problems])
    assert np.mean(rewards) == pytest.approx(0.5, abs=0.1)
    assert EvenLetters().rewards(problems[:3], ["aBc", "aB", ""]) == [1.0, 0.0, 1.0]


def test_sides_take_turns() -> None:
    order: list[str] = []
    measure.alternate({name: lambda name=name: order.append(name) for name in "AB"}, rounds=2)
    assert order == ["A", "B", "A", "B"]


def test_a_checkout_takes_turns_with_another(tmp_path: Path) -> None:
    main(["step_vs_checkout", "--toy", "--against", str(measure.ROOT), "--out", str(tmp_path)])
    (turns,) = results(tmp_path)["step_vs_checkout on cpu"]["raw"].values()
    assert set(turns) == {"before", "after"}
    same = [[step["generated_tokens"] for step in side] for side in turns.values()]
    assert same[0] == same[1]  # the same flags and weights


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    with (
        measure.Side("ours", "benchmarks.side_rloop", ["--no.such.flag=1"], tmp_path / "log") as side,
        pytest.raises(RuntimeError, match=r"(?s)ours ended with exit code \d.*no.such.flag"),
    ):
        side.step()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["speed"], "no part 'speed'"),
        (["limit", "--sizes", "2M"], "--sizes: no size '2M'"),
        (["limit", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["limit", "--toy"], "--toy needs --out"),
        (["step_vs_checkout"], "step_vs_checkout needs --against"),
        (["step_vs_checkout", "--against", "/none"], "step_vs_checkout needs --against"),
        (["generate_vs_hf", "--vllm-python", "/none"], "--vllm-python /none: no such file"),
        (["limit", "--device", "cuda"], "--device cuda: torch finds no GPU here"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "_has_gpu", lambda: False)
    with pytest.raises(SystemExit) as ended:
        options.parse(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_study_of_learning_reads_what_its_runs_left_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "ALGORITHMS", {"gspo": ""})
    command = ["learning", "--toy", "--out", str(tmp_path), "--keep", str(tmp_path / "runs")]
    main(command)
    (rows,) = [list(table(tmp_path, "learning", "Every algorithm").items())]
    (outcome,) = results(tmp_path)["learning on cpu"]["raw"]["gspo"]
    assert rows[0][0] == "gspo"
    assert rows[0][1]["gain"] == f"{outcome['after'] - outcome['before']:.3f}"
    run = tmp_path / "runs" / "learning" / "gspo-seed-0"
    steps = [row for row in read_metrics(run / "metrics.csv") if row["phase"] == "explore"]
    assert len(steps) == 2
    assert outcome["stderr"] > 0
    # A run that is complete is read, not made again: neither its log nor its table is written a second time.
    before = {path: path.stat().st_mtime_ns for path in (run.with_suffix(".log"), run / "results.md")}
    main(command)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert results(tmp_path)["learning on cpu"]["raw"]["gspo"] == [outcome]


def test_a_study_names_the_run_that_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"--loop.rounds 0 .* exit code 2:[\s\S]*loop.rounds: expected an integer"):
        studies.run_all({"none": ["--loop.rounds", "0"]}, [], seeds=1, folder=tmp_path)


def test_the_coverage_of_intervals_is_written_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\nold\n".join(interval_coverage.MARKS) + "\nafter\n")
    interval_coverage.main(["--studies", "3", "--seeds", "2", "--document", str(page)])
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written
    assert written.count("| typical |") == 2 + 3


def test_updates_and_decoding_at_the_shapes_of_real_models(tmp_path: Path) -> None:
    main(["real", "--toy", "--out", str(tmp_path)])
    updates = table(tmp_path, "real", "Update")
    assert list(updates) == [
        "toy, 64 tokens, 4 x 12",
        "toy, 64 tokens, 4 x 12, checkpointing",
        "toy, 64 tokens, 4 x 12, LoRA 4",
    ]
    raw = results(tmp_path)["real on cpu"]["raw"]
    for cost in raw["updates"].values():
        parts = cost["forward_s"] + cost["backward_s"] + cost["optimizer_s"]
        assert parts == pytest.approx(cost["seconds"])
    assert [one["name"].partition(":")[0] for one in raw["decoding"]] == ["TorchEngine", "transformers generate"]


def test_the_arithmetic_of_an_update_by_hand() -> None:
    size = SIZES["toy-qwen3"]  # 2 layers, hidden 32, 4 heads of 16, 2 key heads, MLP 48, 55 tokens
    assert size.query_width == 64
    assert size.layer_weights == 2 * (2 * 32 * (64 + 32) + 3 * 32 * 48)
    shape = real.Shape(tokens=64, rollouts=2)
    assert (shape.prompt, shape.completion) == (16, 24)
    assert shape.attended == 16 * 17 // 2 + 2 * (24 * 25 // 2 + 24 * 16)
    products, attention = 2 * (64 * size.layer_weights + 48 * 32 * 55), 4 * 2 * 64 * shape.attended
    assert real.Update("toy-qwen3", shape).flop() == 3 * (products + attention)
    assert real.Update("toy-qwen3", shape, lora=4).flop() == 2 * products + 3 * attention


def test_the_memory_plan_is_compared_with_peaks(tmp_path: Path) -> None:
    main(["memory", "--toy", "--out", str(tmp_path)])
    updates = results(tmp_path)["memory on cpu"]["raw"]["updates"]
    assert list(updates) == ["full, 2 x 8 + 12 tokens", "LoRA, 2 x 8 + 12 tokens, checkpointing"]
    for update in updates.values():
        assert update["peak_bytes"] > update["loaded_bytes"] > update["planned_bytes"] > 0
    assert list(table(tmp_path, "memory", "The memory plan of updates")) == list(updates)
