"""What a study compares: arms, grids, seeds and budget, from a YAML file or from names."""

from __future__ import annotations

from pathlib import Path

import pytest

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.study_file import plan_of_names, read_plan


def written(folder: Path, text: str) -> str:
    path = folder / "study.yaml"
    path.write_text(text)
    return str(path)


def test_names_make_an_arm_for_each_pair() -> None:
    assert plan_of_names(["dapo", "my.Algo"], ["none", "rft"]).arms == {
        "dapo+none": {"algo": "dapo", "consolidate": "none"},
        "dapo+rft": {"algo": "dapo", "consolidate": "rft"},
        "Algo+none": {"algo": "my.Algo", "consolidate": "none"},
        "Algo+rft": {"algo": "my.Algo", "consolidate": "rft"},
    }
    assert plan_of_names(["kl"], []).arms == {"kl": {"algo": "kl"}}
    with pytest.raises(UsageError, match="there twice"):
        plan_of_names(["kl", "kl"], ["none"])


def test_an_arm_is_overrides_and_a_grid_is_an_arm_per_value(tmp_path: Path) -> None:
    plan = read_plan(
        written(
            tmp_path,
            """
config: countdown
base: {loop: {rounds: 2}, algo.lr: 1e-4}
arms:
  dapo: {consolidate: none}
  base as it is:
  rloop:
    consolidate: {name: rft, lr: 2e-4}
    grid: {filter.max_success_rate: [0.1, 0.5], consolidate.epochs: [1, 2]}
seeds: [3, 1]
budget: tokens
""",
        )
    )
    assert (plan.configs, plan.seeds, plan.budget) == (["countdown"], [3, 1], "tokens")
    assert plan.base == {"loop": {"rounds": 2}, "algo": {"lr": 1e-4}}
    assert list(plan.arms) == [
        "dapo",
        "base as it is",
        "rloop max_success_rate=0.1 epochs=1",
        "rloop max_success_rate=0.1 epochs=2",
        "rloop max_success_rate=0.5 epochs=1",
        "rloop max_success_rate=0.5 epochs=2",
    ]
    assert plan.arms["base as it is"] == {}
    assert plan.arms["rloop max_success_rate=0.5 epochs=1"] == {
        "consolidate": {"name": "rft", "lr": 2e-4, "epochs": 1},
        "filter": {"max_success_rate": 0.5},
    }


def test_a_grid_of_the_study_crosses_its_arms(tmp_path: Path) -> None:
    text = "arms: {a: {loop.rounds: 1}, b: {loop.rounds: 2}}\ngrid: {algo: [dapo, grpo], algo.lr: [1.0, 2.0]}\n"
    arms = read_plan(written(tmp_path, text)).arms
    assert list(arms) == [f"{arm} {algo} lr={lr}" for arm in "ab" for algo in ("dapo", "grpo") for lr in (1.0, 2.0)]
    assert arms["b grpo lr=2.0"] == {"loop": {"rounds": 2}, "algo": {"name": "grpo", "lr": 2.0}}
    alone = read_plan(written(tmp_path, "grid: {algo: [dapo, grpo]}\n")).arms
    assert alone == {"dapo": {"algo": "dapo"}, "grpo": {"algo": "grpo"}}


def test_two_keys_of_one_name_are_told_apart(tmp_path: Path) -> None:
    arms = read_plan(written(tmp_path, "grid: {algo.lr: [1, 2], consolidate.lr: [3]}\n")).arms
    assert list(arms) == ["algo.lr=1 consolidate.lr=3", "algo.lr=2 consolidate.lr=3"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seeds: [0]\n", ["arms: give a mapping from the name of an arm to its settings, or a grid"]),
        (
            "arms: {a: 3, b: {seed_everything: 1}}\nloop: {}\nseeds: [0, 0]\nbudget: time\ngrid: {algo: dapo}\n",
            [
                "loop: a study has config, base, arms, grid, seeds, budget",
                "arms.a: expected settings such as `algo: dapo`, got 3",
                "arms.b.seed_everything: the study sets it for each cell; leave it out",
                "seeds: expected different integers >= 0 such as [0, 1, 2], got [0, 0]",
                "budget: expected rollout_steps, tokens, free, got 'time'",
                "grid: expected a list of values for each key",
            ],
        ),
        ("arms: {a: {}}\nseeds: [true, -1]\n", ["seeds: expected different integers"]),
        ("arms: {a: {}}\nseeds: 3\n", ["seeds: expected different integers"]),
        ("arms: {a: {}, a: {}}\n", ["arms.a: it is there twice"]),
        ("command: rloop-compare a.yaml\narms: {a: {}}\n", ["not a study file; repeat it by: rloop-compare a.yaml"]),
        ("[1]\n", ["expected groups of settings"]),
        ("arms: {a: {}}\nconfig: 3\n", ["config: expected a preset or file"]),
    ],
)
def test_all_faults_of_a_study_are_told_at_once(tmp_path: Path, text: str, told: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read_plan(written(tmp_path, text))
    for message in told:
        assert message in str(caught.value)
    assert str(tmp_path / "study.yaml") in str(caught.value)


def test_a_study_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no study file"):
        read_plan(str(tmp_path / "none.yaml"))
