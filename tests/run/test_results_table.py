"""The table as text, and the plots by what is drawn in them."""

import numpy as np
import pytest
from matplotlib.image import imread

from rloop_lightning.run import plots
from rloop_lightning.run.plots import write_plots
from rloop_lightning.run.results_table import PolicyResult, results_table


def test_the_table_to_the_letter():
    results = [
        PolicyResult("base", {"eval/test/pass@32": 0.7292, "eval/test/pass@1": 0.143, "eval/ood/pass@1": 0.008}),
        PolicyResult(
            "round 1 explored",
            {"eval/test/pass@1": 0.25, "eval/test/entropy_nats": 0.1, "grad/norm_preclip_max": 51.34},
            handed_over=True,
        ),
        PolicyResult("round 1 consolidated", {"expert/rollouts": 1174.0, "eval/test/pass@1": float("nan")}),
    ]
    assert results_table(results).splitlines() == [
        "| policy                             | test pass@1 | test pass@32 | ood pass@1 | test entropy, nats "
        "| largest gradient norm | expert set |",
        "| ---------------------------------- | ----------: | -----------: | ---------: | -----------------: "
        "| --------------------: | ---------: |",
        "| base                               |       0.143 |        0.729 |      0.008 |                  – "  # noqa: RUF001
        "|                     – |          – |",  # noqa: RUF001
        "| **round 1 explored** (handed over) |       0.250 |            – |          – |              0.100 "  # noqa: RUF001
        "|                  51.3 |          – |",  # noqa: RUF001
        "| round 1 consolidated               |           – |            – |          – |                  – "  # noqa: RUF001
        "|                     – |      1,174 |",  # noqa: RUF001
    ]


def test_columns_that_no_policy_has_are_left_out():
    assert results_table([PolicyResult("base", {"eval/a/pass@4": 0.5})]).splitlines()[0] == "| policy | a pass@4 |"


def make_rows(rounds=2, steps=4):
    rows = [{"round": 0, "phase": "evaluate", "step": 0, "eval/test/pass@1": 0.1, "eval/test/pass@8": 0.7}]
    for number in range(rounds):
        for step in range(1, steps + 1):
            row = {"round": number, "phase": "explore", "step": step, "rollout/reward_mean": 0.1 * step}
            row |= {"grad/norm_preclip_max": 10.0**-step, "policy/entropy_nats": 0.2}
            rows.append(row | ({"eval/test/pass@1": 0.2, "eval/test/pass@8": 0.6} if step == 2 else {}))
        rows.append({"round": number, "phase": "evaluate", "step": 1, "eval/test/pass@1": 0.3, "eval/test/pass@8": 0.5})
        rows.append({"round": number, "phase": "consolidate", "step": 1, "grad/norm_preclip_max": 1.0})
        rows.append(
            {"round": number, "phase": "evaluate", "step": 2, "eval/test/pass@1": 0.15, "eval/test/pass@8": 0.8}
        )
    return rows


def test_evaluations_stand_where_their_policy_is_and_break_at_consolidation():
    curves = plots.Timeline(make_rows()).evaluations("eval/test/pass@1")
    points = [list(zip(curve.x.tolist(), curve.y.tolist(), strict=True)) for curve in curves]
    assert points == [[(0, 0.1), (2, 0.2), (4, 0.3)], [(4, 0.15), (6, 0.2), (8, 0.3)], [(8, 0.15)]]


def test_training_curves_hold_exploration_only_one_for_each_round():
    curves = plots.Timeline(make_rows()).training("grad/norm_preclip_max")
    assert [curve.x.tolist() for curve in curves] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert curves[1].y.tolist() == [0.1, 0.01, 0.001, 0.0001]


def test_rounds_of_different_length_follow_each_other():
    rows = [{"round": 0, "phase": "explore", "step": step, "m": 1.0} for step in range(1, 4)]
    rows += [{"round": 1, "phase": "explore", "step": step, "m": 1.0} for step in range(1, 3)]
    rows += [{"round": 1, "phase": "evaluate", "step": 1, "m": 2.0}]
    assert [curve.x.tolist() for curve in plots.Timeline(rows).evaluations("m")] == [[1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["eval/validation/pass@1", "eval/test/pass@8", "eval/test/pass@1", "eval/test/pass@32"], [1, 32]),
        (["eval/test/pass@4"], [4]),
    ],
)
def test_smallest_and_largest_k_of_the_test_set_are_drawn(names, chosen):
    timeline = plots.Timeline([{"round": 0, "phase": "evaluate", "step": 0, **dict.fromkeys(names, 0.5)}])
    assert timeline.eval_metrics() == [f"eval/test/pass@{k}" for k in chosen]


def test_smoothing_keeps_a_constant_and_follows_the_mean():
    np.testing.assert_allclose(plots.smoothed(np.full(50, 3.0), log=False), 3.0)
    np.testing.assert_allclose(plots.smoothed(np.full(50, 3.0), log=True), 3.0)
    noisy = np.tile([1.0, 3.0], 50)
    assert np.abs(plots.smoothed(noisy, log=False) - 2)[15:-15].max() < 0.05
    assert plots.smoothed(np.array([7.0]), log=False).tolist() == [7.0]


def test_plots_are_written_and_are_the_same_bytes_again(tmp_path):
    paths = write_plots(make_rows(), tmp_path / "plots")
    assert [path.name for path in paths] == ["reward_and_pass.png", "gradient_norm.png", "entropy.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in paths)
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_plots(make_rows(), tmp_path / "again")] == first
    assert imread(paths[0]).std() > 0.01  # something is drawn


def test_figures_carry_labels_rounds_and_units():
    timeline = plots.Timeline(make_rows())
    (axes,) = plots.reward_and_pass(timeline).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "each rollout step", "training reward, smoothed", "test pass@1", "test pass@8"
    ]  # fmt: skip
    assert [text.get_text().strip() for text in axes.texts] == ["round 1", "round 2"]
    assert axes.get_xlabel() == "rollout steps, over all rounds"
    (axes,) = plots.training_curve(timeline, "grad/norm_preclip_max", "gradient norm", "red", log=True).axes
    assert axes.get_yscale() == "log"


def test_a_plot_without_data_is_not_written(tmp_path):
    assert write_plots([], tmp_path) == []
    rows = [{"round": 0, "phase": "explore", "step": 1, "policy/entropy_nats": 0.3}]
    assert [path.name for path in write_plots(rows, tmp_path)] == ["entropy.png"]
