"""The table as text, and the plots by what is drawn in them."""

import itertools
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.image import imread

from rloop_lightning.run import plots
from rloop_lightning.run.plots import write_plots
from rloop_lightning.run.pool_plot import pool_figure
from rloop_lightning.run.results_table import PolicyResult, results_table


def test_the_tables_to_the_letter():
    results = [
        PolicyResult(
            "base",
            {
                "eval/test/pass@32": 0.7292,
                "eval/test/pass@32_low": 0.7,
                "eval/test/pass@32_high": 0.7604,
                "eval/test/pass@1": 0.143,
                "eval/ood/pass@1": 0.008,
                "eval/test/maj@8": 0.5,
                "eval/test/maj@32": 0.25,
            },
        ),
        PolicyResult(
            "round 1 explored",
            {"eval/test/pass@1": 0.25, "eval/test/entropy_nats": 0.1, "grad/norm_preclip_max": 51.34},
            handed_over=True,
        ),
        PolicyResult("round 1 consolidated", {"expert/rollouts": 1174.0, "eval/test/pass@1": float("nan")}),
    ]
    assert [line.replace("\u2013", "-") for line in results_table(results).splitlines()] == [
        "| policy                             |  test pass@1 |         test pass@32 |  test maj@32 |",
        "| ---------------------------------- | -----------: | -------------------: | -----------: |",
        "| base                               | 0.143 [-, -] | 0.729 [0.700, 0.760] | 0.250 [-, -] |",
        "| **round 1 explored** (handed over) | 0.250 [-, -] |                    - |            - |",
        "| round 1 consolidated               |            - |                    - |            - |",
        "",
        "| policy |   ood pass@1 |",
        "| ------ | -----------: |",
        "| base   | 0.008 [-, -] |",
        "",
        "| policy                             | test entropy, nats |",
        "| ---------------------------------- | -----------------: |",
        "| **round 1 explored** (handed over) |       0.100 [-, -] |",
        "",
        "| policy                             | largest gradient norm | expert set |",
        "| ---------------------------------- | --------------------: | ---------: |",
        "| **round 1 explored** (handed over) |                  51.3 |          - |",
        "| round 1 consolidated               |                     - |      1,174 |",
    ]


def test_columns_that_no_policy_has_are_left_out():
    assert results_table([PolicyResult("base", {"eval/a/pass@4": 0.5})]).splitlines()[0] == "| policy |     a pass@4 |"


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


def test_steps_without_a_gradient_are_left_out_of_a_logarithmic_plot():
    """The groups of such a step are all right or all wrong."""
    rows = make_rows(rounds=1, steps=20)
    for row in rows:
        row["grad/norm_preclip_max"] = 0.0 if row["step"] % 2 else 2.0
    figure = plots.gradient_norm(plots.Timeline(rows))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert [line.get_xdata().tolist() for line in lines] == [list(range(2, 21, 2))] * 2
    np.testing.assert_allclose([line.get_ydata() for line in lines], 2.0)
    assert plots.gradient_norm(plots.Timeline([row | {"grad/norm_preclip_max": 0.0} for row in rows])) is None


def test_plots_are_written_and_are_the_same_bytes_again(tmp_path):
    paths = write_plots(make_rows(), tmp_path / "plots")
    assert [path.name for path in paths] == ["reward_and_pass.png", "gradient_norm.png", "entropy.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in paths)
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_plots(make_rows(), tmp_path / "again")] == first
    assert imread(paths[0]).std() > 0.01  # something is drawn


