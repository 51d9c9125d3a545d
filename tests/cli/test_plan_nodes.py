"""`rloop-fit --plan` for several ranks, and the rollout steps that it simulates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli.test_memory_plan import dense, plan, sparse

from rloop_lightning.cli.main import main

__all__ = ["dense", "sparse"]  # fixtures

EIGHT = ["--plan.memory=80GB", "--policy.dtype=bfloat16", "--plan.devices_per_node=8"]
RATES = ["--plan.generate_tokens_per_s=4000", "--plan.row_tokens_per_s=100", "--plan.update_tokens_per_s=2000"]
SMALL = ["--loop.problems_per_step=8", "--loop.rollouts_per_problem=4", "--plan.steps=6"]


def row(shown: str, staleness: int) -> list[float]:
    """The numbers of a row of the simulated table: seconds and percentages."""
    (line,) = re.findall(rf"^  {staleness} .*", shown, re.MULTILINE)
    return [float(number) for number in re.findall(r"[\d.]+", line)[1:]]


def test_shards_on_several_nodes(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(capsys, dense, *EIGHT, "--plan.nodes=4", "--plan.strategy=fsdp2", "--engine=vllm")
    assert "32 ranks: 4 nodes x 8 devices, fsdp2, weights in 32 shards; figures are of one rank" in shown
    words = shown.split()
    assert words[words.index("weights", words.index("training")) + 1 :][:2] == ["454", "MiB"]  # 14.2 GiB / 32
    assert "gathered layers" in shown
    assert re.search(r"weights pushed to each engine +14.2 GiB", shown)
    assert "all-gather" in shown
    assert "ranks have none" not in shown
    few = plan(capsys, dense, *EIGHT, "--plan.nodes=32", "--engine=vllm")
    assert "An update has 128 rollouts, so 128 ranks have none; take fewer ranks" in few


def test_whole_weights_on_eight_devices(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(capsys, dense, *EIGHT, "--plan.strategy=ddp", "--algo.updates_per_step=1")
    assert "8 ranks: 8 devices, ddp, weights whole on each rank" in shown
    assert re.search(r"gradients, all-reduce +49.6 GiB", shown)  # 2 x 7/8 x 28.4 GiB
    assert "pushed" not in shown  # the embedded engine has the policy's own weights


def test_advice_for_shards_leaves_out_what_can_not_be_sharded(sparse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--plan.memory=40GB", "--policy.dtype=bfloat16", "--plan.devices_per_node=8", "--plan.strategy=fsdp2"]
    shown = plan(capsys, sparse, *flags, "--engine=vllm")
    assert "DOES NOT FIT" in shown
    assert "What to change, cheapest first" in shown
    assert "8bit" not in shown
    assert "nf4" not in shown


def test_one_device_is_planned_as_before(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(capsys, dense, "--plan.memory=80GB")
    assert "ranks" not in shown
    assert "communication" not in shown
    assert "simulated" not in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plan.nodes=0"], "--plan.nodes: expected an integer > 0 or null, got 0"),
        (["--plan.strategy=fsdp"], "--plan.strategy"),
        (
            ["--plan.generate_tokens_per_s=100"],
            "--plan.update_tokens_per_s is missing: give both rates, or",
        ),
        (["--plan.update_tokens_per_s=100"], "--plan.generate_tokens_per_s is missing"),
        (["--plan.update_tokens_per_s=nan"], "--plan.update_tokens_per_s"),
        (["--plan.from_run=/no/such/run"], "--plan.from_run /no/such/run: there is no metrics.csv; give the folder of"),
        (["--plan.straggler_slowdown=0.5"], "--plan.straggler_slowdown"),
        (
            ["--plan.strategy=hsdp", "--policy.quantization=nf4", "--policy.lora.rank=8"],
            "--policy.quantization nf4: weights in 4 bits can't be sharded (--plan.strategy fsdp2)",
        ),
    ],
)
def test_errors_of_a_plan_for_several(
    flags: list[str], message: str, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", "--plan.memory", "24GiB", "--policy.model", str(dense), *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_simulated_step_and_its_assumptions(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*EIGHT, *RATES, *SMALL, "--engine=vllm", "--engine.max_new_tokens=512"]
    shown = plan(capsys, dense, *flags)
    assert "mean of 6 steps: 8 problems x 4 rollouts, 8 engines of 256 rollouts at once, 8 ranks" in shown
    for assumption in (
        "an engine with many rollouts generates 4,000 tokens/s (--plan.generate_tokens_per_s)",
        "a rollout that is alone gets 100 tokens/s",
        "a rank updates 2,000 completion tokens/s",
        "a push of weights takes no time (--plan.push_gb_per_s)",
        "log-normal with a median of 128 tokens",
        "no engine and no rank is slower",
        "prompts cost nothing",
    ):
        assert assumption in shown
    parts, ahead = row(shown, 0), row(shown, 1)
    assert parts[0] > ahead[0] > 0
    assert row(shown, 2)[0] == pytest.approx(ahead[0], rel=0.1)  # between steps, one step ahead is as good as two
    assert plan(capsys, dense, *flags) == shown  # by the seed
    other = plan(capsys, dense, *flags, "--seed_everything=1", "--plan.engines=3")
    assert "3 engines of 256" in other
    assert row(other, 0) != parts
    slow = plan(capsys, dense, *flags, "--plan.straggler_share=1", "--plan.straggler_slowdown=3")
    assert row(slow, 0)[0] == pytest.approx(3 * parts[0], rel=0.02)
    pushed = plan(capsys, dense, *flags, "--plan.push_gb_per_s=10")
    assert row(pushed, 0)[0] == pytest.approx(parts[0] + 15.23 / 10, rel=0.02)


def test_a_run_gives_lengths_and_rates_that_explain_its_own_steps(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", "--plan.memory=1GiB", "--plan.device=cpu", f"--plan.from_run={finished}"]) == 0
    shown = capsys.readouterr().out
    assert f"measured in {finished} with one engine and one rank" in shown
    assert "lengths are drawn from the 64 completions in its pools" in shown
    (off,) = re.findall(r"check: a step of .* in the mean of 3 steps .* simulated: .* s \(([+-]\d+)%\)", shown)
    assert abs(int(off)) <= 25  # completions are drawn anew, so their total differs a little
