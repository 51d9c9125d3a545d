"""Consolidations beside RFT, RFT from other starts and on accumulated sets: by what runs leave on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from killing import Kill
from moe import make_moe_policy
from safetensors.torch import load_file
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning.cli.main import main
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.run.metrics_csv import read_metrics

FAR = {"lr": 2e-4, "warmup_steps": 0, "dynamic_sampling": False, "updates_per_step": 1}
SIZES = {"rounds": 2, "explore_steps": 2}
MORE = {"problems_per_step": 6, "rollouts_per_problem": 8}
UPDATE = "torch.optim:AdamW.step"
RENAME = "os:replace"
DISTIL = {"name": "distil", "steps": 4, "rollouts_per_update": 6, "lr": 1e-3}


def written(folder: Path, consolidate: dict[str, Any], **changes: dict[str, Any]) -> TinyRun:
    groups = {"algo": {"name": "dapo", **FAR}, "loop": SIZES, "eval": {"sets": []}, "consolidate": consolidate}
    return TinyRun.written(folder, **{"engine": {"max_new_tokens": 40}, **groups, **changes})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    return load_file(path)


def rows_of(out: Path, phase: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(out / "metrics.csv") if row["phase"] == phase]


def assert_average(out: Path, start: Path, number: int, alpha: float) -> None:
    """That a round's policy lies between two others, in float32."""
    theta, phi = weights_of(start), weights_of(out / f"round-{number}" / "explore" / "policy")
    assert any(not torch.equal(theta[name], phi[name]) for name in theta)
    for name, weight in weights_of(out / f"round-{number}" / "policy").items():
        assert torch.equal(weight, theta[name] + alpha * (phi[name] - theta[name])), name


# --- averages ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def average(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return written(tmp_path_factory.mktemp("average"), {"name": "average", "alpha": 0.25})


@pytest.fixture(scope="module")
def finished_average(average: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return average.finished(tmp_path_factory.mktemp("finished-average") / "run")


def test_each_round_begins_with_the_average_of_the_one_before(finished_average: Path) -> None:
    assert_average(finished_average, embedded_model_path(), 0, 0.25)
    assert_average(finished_average, finished_average / "round-0" / "policy", 1, 0.25)
    final, last = (weights_of(finished_average / name) for name in ("final", "round-1/policy"))
    assert all(torch.equal(final[name], last[name]) for name in last)
    assert rows_of(finished_average, "consolidate") == []
    assert not list(finished_average.glob("round-*/expert.parquet"))


def test_the_plan_the_card_and_the_report_say_what_was_done(finished_average: Path) -> None:
    log = finished_average.with_suffix(".log").read_text()
    initial = "the round's initial policy"
    assert f"{initial} + 0.25 x (explored policy - {initial}), without data" in log
    assert "expert set" not in log
    card = (finished_average / "final" / "README.md").read_text()
    assert "consolidation with `Average`: averaging the weights of the explored policy" in card
    assert "arXiv 2511.04285" not in card
    assert "- rloop\n" not in card
    assert "dapo with average consolidation trained" in (finished_average / "report.html").read_text()


def test_a_run_killed_while_it_averages_resumes_to_the_same_bits(
    average: TinyRun, finished_average: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    moment = Kill("rloop_lightning.model.policy:Policy.save", 2)  # the first saves the explored policy
    assert average.fit_apart(out, log, moment) == -9, log.read_text()
    assert not (out / "round-0" / "policy").exists()
    assert resume(out, log, Kill(RENAME, 1, "round-1/policy")) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, finished_average)


def test_a_damaged_explored_policy_is_explored_again(average: TinyRun, finished_average: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    moment = Kill("rloop_lightning.run.weights:Weights.move_towards", 1)
    assert average.fit_apart(out, log, moment) == -9, log.read_text()
    damaged = out / "round-0" / "explore" / "policy" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8] + b"\0" * 8)
    assert resume(out, log) == 0, log.read_text()
    assert "round 1 explore is repeated" in log.read_text()
    assert_same_run(out, finished_average)


def test_alpha_one_goes_on_from_the_explored_policy_and_base_from_the_base(tmp_path: Path) -> None:
    whole = written(tmp_path, {"name": "average", "alpha": 1.0}).finished(tmp_path / "whole")
    explored, next_start = (weights_of(whole / name) for name in ("round-0/explore/policy", "round-0/policy"))
    assert all(torch.allclose(explored[name], next_start[name], atol=1e-7) for name in explored)
    base = written(tmp_path, {"name": "average", "alpha": 0.5, "start": "base"}).finished(tmp_path / "base")
    assert_average(base, embedded_model_path(), 1, 0.5)


def test_an_exploration_that_changes_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    still = {"name": "dapo", **FAR, "lr": 1e-30, "weight_decay": 0.0}
    said = "the explored policy has the weights of the initial policy, so there is nothing to consolidate"
    for consolidate in ({"name": "average"}, DISTIL):
        out = tmp_path / consolidate["name"]
        run = written(tmp_path, consolidate, algo=still, loop={"rounds": 1, "explore_steps": 1})
        assert run.fit(out) == 0
        assert said in caplog.text
        assert f"round 1/1 consolidate: {said}; that policy is kept" in (out / "results.md").read_text()
        assert rows_of(out, "consolidate") == []
        caplog.clear()