def labels(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_figures_carry_labels_rounds_and_units():
    timeline = plots.Timeline(make_rows())
    figure = plots.reward_and_pass(timeline)
    assert labels(figure) == ["each rollout step", "training reward, smoothed", "test pass@1", "test pass@8"]
    (axes,) = figure.axes
    assert [text.get_text().strip() for text in axes.texts] == ["round 1", "round 2"]
    assert axes.get_xlabel() == "rollout steps, over all rounds"
    (axes,) = plots.gradient_norm(timeline).axes
    assert axes.get_yscale() == "log"


def with_diversity():
    rows = make_rows()
    for row in rows:
        if row["phase"] == "explore":
            row |= {"rollout/similarity_intra_step": 0.3, "rollout/length_wrong_tokens": 40.0}
            row |= {"pool/coverage_now": 0.4, "pool/coverage_ever": 0.6}
            row |= (
                {"rollout/similarity_inter_step": 0.2, "rollout/length_right_tokens": 30.0} if row["step"] > 2 else {}
            )
        if row["phase"] == "evaluate":
            row |= {"eval/test/pass@1_low": 0.05, "eval/test/pass@1_high": 0.35}
            row |= {"eval/test/forgetting_base": 0.1} if row["step"] else {}
    return rows


def test_what_rollouts_are_like_is_plotted_where_it_was_measured(tmp_path):
    timeline = plots.Timeline(with_diversity())
    curves = {"similarity": 2, "coverage": 2, "length": 2}
    for name, count in curves.items():
        figure = getattr(plots, name)(timeline)
        (axes,) = figure.axes
        assert sum(text.endswith("smoothed") for text in labels(figure)) == count
        assert labels(figure).count("each rollout step") == 1
        assert "rollout" in axes.get_xlabel()
    (axes,) = plots.similarity(timeline).axes
    inter = [line for line in axes.lines if line.get_label().startswith("with the problem")]
    assert [line.get_xdata().tolist() for line in inter] == [
        [3, 4]
    ]  # of the first round, whose steps 1 and 2 have none
    assert "test, forgotten since base" in labels(plots.coverage(timeline))
    assert [path.name for path in write_plots(with_diversity(), tmp_path)] == list(plots.PLOTS)


def test_evaluations_have_their_intervals():
    (axes,) = plots.reward_and_pass(plots.Timeline(with_diversity())).axes
    bars = [segment.tolist() for collection in axes.collections for segment in collection.get_segments()]
    assert bars == [[[x, 0.05], [x, 0.35]] for x in (0, 4, 4, 8, 8)]


def renamed(rows, name):
    return [{key.replace("eval/test/", f"eval/{name}/"): value for key, value in row.items()} for row in rows]


@pytest.mark.parametrize("name", ["test", "a-set-with-a-long-name", "folders/and/" * 12 + "problems-with-$100$.jsonl"])
@pytest.mark.parametrize("rounds", [1, 3, 10, 40])
def test_the_legend_and_the_round_labels_fit_and_do_not_overlap(name, rounds):
    figure = plots.reward_and_pass(plots.Timeline(renamed(make_rows(rounds), name)))
    figure.draw_without_rendering()
    (legend,), (axes,) = figure.legends, figure.axes
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= axes.xaxis.get_tightbbox().y0  # below the axis' label
    assert len(labels(figure)) == 4
    words = sorted((text.get_window_extent() for text in axes.texts), key=lambda one: one.x0)
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(words))


def test_a_curve_of_one_point_is_visible_and_values_that_are_not_finite_are_left_out():
    rows = make_rows(rounds=1, steps=1)
    rows[1]["rollout/reward_mean"] = float("nan")
    (axes,) = plots.gradient_norm(plots.Timeline(rows)).axes
    assert axes.lines[-1].get_marker() == "."
    assert "training reward, smoothed" not in labels(plots.reward_and_pass(plots.Timeline(rows)))


def pool_counts(*problems):
    rollouts, successes = zip(*problems, strict=True)
    return pa.table(
        {"problem_id": [str(i) for i in range(len(problems))], "rollouts": rollouts, "successes": successes}
    )


def heights(axes):
    """The bars of a panel: place to height, of all colours together."""
    found = Counter()
    for bar in axes.patches:
        found[round(bar.get_x() + bar.get_width() / 2, 3)] += round(bar.get_height())
    return {place: height for place, height in found.items() if height}


def test_the_plot_of_a_pool_counts_problems_by_rollouts_and_by_success_rate():
    # One success of eight is 12.5 %, above the threshold; one of sixteen is below.
    counts = pool_counts((8, 0), (8, 1), (8, 8), (16, 0), (16, 1), (16, 4), (24, 24))
    figure = pool_figure(counts, title="round 1", max_success_rate=0.1)
    left, right = figure.axes
    assert heights(left) == {8: 3, 16: 3, 24: 1}
    assert labels(figure) == ["enough rollouts for the filter", "too few rollouts"]
    names = [label.get_text().replace("\n", " ") for label in right.get_xticklabels()]
    bars = dict(zip(names, (round(bar.get_height()) for bar in right.patches), strict=True))
    assert bars == {
        "never": 2, "below 10 %": 1, "10 to 25 %": 1, "25 to 50 %": 1, "50 to 75 %": 0, "75 to 100 %": 0, "always": 2
    }  # fmt: skip
    assert figure.get_suptitle() == (
        "round 1, problems: 7; with enough rollouts for the filter: 4; solved, but in less than 10 %: 1"
    )


def test_a_pool_without_a_filter_and_one_of_many_sizes_are_plotted():
    figure = pool_figure(pool_counts(*((n, n // 2) for n in range(1, 501))), title="round 2", max_success_rate=None)
    left, _ = figure.axes
    assert sum(heights(left).values()) == 500
    assert len(left.patches) <= 24
    assert figure.legends == []


def test_a_plot_without_data_is_not_written(tmp_path):
    assert write_plots([], tmp_path) == []
    rows = [{"round": 0, "phase": "explore", "step": 1, "policy/entropy_nats": 0.3}]
    assert [path.name for path in write_plots(rows, tmp_path)] == ["entropy.png"]
