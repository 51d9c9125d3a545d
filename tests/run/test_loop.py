"""Whole runs through `rloop-fit` on the embedded policy, tiny in size: from arguments to the files on disk."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from tiny_run import TinyRun
from transformers import AutoModelForCausalLM, AutoTokenizer

from rloop_lightning.cli.main import main
from rloop_lightning.data.countdown import Countdown
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.run.trainer import new_trainer
from rloop_lightning.types import LossOutput


def fit(out: Path, *arguments: str, draws: bool = False) -> int:
    """Two rounds of three rollout steps, with evaluations inside."""
    tiny = TinyRun.written(
        out.parent,
        engine={"max_new_tokens": 48},
        algo={"updates_per_step": 2, "dynamic_sampling": True},
        loop={"rounds": 2, "explore_steps": 3, "rollouts_per_problem": 8, "checkpoint_every_n_steps": 2},
        eval={"every_n_steps": 2, "samples": 4, "k": [1, 4], "max_problems": 4, "sets": None, "sets_inside": ["test"]},
    )
    return replace(tiny, draws=draws).fit(out, *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "rloop"
    assert fit(out, "--debug", draws=True) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(ours[name].equal(theirs[name]) for name in theirs)


def state(out: Path) -> dict:
    return json.loads((out / "state.json").read_text())


def test_every_file_of_the_contract_is_there(run: Path) -> None:
    for name in ("config.yaml", "state.json", "metrics.csv", "results.md", "plots/reward_and_pass.png"):
        assert (run / name).is_file(), name
    for number in (0, 1):
        folder = run / f"round-{number}"
        shards = sorted(path.name for path in (folder / "pool").glob("*.parquet"))
        assert shards == ["step-000001.parquet", "step-000002.parquet", "step-000003.parquet"]
        assert (folder / "expert.parquet").is_file()
        # Checkpoints serve a phase that is cut short; those of complete ones, with their optimizer state, are gone.
        assert not list((folder / "explore" / "checkpoints").iterdir())


def test_the_final_policy_is_a_plain_hugging_face_folder_and_the_last_consolidated_one(run: Path) -> None:
    assert same(weights(run / "final"), weights(run / "round-1" / "policy"))
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    prompt = Countdown().train()[0].prompt
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt


def test_consolidation_starts_from_the_initial_policy_of_the_round_not_from_the_explored_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    # A learning rate too small to move a weight: what comes out is what consolidation began with.
    assert fit(out, "--loop.rounds=1", "--consolidate.lr=1e-30", "--debug") == 0
    assert not same(weights(out / "round-0" / "explore" / "policy"), weights(embedded_model_path()))
    assert same(weights(out / "round-0" / "policy"), weights(embedded_model_path()))


def test_the_second_round_explores_from_the_consolidated_policy(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fit(out, "--algo.lr=1e-30", "--debug") == 0
    assert not same(weights(out / "round-0" / "policy"), weights(embedded_model_path()))
    assert same(weights(out / "round-1" / "explore" / "policy"), weights(out / "round-0" / "policy"))


def test_the_table_names_every_policy_and_marks_the_one_handed_over(run: Path) -> None:
    tables = (run / "results.md").read_text()
    first = tables.split("\n\n")[0]
    names = [line.split("|")[1].strip() for line in first.splitlines()[2:]]
    assert names == [
        "base",
        "round 1 explored",
        "round 1 consolidated",
        "round 2 explored",
        "**round 2 consolidated** (handed over)",
    ]
    heads = " ".join(table.splitlines()[0] for table in tables.split("\n\n"))
    for column in ("test pass@1", "test pass@4", "ood pass@4", "entropy", "gradient norm", "expert set"):
        assert column in heads


def test_metrics_have_a_row_for_every_step_of_every_phase(run: Path) -> None:
    rows = read_metrics(run / "metrics.csv")
    explore = [(row["round"], row["step"]) for row in rows if row["phase"] == "explore"]
    assert explore == [(number, step) for number in (0, 1) for step in (1, 2, 3)]
    evaluated = [row["step"] for row in rows if row["phase"] == "explore" and "eval/test/pass@1" in row]
    assert evaluated == [2, 2]
    for row in rows:
        if row["phase"] == "explore":
            assert {"rollout/reward_mean", "policy/entropy_nats", "grad/norm_preclip_max", "train/loss"} <= row.keys()
            assert row["policy/engine_gap_nats_max"] < 1e-4
    assert [row["step"] for row in rows if row["phase"] == "evaluate"] == [0, 1, 2, 1, 2]


def test_the_pool_holds_every_rollout_and_the_budget_counts_them(run: Path) -> None:
    rows = read_metrics(run / "metrics.csv")
    pool = [pq.read_table(run / f"round-{number}" / "pool") for number in (0, 1)]
    generated = sum(row.get("rollout/generated_rollouts", 0) for row in rows)
    assert sum(len(table) for table in pool) == generated == state(run)["budget"]["rollouts"]
    assert sum(sum(table["length"].to_pylist()) for table in pool) == state(run)["budget"]["tokens"]
    assert state(run)["budget"]["rollout_steps"] == 6


def test_the_expert_set_holds_successes_only(run: Path) -> None:
    expert = pq.read_table(run / "round-0" / "expert.parquet").to_pylist()
    pool = pq.read_table(run / "round-0" / "pool").to_pylist()
    right = {(row["problem_id"], row["text"]) for row in pool if row["success"]}
    assert expert
    assert {(row["problem_id"], row["text"]) for row in expert} <= right


def test_clip_eps_high_takes_three_hops_from_the_command_line_to_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rloop_lightning.algorithms import dapo

    seen = []
    original = dapo.clipped_loss

    def spy(*args: torch.Tensor, clip_eps_high: float, **kwargs: float) -> LossOutput:
        seen.append(clip_eps_high)
        return original(*args, clip_eps_high=clip_eps_high, **kwargs)

    monkeypatch.setattr(dapo, "clipped_loss", spy)
    sizes = ["--loop.rounds=1", "--loop.explore_steps=1", "--consolidate=none", "--debug"]
    assert fit(tmp_path / "run", *sizes, "--algo.clip_eps_high", "0.37") == 0
    assert set(seen) == {0.37}


def test_consolidate_none_explores_all_rollout_steps_in_one_phase(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fit(out, "--consolidate", "none", "--debug") == 0
    rows = [row for row in read_metrics(out / "metrics.csv") if row["phase"] == "explore"]
    assert [(row["round"], row["step"]) for row in rows] == [(0, step) for step in range(1, 7)]
    assert list(state(out)["results"]) == ["base", "round 1 explored"]
    assert not (out / "round-0" / "expert.parquet").exists()
    assert same(weights(out / "final"), weights(out / "round-0" / "explore" / "policy"))


def test_select_hands_over_the_best_on_the_validation_set(tmp_path: Path) -> None:
    out = tmp_path / "run"
    # An exploration at this rate unlearns everything, so that the base is the best.
    ruin = ["--algo.lr=1.0", "--algo.dynamic_sampling=false", "--consolidate=none"]
    assert fit(out, "--loop.select=pass@1", *ruin, "--debug") == 0
    assert state(out)["selected"] == "base"
    assert same(weights(out / "final"), weights(embedded_model_path()))


def test_a_gradient_above_the_bound_ends_the_phase_with_the_weights_untouched(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.warns(UserWarning, match="the step is skipped and the phase ends here"):
        assert fit(out, "--gradient.stop_above=1e-9", "--consolidate=none", "--debug") == 0
    rows = [row for row in read_metrics(out / "metrics.csv") if row["phase"] == "explore"]
    assert len(rows) == 1
    assert same(weights(out / "final"), weights(embedded_model_path()))
    assert "round 1/1 explore ended after 1 of 6 rollout steps" in (out / "results.md").read_text()


def test_extra_rollouts_of_intermediate_policies_go_to_the_pool(tmp_path: Path) -> None:
    out = tmp_path / "run"
    extra = ["--capture.every_n_steps=2", "--capture.extra_rollouts=3", "--capture.extra_problems=5"]
    assert fit(out, *extra, "--consolidate=none", "--loop.rounds=1", "--debug") == 0
    assert len(pq.read_table(out / "round-0" / "pool" / "extra-000002.parquet")) == 15


def test_dynamic_sampling_that_finds_nothing_ends_the_exploration_and_says_so(tmp_path: Path) -> None:
    # Two tokens are too few for any solution.
    out = tmp_path / "run"
    assert fit(out, "--engine.max_new_tokens=2", "--loop.rounds=1") == 0
    said = (out / "results.md").read_text()
    assert "round 1/1 explore ended after 0 of 3 rollout steps: rollout step 1: only 0 of 40 problems" in said
    assert "the expert set is empty: none of the 320 rollouts is a success" in said
    assert pq.read_table(out / "round-0" / "pool").num_rows == 320


def test_dynamic_sampling_that_finds_nothing_may_end_with_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", "--engine.max_new_tokens=2", "--loop.on_too_few_groups=stop") == 1
    said = capsys.readouterr().err
    assert "rloop-fit: error: nothing ends: every completion is cut at the limit of 2 tokens" in said
    assert "start a new run with --engine.max_new_tokens above 2" in said


def test_pass_at_1_is_measured_even_where_it_is_not_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fit(out, "--eval.k=[4]", "--loop.explore_steps=1", "--consolidate=none", "--debug") == 0
    assert "eval/test/pass@1" in state(out)["results"]["base"]


def test_a_run_without_evaluation_sets_hands_over_its_last_policy(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fit(out, "--eval.sets=[]", "--eval.sets_inside=[]", "--loop.explore_steps=1", "--consolidate=none") == 0
    assert same(weights(out / "final"), weights(out / "round-0" / "explore" / "policy"))


def test_a_policy_that_does_not_load_leaves_no_run_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path / "run", "--policy.model", str(tmp_path / "nowhere")) == 2
    assert f"--policy.model {tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_prompts_that_exceed_the_context_are_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", "--engine.max_new_tokens=250") == 2
    message = capsys.readouterr().err
    assert "prompts don't fit --policy.model's 256 positions" in message
    assert "countdown-" in message
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_must_have_the_settings_that_it_began_with(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", str(run), "--engine.temperature=0.5", "--seed_everything=1"]) == 2
    message = capsys.readouterr().err
    assert "--engine.temperature was 1.0 when the run started and is 0.5 now" in message
    assert "--seed_everything was 0 when the run started and is 1 now" in message


@pytest.mark.parametrize(
    ("device", "strategy", "said"),
    [
        ("mps", SingleDeviceStrategy, "--trainer.accelerator: mps is not supported; take cpu or gpu"),
        ("cuda", FSDPStrategy, "--trainer.strategy: take one of auto, ddp, fsdp2, hsdp"),
    ],
)
def test_devices_and_strategies_that_the_loop_does_not_know_are_refused(device: str, strategy: type, said: str) -> None:
    """A GPU's; here is none, so Lightning would not make them."""
    made = MagicMock(
        num_devices=1,
        num_nodes=1,
        precision="32-true",
        strategy=MagicMock(spec=strategy, root_device=torch.device(device)),
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        new_trainer(lambda **_: made)


def test_a_resumed_run_may_take_less_memory(run: Path) -> None:
    less = ["--engine.max_rows=8", "--policy.max_tokens_per_micro_batch=64"]
    assert main(["--resume", str(run), *less, "--debug"]) == 0


@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
def test_a_device_without_memory_ends_the_run_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rloop_lightning.engines.torch_engine import TorchEngine

    def generate(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(TorchEngine, "generate", generate)
    assert fit(tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert "rloop-fit: error: CUDA out of memory." in said
    assert "lower --engine.max_rows, if it was generating, or --policy.max_tokens_per_micro_batch" in said
    assert f"rloop-fit --resume {tmp_path / 'run'} --engine.max_rows N" in said


def test_resuming_a_complete_run_changes_nothing(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.suffix in (".md", ".csv", ".safetensors")}
    assert main(["--resume", str(run), "--debug"]) == 0
    assert before == {path: path.read_bytes() for path in before}


def test_the_engine_takes_over_the_weights_before_every_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rloop_lightning.engines.torch_engine import TorchEngine

    calls: list[str] = []
    generate = TorchEngine.generate
    monkeypatch.setattr(TorchEngine, "sync", lambda self: calls.append("sync"))
    monkeypatch.setattr(TorchEngine, "generate", lambda self, *a: (calls.append("generate"), generate(self, *a))[1])
    # Without dynamic sampling, a rollout step generates once.
    plain = ("--consolidate=none", "--algo.dynamic_sampling=false", "--debug")
    assert fit(tmp_path / "run", "--loop.rounds=1", "--loop.explore_steps=2", *plain) == 0
    assert calls == ["sync", "generate"] * (len(calls) // 2)
    assert len(calls) >= 2 * (2 + 3 + 3)  # two rollout steps, and two policies on three sets


def test_the_progress_bar_says_phase_round_reward_pass_at_1_speed_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", "--loop.rounds=1", "--loop.explore_steps=2", "--debug") == 0
    shown = capsys.readouterr().err.replace("\r", "\n")
    reward = read_metrics(tmp_path / "run" / "metrics.csv")[2]["rollout/reward_mean"]
    done = r"round 1/1 explore 100%.* 2/2 \[\d\d:\d\d<00:00, "
    assert re.search(rf"{done}.*reward {reward:.3f}, pass@1 \d\.\d{{3}}, [\d,]+ tok/s\]", shown)
    assert re.search(r"round 1/1 consolidate 100%.*loss \d", shown)
    assert re.search(r"round 1/1 evaluate base 100%.* 12/12 ", shown)  # four problems of each of three sets


def test_generation_follows_the_precision_of_the_updates(tiny: TinyRun, tmp_path: Path) -> None:
    logprobs = {}
    for dtype in ("auto", "bfloat16", "float32"):
        arguments = ["--trainer.precision", "bf16-mixed", "--engine.dtype", dtype, "--loop.explore_steps", "1"]
        assert tiny.fit(tmp_path / dtype, *arguments) == 0
        shard = tmp_path / dtype / "round-0" / "pool" / "step-000001.parquet"
        logprobs[dtype] = pq.read_table(shard)["sampling_logprob_sum"].to_pylist()
    assert logprobs["auto"] == logprobs["bfloat16"] != logprobs["float32"]


def test_gradient_checkpointing_and_the_heads_dtype_reach_the_policy(
    tiny: TinyRun, finished: Path, tmp_path: Path
) -> None:
    """Layers that are computed again give the same policy; a head in bfloat16 gives another one."""
    assert tiny.fit(tmp_path / "sparing", "--policy.gradient_checkpointing", "true") == 0
    assert tiny.fit(tmp_path / "coarse", "--policy.head_dtype", "bfloat16") == 0
    expected, sparing, coarse = (
        weights(run / "final") for run in (finished, tmp_path / "sparing", tmp_path / "coarse")
    )
    for name, weight in expected.items():
        torch.testing.assert_close(sparing[name], weight, rtol=1e-5, atol=1e-6)
    assert not same(coarse, expected)