# --- adapters ---------------------------------------------------------------------------------------------------------


def product(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: adapter[name.replace("lora_A", "lora_B")] @ weight for name, weight in adapter.items() if "lora_A" in name
    }


def test_the_product_of_an_adapter_is_averaged_with_that_of_the_base(tmp_path: Path) -> None:
    run = written(tmp_path, {"name": "average", "alpha": 0.25, "start": "base"}, policy={"lora": {"rank": 4}})
    out = run.finished(tmp_path / "run")
    for number in (0, 1):
        explored, kept = (product(weights_of(out / f"round-{number}" / name)) for name in ("explore/policy", "policy"))
        assert max(float(one.abs().max()) for one in explored.values()) > 0
        for name in explored:
            torch.testing.assert_close(kept[name], 0.25 * explored[name])


def test_an_average_that_no_adapter_can_be_is_refused_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = {"policy": {"lora": {"rank": 4}}}
    run = written(tmp_path, {"name": "average"}, **lora)
    assert run.fit(tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert (
        "--consolidate average: the average of two adapters has up to twice their rank, so it is exact only if one of "
        "them is new, which round 2 does not begin with; set --consolidate.start base, or --loop.rounds 1" in said
    )
    assert not (tmp_path / "run").exists()
    single = run.finished(tmp_path / "single", "--loop.rounds=1")  # what it advises
    trained = written(tmp_path, {"name": "average", "start": "base"}, policy={"model": str(single / "final")})
    assert trained.fit(tmp_path / "again") == 2
    assert "--policy.model is a trained adapter: merge it into its model" in capsys.readouterr().err


@pytest.mark.parametrize("consolidate", [DISTIL, {"name": "rft", "start": "explored", "lr": 1e-3}])
def test_adapters_are_distilled_and_fine_tuned(tmp_path: Path, consolidate: dict[str, Any]) -> None:
    run = written(tmp_path, consolidate, policy={"lora": {"rank": 4}}, loop={"rounds": 1, "explore_steps": 2})
    out = run.finished(tmp_path / "run")
    assert all(row["grad/norm_preclip_max"] > 0 for row in rows_of(out, "consolidate"))
    explored, kept = (weights_of(out / "round-0" / name) for name in ("explore/policy", "policy"))
    assert any(not torch.equal(explored[name], kept[name]) for name in kept)


# --- distillation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distil(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return written(tmp_path_factory.mktemp("distil"), DISTIL)


@pytest.fixture(scope="module")
def finished_distil(distil: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distil.finished(tmp_path_factory.mktemp("finished-distil") / "run")


def test_the_initial_policy_samples_and_nears_the_explored_one(finished_distil: Path) -> None:
    for number in (0, 1):
        rows = [row for row in rows_of(finished_distil, "consolidate") if row["round"] == number]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert all(row["policy/teacher_kl_nats"] > 0 and "rollout/length_tokens" in row for row in rows)
    start, theta = embedded_model_path(), finished_distil / "round-0" / "policy"
    phi = weights_of(finished_distil / "round-0" / "explore" / "policy")
    assert any(not torch.equal(weights_of(theta)[name], weight) for name, weight in weights_of(start).items())
    assert any(not torch.equal(weights_of(theta)[name], weight) for name, weight in phi.items())
    assert not list(finished_distil.glob("round-*/expert.parquet"))
    # Its samples are no part of the pool, and of the budget.
    assert all(row["rollout_step"] < 2 for row in _pool(finished_distil))
    log = finished_distil.with_suffix(".log").read_text()
    assert (
        "4 optimizer steps of the round's initial policy towards the explored one, on 6 samples of its own each" in log
    )


def test_distillation_brings_the_policy_to_the_explored_one(tmp_path: Path) -> None:
    far = {"algo": {"name": "dapo", **FAR, "lr": 2e-3}, "loop": {"rounds": 1, "explore_steps": 2}}
    run = written(tmp_path, {**DISTIL, "steps": 20, "rollouts_per_update": 16}, **far)
    assert run.fit(tmp_path / "run") == 0
    rows = rows_of(tmp_path / "run", "consolidate")
    first, *_, a, b, c, d = (row["policy/teacher_kl_nats"] for row in rows)  # the first is before any update
    assert (a + b + c + d) / 4 < 0.7 * first, rows


def test_its_samples_are_paid_for(finished_distil: Path) -> None:
    import json

    budget = json.loads((finished_distil / "state.json").read_text())["budget"]
    assert budget["rollout_steps"] == 4
    assert budget["rollouts"] == 2 * 2 * 16 + 2 * 4 * 6
    assert budget["optimizer_steps"] == 2 * (2 + 4)


def test_a_killed_distillation_resumes_to_the_same_bits(distil: TinyRun, finished_distil: Path, tmp_path: Path) -> None:
    """In its first step, in its third, and while its policy is saved; then in that of the second round."""
    out, log = tmp_path / "run", tmp_path / "log"
    assert distil.fit_apart(out, log, Kill(UPDATE, 3)) == -9, log.read_text()
    assert resume(out, log, Kill(UPDATE, 3)) == -9, log.read_text()
    assert [path.name for path in (out / "round-0" / "consolidate" / "checkpoints").iterdir()] != []
    assert resume(out, log, Kill(RENAME, 1, "round-0/policy")) == -9, log.read_text()
    assert resume(out, log, Kill(UPDATE, 4)) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, finished_distil)


def test_a_mixture_of_experts_with_routing_replay_is_distilled_and_averaged(tmp_path: Path) -> None:
    make_moe_policy(vocab_size=64, max_position_embeddings=256).save(tmp_path / "moe")
    for mode, consolidate in (("r3", DISTIL), ("r2", {"name": "average"})):
        run = written(
            tmp_path,
            consolidate,
            policy={"model": str(tmp_path / "moe"), "routing_replay": mode},
            algo={"name": "minirl", "lr": 1e-3, "warmup_steps": 0},
            loop={"rounds": 1, "explore_steps": 2},
        )
        out = run.finished(tmp_path / f"run-{consolidate['name']}")
        assert weights_of(out / "final").keys() == weights_of(tmp_path / "moe").keys()


# --- starts and accumulated sets --------------------------------------------------------------------------------------


def test_rft_starts_where_it_is_told(tmp_path: Path) -> None:
    """At a learning rate that changes nothing, a round's policy is the one that it starts from."""
    still = {"name": "rft", "lr": 1e-30, "weight_decay": 0.0, "epochs": 1, "rollouts_per_update": 64}
    starts = {"initial": "round-0/policy", "explored": "round-1/explore/policy", "base": None}
    for start, folder in starts.items():
        out = written(tmp_path, {**still, "start": start}, loop={**SIZES, **MORE}).finished(tmp_path / start)
        expected = weights_of(out / folder if folder else embedded_model_path())
        kept = weights_of(out / "round-1" / "policy")
        assert all(torch.equal(kept[name], weight) for name, weight in expected.items()), start
        others = [weights_of(path) for path in (out / "round-0/policy", out / "round-1/explore/policy")]
        assert any(not torch.equal(others[0][name], others[1][name]) for name in kept)


def test_a_killed_rft_from_the_explored_policy_resumes_to_the_same_bits(tmp_path: Path) -> None:
    rft = {"name": "rft", "lr": 1e-3, "start": "explored", "expert_sets": "run", "kl_beta": 0.1}
    run = written(tmp_path, {**rft, "rollouts_per_update": 4}, loop={**SIZES, **MORE})
    expected = run.finished(tmp_path / "uninterrupted")
    updates = len([*rows_of(expected, "explore"), *rows_of(expected, "consolidate")])
    out, log = tmp_path / "run", tmp_path / "log"
    assert run.fit_apart(out, log, Kill(UPDATE, 4)) == -9, log.read_text()
    assert [path.name for path in (out / "round-0" / "consolidate" / "checkpoints").iterdir()] != []
    assert resume(out, log, Kill(UPDATE, updates - 4)) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, expected)


