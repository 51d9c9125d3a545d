"""The plan of a run and its state on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from rloop_lightning.errors import DamagedError
from rloop_lightning.run.handover import select_final
from rloop_lightning.run.state import Budget, LoopConfig, LoopState, Stage, StageOutcome, plan


def test_the_plan_alternates_exploration_and_consolidation_and_evaluates_each_policy() -> None:
    assert [(stage.round, stage.phase, stage.name) for stage in plan(2, consolidates=True)] == [
        (0, "evaluate", "base"),
        (0, "explore", "round 1 explored"),
        (0, "evaluate", "round 1 explored"),
        (0, "consolidate", "round 1 consolidated"),
        (0, "evaluate", "round 1 consolidated"),
        (1, "explore", "round 2 explored"),
        (1, "evaluate", "round 2 explored"),
        (1, "consolidate", "round 2 consolidated"),
        (1, "evaluate", "round 2 consolidated"),
    ]


def test_without_a_consolidation_there_is_one_exploration() -> None:
    assert [stage.phase for stage in plan(3, consolidates=False)] == ["evaluate", "explore", "evaluate"]


def test_a_state_survives_its_file(tmp_path: Path) -> None:
    state = LoopState("id", 3, 1, "explore", notes=("a",), budget=Budget(rollouts=5), results={"base": {"x": 0.5}})
    state.save(tmp_path / "state.json")
    assert LoopState.load(tmp_path / "state.json") == state


def test_a_stage_adds_its_cost_its_results_and_its_note() -> None:
    stages = [Stage(0, "explore", "explored"), Stage(0, "evaluate", "explored")]
    first = StageOutcome(Budget(rollouts=2), {"p": {"a": 1.0}}, note="short")
    second = StageOutcome(Budget(rollouts=3, seconds=1.5), {"p": {"b": 2.0}})
    state = LoopState("id").after(stages, first)
    assert (state.stages_done, state.phase, state.notes) == (1, "evaluate", ("short",))
    state = state.after(stages, second)
    assert (state.stages_done, state.phase) == (2, "done")
    assert state.budget == Budget(rollouts=5, seconds=1.5)
    assert state.results == {"p": {"a": 1.0, "b": 2.0}}


@pytest.mark.parametrize(
    ("select", "expected"), [("last", "c"), ("explored", "b explored"), ("pass@1", "b explored"), ("pass@k", "a")]
)
def test_which_policy_is_handed_over(select: str, expected: str) -> None:
    table = {"a": (0.1, 0.9), "b explored": (0.3, 0.2), "c": (0.2, 0.8)}
    results = {
        name: {"eval/validation/pass@1": one, "eval/validation/pass@4": four} for name, (one, four) in table.items()
    }
    assert select_final(list(table), results, select, k=4) == expected  # type: ignore[arg-type]


def test_all_wrong_sizes_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"--loop.rounds: expected an integer > 0.*\n.*explore_steps.*\n.*checkpoint"):
        LoopConfig(rounds=0, explore_steps=-1, checkpoint_every_n_steps=-1)


def test_a_state_that_was_changed_by_hand_is_damaged(tmp_path: Path) -> None:
    """Valid JSON, every key there: the checksum alone tells."""
    path = tmp_path / "state.json"
    LoopState("abc", stages_done=3).save(path)
    assert LoopState.load(path).stages_done == 3
    path.write_text(path.read_text().replace('"stages_done": 3', '"stages_done": 4'))
    with pytest.raises(DamagedError, match=r"state\.json is damaged"):
        LoopState.load(path)
