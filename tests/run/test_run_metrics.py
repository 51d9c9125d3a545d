"""metrics.csv against the pools and the records of the run: diversity, outcomes, coverage, intervals, forgetting."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from killing import Kill
from same_run import assert_same_run, deterministic_rows
from tiny_run import TinyRun, resume

from rloop_lightning.evaluation import forgetting_rates, pass_at_k_interval
from rloop_lightning.rewards.countdown import CountdownReward
from rloop_lightning.run.metrics_csv import read_metrics

Rows = list[dict[str, Any]]


def written(folder: Path) -> TinyRun:
    """Eight training problems, each of which comes again, and two updates in each rollout step."""
    return TinyRun.written(
        folder,
        data={"train_size": 8},
        engine={"max_new_tokens": 32},
        algo={"updates_per_step": 2, "lr": 1e-3},
        loop={"rounds": 2, "checkpoint_every_n_steps": 2},
        capture={"every_n_steps": 3, "extra_rollouts": 2},
        eval={"samples": 4, "k": [1, 4], "max_problems": 4, "sets": ["test", "ood"], "every_n_steps": 2},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metrics")
    return written(folder).finished(folder / "run")


def explored(run: Path) -> Rows:
    return [row for row in read_metrics(run / "metrics.csv") if row["phase"] == "explore"]


def steps(run: Path, round: int) -> Iterator[tuple[Mapping[str, Any], Rows]]:
    """The row of each rollout step of a round, and its rollouts from the pool."""
    for row in explored(run):
        if row["round"] == round:
            shard = run / f"round-{round}" / "pool" / f"step-{row['step']:06d}.parquet"
            yield row, pq.read_table(shard).to_pylist()


def by_problem(rollouts: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for rollout in rollouts:
        found.setdefault(rollout["problem_id"], []).append(rollout)
    return found


def jaccard(pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[float]:
    values = []
    for pair in pairs:
        first, second = (
            {tuple(rollout["completion_ids"][i : i + 4]) for i in range(max(1, rollout["length"] - 3))}
            for rollout in pair
        )
        values.append(len(first & second) / len(first | second))
    return values


@pytest.mark.parametrize("round", [0, 1])
def test_each_rollout_step_is_what_its_pool_says(run: Path, round: int) -> None:
    latest: dict[str, Rows] = {}
    ever: set[str] = set()
    inter_steps = 0
    for row, rollouts in steps(run, round):
        now = by_problem(rollouts)
        within = jaccard([pair for of_one in now.values() for pair in itertools.combinations(of_one, 2)])
        assert row["rollout/similarity_intra_step"] == pytest.approx(np.mean(within))
        across = jaccard([pair for name in now for pair in itertools.product(latest.get(name, []), now[name])])
        inter_steps += bool(across)
        assert row.get("rollout/similarity_inter_step") == (pytest.approx(np.mean(across)) if across else None)
        for kind, success in (("right", True), ("wrong", False)):
            of_kind = [rollout for rollout in rollouts if rollout["success"] == success]
            if of_kind:
                assert row[f"rollout/length_{kind}_tokens"] == pytest.approx(np.mean([r["length"] for r in of_kind]))
                surprise = -sum(r["sampling_logprob_sum"] for r in of_kind) / sum(r["length"] for r in of_kind)
                assert row[f"rollout/entropy_{kind}_nats"] == pytest.approx(surprise)
            else:
                assert f"rollout/length_{kind}_tokens" not in row
        solved = [{r["text"] for r in of_one if r["success"]} for of_one in now.values()]
        assert row["rollout/all_wrong_rate"] == pytest.approx(np.mean([not texts for texts in solved]))
        distinct = [len(texts) for texts in solved if texts]
        assert row.get("rollout/distinct_solutions") == (pytest.approx(np.mean(distinct)) if distinct else None)
        latest |= now
        ever |= {name for name, of_one in now.items() if any(r["success"] for r in of_one)}
        solved_now = {name for name, of_one in latest.items() if any(r["success"] for r in of_one)}
        assert row["pool/coverage_now"] == pytest.approx(len(solved_now) / len(latest))
        assert row["pool/coverage_ever"] == pytest.approx(len(ever) / len(latest))
        assert row["pool/coverage_lost"] == pytest.approx(len(ever - solved_now) / len(latest))
        assert row["time/metrics_s"] > 0
    assert inter_steps >= 2


def test_the_updates_of_a_step_move_the_policy_and_clip_at_both_bounds(run: Path) -> None:
    rows = explored(run)
    assert all(row["policy/update_kl_nats"] >= 0 for row in rows)
    assert max(row["policy/update_kl_nats"] for row in rows) > 1e-5
    for row in rows:
        both = row["policy/clip_fraction_low"] + row["policy/clip_fraction_high"]
        assert row["policy/clip_fraction"] == pytest.approx(both)


def test_each_evaluation_has_the_interval_of_its_record_and_what_was_forgotten(run: Path) -> None:
    records = {
        (row["round"], row["phase"], row["step"]): path
        for path in run.glob("round-*/evaluations/*.parquet")
        for row in pq.read_table(path).slice(0, 1).to_pylist()
    }
    rows = [row for row in read_metrics(run / "metrics.csv") if "eval/test/pass@1" in row]
    assert len(rows) == len(records) == 1 + 2 * 3
    base = records[0, "evaluate", 0]
    previous = base
    for row in rows:
        record = records[row["round"], row["phase"], row["step"]]
        for name in ("test", "ood"):
            for k in (1, 4):
                found = pass_at_k_interval([record], name, k)
                ends = (row[f"eval/{name}/pass@{k}_low"], row[f"eval/{name}/pass@{k}_high"])
                assert (row[f"eval/{name}/pass@{k}"], *ends) == pytest.approx((found.estimate, found.low, found.high))
            assert 0 <= row[f"eval/{name}/maj@4_low"] <= row[f"eval/{name}/maj@4"] <= row[f"eval/{name}/maj@4_high"]
            assert row[f"eval/{name}/coverage_now"] == pytest.approx(row[f"eval/{name}/pass@4"])
            now, ever = row[f"eval/{name}/coverage_now"], row[f"eval/{name}/coverage_ever"]
            assert row[f"eval/{name}/coverage_lost"] == pytest.approx(ever - now)
            for title, before in (("base", base), ("previous", previous)):
                rate = forgetting_rates(before, record)[name]
                known = record != base and not np.isnan(rate)
                assert row.get(f"eval/{name}/forgetting_{title}") == (pytest.approx(rate) if known else None)
        previous = record if row["phase"] == "evaluate" else previous
        assert row["time/evaluate_metrics_s"] > 0


def test_a_killed_run_has_the_same_metrics_though_it_lost_what_it_remembered(run: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert written(tmp_path).fit_apart(out, log, Kill("torch.optim:AdamW.step", 6)) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert deterministic_rows(out) == deterministic_rows(run)
    assert_same_run(out, run)


def test_the_table_has_an_interval_in_every_cell_and_says_over_what_it_is_one(run: Path) -> None:
    said = (run / "results.md").read_text()
    *tables, of_the_run = [block.splitlines() for block in said.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        for line in table[2:]:
            cells = [cell.strip() for cell in line.strip("|").split("|")[1:]]
            assert all(cell.endswith("]") or cell == "\u2013" for cell in cells)
    assert "largest gradient norm" in of_the_run[0]
    assert "95 % confidence interval over problems" in said
    row = next(row for row in read_metrics(run / "metrics.csv") if "eval/test/pass@4" in row)
    low, high = row["eval/test/pass@4_low"], row["eval/test/pass@4_high"]
    assert f"{row['eval/test/pass@4']:.3f} [{low:.3f}, {high:.3f}]" in tables[0][2]


def test_maj_at_k_takes_the_answers_from_the_reward(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountdownReward, "answers", lambda self, texts: ["the same"] * len(texts))
    arguments = ["--consolidate=none", "--loop.explore_steps=1", "--debug"]
    assert tiny.fit(tmp_path / "run", *arguments) == 0
    (base, *_) = read_metrics(tmp_path / "run" / "metrics.csv")
    assert base["eval/test/maj@2"] >= base["eval/test/pass@1"]
    monkeypatch.setattr(CountdownReward, "answers", lambda self, texts: None)
    assert tiny.fit(tmp_path / "other", *arguments) == 0
    assert not any("maj@" in name for row in read_metrics(tmp_path / "other" / "metrics.csv") for name in row)
