"""What a study says, against values by hand and the statistics that docs/statistics.md describes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from fake_cells import complete

from rloop_lightning.evaluation.record_values import AVERAGE
from rloop_lightning.evaluation.statistics import difference, interval
from rloop_lightning.run.comparison import ALL_ARMS, OTHER_ARMS, Comparison, Row, compare
from rloop_lightning.run.comparison_table import comparison_csv, comparison_table, write_comparison
from rloop_lightning.run.state import LoopState
from rloop_lightning.run.study import Arm, Cell, Study

IDS = [f"p{number}" for number in range(6)]
BASE = [0, 1, 0, 2, 0, 1]
SOLO = {0: [1, 2, 0, 4, 0, 1], 1: [2, 2, 0, 4, 1, 0], 2: [1, 3, 0, 3, 0, 1]}
EXPLORED = {0: [2, 3, 1, 4, 1, 1], 1: [2, 3, 1, 4, 2, 1], 2: [2, 4, 1, 3, 0, 2]}
HANDED = {0: [4, 4, 3, 4, 3, 3], 1: [4, 4, 3, 4, 4, 3], 2: [4, 4, 2, 4, 3, 4]}


def study(folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> Study:
    return Study(folder, [Arm(name, {}, {"loop": {"rounds": 1}}) for name in ("solo", "rloop")], seeds)


def counted(values: list[int]) -> dict[str, int]:
    return dict(zip(IDS, values, strict=True))


def fill(made: Study, *, rloop_seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    solo, rloop = made.arms
    for seed in made.seeds:
        policies = {"base": {"test": counted(BASE)}, "round 1 explored": {"test": counted(SOLO[seed])}}
        complete(made.cell(solo, seed), policies, selected="round 1 explored", tokens=1000 + seed, entropy=0.1 * seed)
    for seed in rloop_seeds:
        policies = {
            "base": {"test": counted(BASE)},
            "round 1 explored": {"test": counted([0] * 6)},
            "round 1 consolidated": {"test": counted([0] * 6)},
            "round 2 explored": {"test": counted(EXPLORED[seed])},
            "round 2 consolidated": {"test": counted(HANDED[seed])},
        }
        complete(made.cell(rloop, seed), policies, selected="round 2 consolidated", notes=("round 1: empty",))


def row(comparison: Comparison, arm: str, policy: str) -> Row:
    return next(one for one in comparison.rows if (one.arm, one.policy) == (arm, policy))


def rates(values: dict[int, list[int]], seeds: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    return np.array([values[seed] for seed in seeds]) / 4


def test_every_policy_has_its_interval_and_its_paired_difference_to_the_first_arm(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made)
    comparison = compare(made)
    assert [(one.arm, one.policy) for one in comparison.rows] == [
        (ALL_ARMS, "base"),
        ("solo", "handed over"),
        ("rloop", "last explored"),
        ("rloop", "handed over"),
    ]
    assert row(comparison, "solo", "handed over").differences == {}
    for policy, values in (("last explored", EXPLORED), ("handed over", HANDED)):
        found = row(comparison, "rloop", policy)
        figure, expected = found.figures["test/pass@1"], interval(rates(values))
        assert (figure.mean, figure.low, figure.high) == (expected.estimate, expected.low, expected.high)
        assert (figure.over, figure.method, figure.seeds, figure.problems) == ("seeds and problems", "crossed t", 3, 6)
        apart, told = found.differences["test/pass@1"], difference(rates(values), rates(SOLO))
        assert (apart.mean, apart.low, apart.high) == (told.interval.estimate, told.interval.low, told.interval.high)
        assert apart.verdict == told.verdict
    assert row(comparison, "rloop", "handed over").differences["test/pass@1"].verdict == "better"
    assert row(comparison, ALL_ARMS, "base").differences["test/pass@1"].mean == pytest.approx(
        np.mean(BASE) / 4 - rates(SOLO).mean()
    )


def test_arms_whose_rewards_judge_the_base_policy_differently_are_not_compared(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made)
    rloop = made.arms[1]
    generous = {"base": {"test": counted([4] * 6)}, "round 1 explored": {"test": counted([4] * 6)}}
    for seed in made.seeds:
        complete(made.cell(rloop, seed), generous, selected="round 1 explored")
    comparison = compare(made)
    assert [(one.arm, one.policy) for one in comparison.rows] == [
        (OTHER_ARMS, "base"),
        ("solo", "handed over"),
        ("rloop", "base"),
        ("rloop", "handed over"),
    ]
    found = row(comparison, "rloop", "handed over")
    assert (found.figures["test/pass@1"].mean, found.differences) == (1, {})
    assert row(comparison, OTHER_ARMS, "base").differences.keys() >= {"test/pass@1"}
    told = (
        "rloop (here) and the first arm (there): of the same rollouts of the base policy, 24 are successes here and 4 "
        "there: the rewards judge differently, so pass@k can't be compared; evaluate the policies by one reward "
        "(rloop-eval RUN --reward NAME)"
    )
    assert comparison.notes == [told]
    assert f"- {told}\n" in comparison_table(made, comparison)


def test_a_few_other_verdicts_are_no_other_reward(tmp_path: Path) -> None:
    """As where a check has timed out under load."""
    made = study(tmp_path)
    sets = [{"test": {f"p{number}": int(number < wins) for number in range(100)}} for wins in (50, 52, 60)]
    for arm, base in zip(made.arms, sets, strict=False):
        for seed in made.seeds:
            complete(made.cell(arm, seed), {"base": base, "round 1 explored": base}, selected="round 1 explored")
    assert compare(made).notes == []  # 2 of 400 verdicts differ
    for seed in made.seeds:
        again = {"base": sets[2], "round 1 explored": sets[2]}
        complete(made.cell(made.arms[1], seed), again, selected="round 1 explored")
    assert "the rewards judge differently" in compare(made).notes[0]


def test_the_average_over_sets_and_differences_as_a_share(tmp_path: Path) -> None:
    """Validation, on which choices are made, is not part of the average."""
    made = study(tmp_path)
    for arm, test, ood in zip(made.arms, ([1, 2, 0, 4, 0, 1], [2, 2, 0, 4, 1, 1]), ([0, 1], [1, 1]), strict=True):
        for seed in made.seeds:
            sets = {"validation": {"v": 4}, "test": counted(test), "ood": {"o1": ood[0], "o2": ood[1]}}
            base = {"validation": {"v": 1}, "test": counted(BASE), "ood": {"o1": 0, "o2": 1}}
            complete(made.cell(arm, seed), {"base": base, "round 1 explored": sets}, selected="round 1 explored")
    comparison = compare(made)
    solo, rloop = (row(comparison, arm, "handed over") for arm in ("solo", "rloop"))
    means = [(8 / 24 + 1 / 8) / 2, (10 / 24 + 2 / 8) / 2]
    assert [one.figures[f"{AVERAGE}/pass@1"].mean for one in (solo, rloop)] == pytest.approx(means)
    apart = rloop.differences[f"{AVERAGE}/pass@1"]
    assert apart.mean == pytest.approx(means[1] - means[0])
    assert apart.relative == pytest.approx(means[1] / means[0] - 1)
    assert rloop.differences["test/pass@1"].relative == pytest.approx(10 / 8 - 1)
    table = comparison_table(made, comparison)
    assert "pass@k on average over the sets (8 problems)" in table
    assert f"({means[1] / means[0] - 1:+.0%})" in table
    lines = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    (line,) = [
        one
        for one in lines
        if (one["arm"], one["metric"], one["kind"]) == ("rloop", f"{AVERAGE}/pass@1", "difference")
        and one["policy"] == "handed over"
    ]
    assert float(line["relative"]) == apart.relative


def test_pass_at_k_is_the_unbiased_estimate(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made)
    found = row(compare(made), "solo", "handed over").figures["test/pass@2"]
    # 1 - C(4 - c, 2) / C(4, 2)
    by_count = {0: 0.0, 1: 0.5, 2: 1 - 1 / 6, 3: 1.0, 4: 1.0}
    assert found.mean == pytest.approx(np.mean([by_count[c] for values in SOLO.values() for c in values]))


def test_costs_and_other_metrics_have_students_t_over_seeds(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made)
    comparison = compare(made)
    tokens = comparison.costs["solo"]["tokens"]
    half = 4.302652729911275 * 1 / 3**0.5  # t(0.975, 2) by a table; tokens 1000, 1001, 1002
    assert (tokens.mean, tokens.low, tokens.high) == pytest.approx((1001, 1001 - half, 1001 + half))
    assert tokens.over == "seeds"
    entropy = row(comparison, "rloop", "handed over").differences["test/entropy_nats"]
    assert entropy.mean == pytest.approx(0.5 - 0.1)  # of 0, 0.1 and 0.2
    assert entropy.verdict == ""


def test_only_seeds_of_both_arms_are_in_a_difference(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made, rloop_seeds=(1, 2))
    comparison = compare(made)
    found = row(comparison, "rloop", "handed over")
    told = difference(rates(HANDED, (1, 2)), rates(SOLO, (1, 2)))
    assert found.differences["test/pass@1"].low == told.interval.low
    assert found.differences["test/pass@1"].seeds == 2
    assert row(comparison, "solo", "handed over").figures["test/pass@1"].seeds == 3
    assert [str(cell) for cell in comparison.missing] == ["rloop, seed 0"]
    assert "- not complete: rloop, seed 0" in comparison_table(made, comparison)


def test_the_table_of_differences_has_the_number_of_the_seeds_that_were_paired(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made)
    LoopState("id").save(made.cell(made.arms[0], 1).run.state)
    LoopState("id").save(made.cell(made.arms[0], 2).run.state)
    comparison = compare(made)
    found = row(comparison, "rloop", "handed over")
    assert (found.figures["test/pass@1"].seeds, found.differences["test/pass@1"].seeds) == (3, 1)
    values, apart = comparison_table(made, comparison).split("difference to solo")
    assert "| rloop    | handed over   |     3 |" in values
    assert "| rloop    | handed over   |     1 |" in apart


def test_arms_that_share_no_seed_are_paired_by_problem_alone(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made, rloop_seeds=(1, 2))
    for seed in (1, 2):
        LoopState("id").save(made.cell(made.arms[0], seed).run.state)
    found = row(compare(made), "rloop", "handed over").differences
    told = difference(rates(HANDED, (1, 2)), rates(SOLO, (0,)), paired_seeds=False)
    assert (found["test/pass@1"].low, found["test/pass@1"].verdict) == (told.interval.low, told.verdict)
    assert "test/entropy_nats" not in found


def test_the_base_policy_of_all_arms_is_told_by_the_first_arm_that_has_a_complete_cell(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made)
    expected = row(compare(made), ALL_ARMS, "base").figures["test/pass@1"]
    for cell in made.cells_of(made.arms[0]):
        LoopState("id").save(cell.run.state)
    comparison = compare(made)
    assert (comparison.rows[0].arm, comparison.rows[0].policy) == (ALL_ARMS, "base")
    figure = comparison.rows[0].figures["test/pass@1"]
    assert (figure.mean, figure.low, figure.seeds) == (expected.mean, expected.low, 3)


def test_a_single_seed_has_intervals_over_problems_and_none_of_its_cost(tmp_path: Path) -> None:
    made = study(tmp_path, seeds=(0,))
    fill(made, rloop_seeds=(0,))
    comparison = compare(made)
    figure = row(comparison, "rloop", "handed over").figures["test/pass@1"]
    assert (figure.over, figure.method) == ("problems", "bootstrap over problems")
    assert comparison.costs["rloop"]["tokens"].method == "none"
    assert "| rloop |     1 |            10 |              20 |      300 |  1,000 |      60 |" in comparison_table(
        made, comparison
    )


def test_a_study_without_a_complete_cell_says_so(tmp_path: Path) -> None:
    made = study(tmp_path)
    comparison = compare(made)
    assert (comparison.rows, len(comparison.missing)) == ([], 6)
    assert comparison_table(made, comparison).endswith(
        "\n- not complete: solo, seed 0, 1, 2\n- not complete: rloop, seed 0, 1, 2\n"
    )


def test_arms_with_other_problems_are_not_compared(tmp_path: Path) -> None:
    made = study(tmp_path, seeds=(0,))
    solo, rloop = made.arms
    for arm, ids in ((solo, IDS), (rloop, ["q", *IDS[1:]])):
        policies = {name: {"test": dict(zip(ids, SOLO[0], strict=True))} for name in ("base", "round 1 explored")}
        complete(made.cell(arm, 0), policies, selected="round 1 explored")
    comparison = compare(made)
    found = row(comparison, "rloop", "handed over")
    assert "test/pass@1" in found.figures
    assert "test/pass@1" not in found.differences
    assert any("no comparison of test/pass@1" in note for note in comparison.notes)


def test_a_damaged_record_leaves_its_cell_out_and_is_named(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made)
    cell = made.cell(made.arms[1], 1)
    (cell.run.out / "round-1" / "evaluations" / "consolidated.parquet").write_bytes(b"not parquet")
    comparison = compare(made)
    assert row(comparison, "rloop", "handed over").figures["test/pass@1"].seeds == 2
    assert any(note.startswith("rloop, seed 1: ") for note in comparison.notes)


def test_the_table_and_the_csv_hold_the_same_figures(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made)
    text = write_comparison(made)
    assert made.results.read_text() == text
    rows = list(csv.DictReader(io.StringIO(made.results_csv.read_text())))
    chosen = {(one["arm"], one["policy"], one["metric"], one["kind"]): one for one in rows}
    value = chosen["rloop", "handed over", "test/pass@1", "value"]
    apart = chosen["rloop", "handed over", "test/pass@1", "difference"]
    assert f"{float(value['mean']):.3f} [{float(value['low']):.3f}, {float(value['high']):.3f}]" in text
    ends = f"[{float(apart['low']):+.3f}, {float(apart['high']):+.3f}]"
    assert f"{float(apart['mean']):+.3f} {ends} ({float(apart['relative']):+.0%}) better" in text
    assert chosen["solo", "run", "cost/tokens", "value"]["mean"] == "1001.0"
    assert "- rloop, seed 0: round 1: empty" in text
    assert comparison_csv(compare(made)) == made.results_csv.read_text()


def trained(cell: Cell, rewards: list[float], norms: list[float], *, after: str = "") -> None:
    """Write the metrics of a run of one exploration, whose consolidation has larger values."""
    lines = ["round,phase,step,rollout/reward_mean,grad/norm_preclip_max"]
    steps = range(1, len(rewards) + 1)
    lines += [f"0,explore,{step},{reward},{norm}" for step, reward, norm in zip(steps, rewards, norms, strict=True)]
    lines += ["0,consolidate,1,9.0,99.0"]
    cell.run.metrics.write_text("\n".join(lines) + "\n" + after)


def test_the_training_of_the_runs_is_told_by_arm(tmp_path: Path) -> None:
    made = study(tmp_path)
    fill(made)
    solo, rloop = made.arms
    for seed in made.seeds:
        rewards = [7.0] * 5 + [0.1 * (seed + 1)] * 10 + [0.5] * 10
        trained(made.cell(solo, seed), rewards, [1.0, 50.0 + seed] + [2.0] * 23)
    trained(made.cell(rloop, 0), [0.2, 0.4], [1.5, 0.5])
    trained(made.cell(rloop, 1), [0.2, 0.4], [1.5, 0.5], after="0,explore,3,high,1\n")
    comparison = compare(made)
    figures = comparison.training["solo"]
    # Of the last 20 steps, half have the reward of the seed and half have 0.5: 0.3, 0.35 and 0.4.
    assert figures["rollout/reward_mean"].mean == pytest.approx(0.35)
    half = 4.302652729911275 * 0.05 / 3**0.5
    assert figures["rollout/reward_mean"].high - 0.35 == pytest.approx(half)
    assert (figures["grad/norm_preclip_max"].mean, figures["grad/norm_preclip_max"].seeds) == (51.0, 3)
    assert "policy/entropy_nats" not in figures
    assert comparison.training["rloop"]["rollout/reward_mean"].mean == pytest.approx(0.3)
    assert any(note.startswith("rloop, seed 1: ") and "training are left out" in note for note in comparison.notes)
    text = comparison_table(made, comparison)
    assert "| solo  |     3 | 0.350 [0.226, 0.474] |" in text
    assert "| rloop |     1 |                0.300 |" in text
    rows = csv.DictReader(io.StringIO(comparison_csv(comparison)))
    (norm,) = [one for one in rows if (one["arm"], one["metric"]) == ("solo", "grad/norm_preclip_max")]
    assert (norm["policy"], norm["mean"]) == ("run", "51.0")


def test_forgetting_of_the_policies_handed_over_is_told_with_the_training(tmp_path: Path) -> None:
    made = study(tmp_path, seeds=(0, 1))
    fill(made, rloop_seeds=(0, 1))
    for arm in made.arms:
        for seed in made.seeds:
            cell = made.cell(arm, seed)
            state = cell.state()
            forgotten = 0.25 * (seed + 1) if arm.name == "solo" else 0.125
            state.results[state.selected] |= {
                "eval/test/forgetting_base": forgotten,
                "eval/test/forgetting_base_low": forgotten - 0.1,
            }
            state.save(cell.run.state)
    comparison = compare(made)
    assert "test/forgetting_base_low" not in comparison.metrics  # an end of one run's interval, no figure of its own
    text = comparison_table(made, comparison)
    assert "| seeds | forgotten since base, test |" in text
    assert "| rloop |     2 |       0.125 [0.125, 0.125] |" in text
    assert "0.375 [" in text


def test_names_of_others_do_not_act_in_the_table(tmp_path: Path) -> None:
    made = Study(tmp_path, [Arm("a|b <i>", {}, {}), Arm("b", {}, {})], [0])
    for arm in made.arms:
        policies = {name: {"x|\x1b[31m": counted(BASE)} for name in ("base", "round 1 explored")}
        complete(made.cell(arm, 0), policies, selected="round 1 explored")
    text = comparison_table(made, compare(made))
    assert "\x1b" not in text
    assert "a\\|b \\<i\\>" in text


def test_tokens_off_the_budget_are_told(tmp_path: Path) -> None:
    made = Study(tmp_path, study(tmp_path).arms, [0], "tokens")
    policies = {name: {"test": counted(BASE)} for name in ("base", "round 1 explored")}
    for arm, tokens in zip(made.arms, (1000, 1030), strict=True):
        complete(made.cell(arm, 0), policies, selected="round 1 explored", tokens=tokens)
    assert compare(made).notes == []
    complete(made.cell(made.arms[1], 0), policies, selected="round 1 explored", tokens=800)
    assert compare(made).notes == [
        "rloop, seed 0: it generated 800 tokens, and its budget was the 1,000 of solo, seed 0"
    ]
