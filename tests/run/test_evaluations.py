"""Evaluations of a run: their own sampling, their records, and the table and plots that grow with them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from killing import Kill, Patch
from matplotlib.image import imread
from tiny_run import TinyRun, resume

from rloop_lightning.evaluation import forgetting_rates
from rloop_lightning.run.metrics_csv import read_metrics


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sets with greedy evaluations, also inside, whose limit is above that of the training."""
    folder = tmp_path_factory.mktemp("greedy")
    sampling = {"temperature": 0, "samples": 1, "k": [1], "max_new_tokens": 40}
    tiny = TinyRun.written(folder, eval={**sampling, "every_n_steps": 2, "sets": ["test", "ood"], "max_problems": 3})
    return tiny.finished(folder / "run")


def test_evaluations_have_a_sampling_of_their_own_which_is_on_record(greedy: Path) -> None:
    rows = pq.read_table(greedy / "round-0" / "evaluations").to_pylist()
    assert {(row["temperature"], row["top_p"], row["top_k"], row["max_new_tokens"]) for row in rows} == {(0, 1, 0, 40)}
    assert max(row["length_mean"] for row in rows) > 24  # the limit of the training
    assert "Evaluation: one rollout per problem, greedy, at most 40 new tokens." in (greedy / "results.md").read_text()
    pool = pq.read_table(greedy / "round-0" / "pool")
    assert max(pool["length"].to_pylist()) == 24
    assert len(set(pool["text"].to_pylist())) > 16  # of 16 problems: the training samples


def test_every_evaluation_keeps_a_row_for_each_problem_that_agrees_with_metrics_csv(greedy: Path) -> None:
    folder = greedy / "round-0" / "evaluations"
    names = ["base", "consolidated", "explored", "step-000002"]
    assert sorted(path.stem for path in folder.glob("*.parquet")) == names
    metrics = {(row["round"], row["phase"], row["step"]): row for row in read_metrics(greedy / "metrics.csv")}
    for name in names:
        rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
        assert len(rows) == 6
        for evaluated in ("test", "ood"):
            ours = [row for row in rows if row["set"] == evaluated]
            (key,) = {(row["round"], row["phase"], row["step"]) for row in ours}
            assert metrics[key][f"eval/{evaluated}/pass@1"] == sum(row["successes"] for row in ours) / 3
            truncated = sum(row["truncated"] for row in ours) / 3
            assert metrics[key][f"eval/{evaluated}/truncated_rate"] == pytest.approx(truncated)
    rates = forgetting_rates(folder / "base.parquet", folder / "explored.parquet")
    assert list(rates) == ["test", "ood"]


def test_a_limit_of_the_evaluation_is_checked_against_the_context(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.fit(tmp_path / "run", "--eval.max_new_tokens=250") == 2
    said = capsys.readouterr().err
    assert "12 prompts don't fit --policy.model's 256 positions together with --eval.max_new_tokens 250" in said
    assert "--engine.max_new_tokens" not in said
    assert tiny.fit(tmp_path / "run", "--engine.max_new_tokens=250", "--eval.max_new_tokens=24") == 2
    said = capsys.readouterr().err
    assert "40 prompts don't fit --policy.model's 256 positions together with --engine.max_new_tokens 250" in said


def test_greedy_evaluation_of_many_rollouts_is_refused_by_name(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.fit(tmp_path / "run", "--eval.temperature=0") == 2
    assert "--eval.samples 1 and --eval.k [1]" in capsys.readouterr().err


def test_the_terminal_shows_each_policy_as_soon_as_it_is_evaluated(greedy: Path) -> None:
    lines = greedy.with_suffix(".log").read_text().splitlines()
    shown = [line for line in lines if " pass@1 " in line and line.startswith(("base: ", "round 1 "))]
    assert [line.split(":")[0] for line in shown] == ["base", "round 1 explored", "round 1 consolidated"]
    first = read_metrics(greedy / "metrics.csv")[0]
    assert shown[0] == f"base: test pass@1 {first['eval/test/pass@1']:.3f}; ood pass@1 {first['eval/ood/pass@1']:.3f}"


PLOTS = [
    *("coverage.png", "entropy.png", "gradient_norm.png", "length.png", "reward_and_pass.png", "similarity.png"),
    "round-0-pool.png",
]

# Before the state of a phase is written, its results are. The state is also written when the run begins, twice, and
# when an exploration begins.
MOMENTS = {
    "the base": (Kill("os:replace", 3, "run/state.json"), ["base"], [], 1),
    "the exploration": (
        Kill("os:replace", 5, "run/state.json"),
        ["base", "round 1 explored"],
        sorted(PLOTS),
        2,
    ),
    "the explored policy": (
        Kill("os:replace", 6, "run/state.json"),
        ["base", "round 1 explored"],
        sorted(PLOTS),
        3,
    ),
}


@pytest.mark.parametrize("phases", ["long", "short"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_table_is_there_after_every_phase_and_the_plots_after_long_ones(
    moment: str, phases: str, tiny: TinyRun, finished: Path, tmp_path: Path
) -> None:
    kill, policies, plots, done = MOMENTS[moment]
    out, log = tmp_path / "run", tmp_path / "log"
    always = Patch("rloop_lightning.run.results:DRAWING_SHARE", 1e9, kill)  # as if drawing took no time
    drawing = replace(tiny, draws=True)
    assert drawing.fit_apart(out, log, always if phases == "long" else kill) == -9, log.read_text()
    table = (out / "results.md").read_text()
    lines = [line for block in table.split("\n\n") if block.startswith("|") for line in block.splitlines()[2:]]
    assert list(dict.fromkeys(line.split("|")[1].strip() for line in lines)) == policies
    assert f"- in progress: {done} of 5 phases are complete" in table
    assert sorted(path.name for path in (out / "plots").glob("*")) == (plots if phases == "long" else [])
    assert all(imread(path).ndim == 3 for path in (out / "plots").glob("*.png"))
    assert resume(out, log, draws=True) == 0, log.read_text()
    assert (out / "results.md").read_text() == (finished / "results.md").read_text()
    for plot in (finished / "plots").iterdir():
        assert (out / "plots" / plot.name).read_bytes() == plot.read_bytes()


def test_a_resume_of_a_complete_run_draws_the_plots_that_are_missing(finished: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(finished, out)
    for name in ("entropy.png", "round-0-pool.png"):
        (out / "plots" / name).unlink()
    assert resume(out, log, draws=True) == 0, log.read_text()
    for plot in (finished / "plots").iterdir():
        assert (out / "plots" / plot.name).read_bytes() == plot.read_bytes()