def test_accumulated_sets_are_those_of_all_rounds_each_rollout_once(tmp_path: Path) -> None:
    rft = {"name": "rft", "lr": 1e-4, "rollouts_per_update": 1, "epochs": 1, "expert_sets": "run"}
    run = written(tmp_path, rft, loop={**SIZES, **MORE})
    out = run.finished(tmp_path / "run")
    sets = [
        [(row["problem_id"], tuple(row["completion_ids"])) for row in pq.read_table(path).to_pylist()]
        for path in sorted(out.glob("round-*/expert.parquet"))
    ]
    assert all(len(set(one)) == len(one) > 0 for one in sets)
    trained = [sum(row["round"] == number for row in rows_of(out, "consolidate")) for number in (0, 1)]
    assert trained == [len(sets[0]), len({*sets[0], *sets[1]})]
    assert "passes over the expert sets of all rounds so far" in out.with_suffix(".log").read_text()


def test_a_damaged_set_of_an_earlier_round_is_an_error_that_says_what_helps(tmp_path: Path) -> None:
    run = written(tmp_path, {"name": "rft", "lr": 1e-4, "expert_sets": "run"}, loop={**SIZES, **MORE})
    out, log = tmp_path / "run", tmp_path / "log"
    moment = Kill("rloop_lightning.run.fine_tuning:build_expert_set", 2)
    assert run.fit_apart(out, log, moment) == -9, log.read_text()
    path = out / "round-0" / "expert.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert resume(out, log, debug=False) == 1
    said = log.read_text()
    assert f"{path} " in said
    assert "--consolidate.expert_sets run trains on it; resume with --restart_from round-0/consolidate" in said
    again = ["--resume", str(out), "--restart_from=round-0/consolidate", "--debug"]
    assert main(again) == 0
    assert_same_run(out, run.finished(tmp_path / "uninterrupted"))


def _pool(out: Path) -> list[dict[str, Any]]:
    return [row for path in out.glob("round-*/pool/*.parquet") for row in pq.read_table(path).to_pylist()]
