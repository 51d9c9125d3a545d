"""`rloop-data export` from a run folder to files on disk."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from problem_files import write_rows
from tiny_run import TinyRun

from rloop_lightning.cli.data import main
from rloop_lightning.cli.export import OPTIONS
from rloop_lightning.cli.refilter import Refilter
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.model.loading import load_tokenizer
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.system.json_file import json_checksum
from rloop_lightning.types import Problem


class Sums(ProblemSource):
    """n 1=n+1: as the countdown policy reads it."""

    def train(self) -> list[Problem]:
        return [Problem(f"s{number}", f"{number} 1={number + 1}:", str(number + 1)) for number in range(8)]

    def evaluation(self) -> dict[str, list[Problem]]:
        return {}


Export = Callable[..., list[dict[str, Any]]]


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pq.read_table(path).to_pylist()


def pool_rows(run: Path) -> list[dict[str, Any]]:
    return [row for path in RolloutPool(run / "round-0" / "pool").shards() for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def export(finished: Path, tmp_path: Path) -> Export:
    def run(*options: str, out: str = "out.parquet", of: Path = finished) -> list[dict[str, Any]]:
        assert main(["export", str(of), "--out", str(tmp_path / out), "--overwrite", *options]) == 0
        return rows_of(tmp_path / out)

    return run


def test_copies_that_are_left_out_are_told(export: Export, capsys: pytest.CaptureFixture[str]) -> None:
    every = export("--what=pool", "--deduplicate=false")
    assert " copies of rollouts" not in capsys.readouterr().out
    once = export("--what=pool")
    left = len(every) - len(once)
    assert left > 0
    assert f"{left} copies of rollouts with the same tokens were left out" in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert all(line.startswith("rloop-data: error: ") for line in said.splitlines())
    return said


def test_prompt_and_completion_are_what_the_policy_saw(finished: Path, export: Export) -> None:
    rows = export("--what=pool", "--format=prompt-completion", "--deduplicate=false")
    stored = pool_rows(finished)
    tokenizer = load_tokenizer(str(embedded_model_path()))
    assert len(rows) == len(stored) == 64
    assert [row["problem_id"] for row in rows] == [row["problem_id"] for row in stored]
    for row, of_pool in zip(rows, stored, strict=True):
        encoded = tokenizer.encode(row["prompt"] + row["completion"], add_special_tokens=False)
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        assert encoded == prompt + of_pool["completion_ids"]
        assert (tokenizer.eos_token in row["completion"]) == (row["finish_reason"] == "stop")
        numbers = sorted(map(int, row["problem_id"].removeprefix("countdown-").split("-")[:-1]))
        assert sorted(map(int, row["prompt"].partition("=")[0].split())) == numbers


def test_rows_tell_where_they_come_from(finished: Path, export: Export) -> None:
    state = json.loads((finished / "state.json").read_text())
    stored = pool_rows(finished)
    rollouts, successes = Counter(), Counter()
    for row in stored:
        rollouts[row["problem_id"]] += 1
        successes[row["problem_id"]] += row["success"]
    for row, of_pool in zip(export("--what=pool", "--deduplicate=false"), stored, strict=True):
        assert row.pop("messages")[-1] == {"role": "assistant", "content": of_pool["text"]}
        assert row == {
            "problem_id": of_pool["problem_id"], "round": 0, "rollout_step": of_pool["rollout_step"],
            "reward": of_pool["reward"], "success": of_pool["success"], "finish_reason": of_pool["finish_reason"],
            "success_rate": successes[row["problem_id"]] / rollouts[row["problem_id"]], "length": of_pool["length"],
            "run_id": state["run_id"], "model": "countdown", "settings_sha256": json_checksum(state["settings"]),
        }  # fmt: skip


def test_the_expert_set_is_exported_by_default(
    finished: Path, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, stored = export(), pq.read_table(finished / "round-0" / "expert.parquet").to_pylist()
    assert [row["messages"][-1]["content"] for row in rows] == [row["text"] for row in stored]
    assert all(row["success"] and 0 < row["success_rate"] <= 1 for row in rows)
    problems, tokens = len({row["problem_id"] for row in rows}), sum(row["length"] for row in rows)
    said = f"{tmp_path / 'out.parquet'}: {len(rows)} rows, {problems} problems, {tokens} completion tokens\n"
    assert capsys.readouterr().out == said
    assert export(out="out.jsonl") == rows
    assert not list(tmp_path.glob("*.partial"))


def test_each_filter_takes_what_it_says(export: Export) -> None:
    everything = export("--what=pool", "--deduplicate=false")
    tests = {
        "--max_rollout_step=1": lambda row: row["rollout_step"] <= 1,
        "--min_rollout_step=3": lambda row: row["rollout_step"] >= 3,
        "--min_success_rate=0.5": lambda row: row["success_rate"] >= 0.5,
        "--max_success_rate=0.5": lambda row: row["success_rate"] < 0.5,
        "--min_reward=0.5": lambda row: row["reward"] >= 0.5,
        "--max_reward=0.5": lambda row: row["reward"] <= 0.5,
        "--min_length=24": lambda row: row["length"] >= 24,
        "--max_length=23": lambda row: row["length"] <= 23,
        "--finish_reason=stop": lambda row: row["finish_reason"] == "stop",
        "--rounds=0": lambda row: True,
    }
    for option, holds in tests.items():
        expected = [row for row in everything if holds(row)]
        assert 0 < len(expected) <= len(everything)
        assert export("--what=pool", "--deduplicate=false", option) == expected, option
    assert export("--what=successes", "--deduplicate=false") == [row for row in everything if row["success"]]


def copied(run: Path, to: Path) -> Path:
    """A run with two more rounds of the same rollouts."""
    shutil.copytree(run, to)
    for number in (1, 2):
        shutil.copytree(run / "round-0", to / f"round-{number}")
    return to


def test_copies_are_left_out_over_all_rounds_and_the_earliest_stays(
    finished: Path, export: Export, tmp_path: Path
) -> None:
    thrice = copied(finished, tmp_path / "thrice")
    stored = pool_rows(finished)
    distinct = {(row["problem_id"], tuple(row["completion_ids"])): row["rollout_step"] for row in reversed(stored)}
    rows = export("--what=pool", of=thrice)
    assert len(rows) == len(distinct) < len(stored)
    assert Counter(row["round"] for row in rows) == {0: len(distinct)}
    assert sorted(row["rollout_step"] for row in rows) == sorted(distinct.values())
    assert len(export("--what=pool", "--deduplicate=false", of=thrice)) == 3 * len(stored)
    assert {row["round"] for row in export("--what=pool", "--rounds=1,2", of=thrice)} == {1}


@pytest.mark.parametrize("deduplicate", ["true", "false"])
def test_a_cap_draws_by_the_seed(export: Export, deduplicate: str) -> None:
    options = ("--what=pool", f"--deduplicate={deduplicate}")
    everything = Counter(row["problem_id"] for row in export(*options))
    drawn = {seed: export(*options, "--max_per_problem=2", f"--seed={seed}") for seed in (1, 2)}
    for rows in drawn.values():
        assert Counter(row["problem_id"] for row in rows) == {name: min(2, n) for name, n in everything.items()}
    assert drawn[1] != drawn[2]
    assert drawn[1] == export(*options, "--max_per_problem=2", "--seed=1")


def test_verl_has_a_row_a_problem(finished: Path, export: Export) -> None:
    rows = export(
        "--format=verl", "--what=successes", "--data_source=me/it", "--ability=arithmetic", "--deduplicate=false"
    )
    counts = Counter(row["problem_id"] for row in pool_rows(finished))
    solved = Counter(row["problem_id"] for row in pool_rows(finished) if row["success"])
    assert {row["extra_info"]["problem_id"]: row["extra_info"]["rollouts"] for row in rows} == solved
    for row in rows:
        told = row["extra_info"]
        name = told["problem_id"]
        *_, target = name.split("-")
        assert (row["data_source"], row["ability"]) == ("me/it", "arithmetic")
        assert row["reward_model"] == {"style": "rule", "ground_truth": target}
        assert (told["golds"], told["split"]) == ([target], "train")
        assert told["success_rate"] == solved[name] / counts[name]
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
        assert row["prompt"][0]["content"].endswith(f"={target}:")
    assert [row["extra_info"]["index"] for row in rows] == sorted(row["extra_info"]["index"] for row in rows)
    assert export("--format=verl", "--what=successes")[0]["data_source"] == "countdown"


def test_wrong_options_are_named_at_once_and_nothing_is_written(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.parquet"
    said = refused(capsys, finished, "--what=x", "--rounds=a", "--min_reward=nan", "--nope", "--out", out)
    for expected in (
        "--what: expected expert, pool or successes, got 'x'",
        "--rounds: expected",
        "--min_reward: expected a finite number or null, got nan",
        "--nope: no such option",
    ):
        assert expected in said
    assert "--min_length 5 exceeds --max_length 4" in refused(
        capsys, finished, "--min_length=5", "--max_length=4", "--out", out
    )
    assert "the name must end in .parquet or .jsonl" in refused(capsys, finished, "--out", tmp_path / "a.csv")
    assert "--out: give a file" in refused(capsys, finished)
    assert "File name too long" in refused(capsys, finished, "--out", tmp_path / f"{'x' * 300}.jsonl")
    assert "state.json is not a folder" in refused(capsys, finished, "--out", finished / "state.json" / "a.jsonl")
    assert "and the run's data of --data countdown" in refused(capsys, finished, "--data", "x.jsonl", "--out", out)
    assert "has no round 7; it has 0" in refused(capsys, finished, "--rounds=0,7", "--out", out)
    assert "nothing is left of the 64 rollouts" in refused(capsys, finished, "--min_length=999", "--out", out)
    empty = shutil.copytree(finished, tmp_path / "empty")
    expert = empty / "round-0" / "expert.parquet"
    pq.write_table(pq.read_table(expert).slice(0, 0), expert)
    said = refused(capsys, empty, "--what=expert", "--out", out)
    assert "the expert sets of the rounds are empty; export --what successes" in said
    shutil.rmtree(empty)
    assert "give a place outside" in refused(capsys, finished, "--out", finished / "round-0" / "pool" / "a.parquet")
    assert "give --format prompt-completion" in refused(capsys, finished, "--without_prompts", "--out", out)
    assert "give the folder of a run" in refused(capsys)
    assert "no state.json there" in refused(capsys, tmp_path, "--out", out)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_unless_asked(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text("mine")
    assert "it exists; give another name, or add --overwrite" in refused(capsys, finished, "--out", out)
    assert out.read_text() == "mine"
    assert main(["export", str(finished), "--out", str(out), "--overwrite"]) == 0
    assert len(rows_of(out)) > 0


def test_a_damaged_shard_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    shard = run / "round-0" / "pool" / "step-000002.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    assert f"{shard} is not a shard of a rollout pool, or damaged" in refused(
        capsys, run, "--out", tmp_path / "a.jsonl"
    )
    assert not (tmp_path / "a.jsonl").exists()


@pytest.fixture(scope="module")
def file_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a file of problems with system messages and hostile text, and the file."""
    folder = tmp_path_factory.mktemp("files")
    texts = ["1 2=3:", "2 3=5:", "3 4=7:\u202e\u2028x"]
    turns = [[{"role": "system", "content": "S"}, {"role": "user", "content": text}] for text in texts]
    rows = [{"id": f"p{number}", "problem": turn, "answer": "3"} for number, turn in enumerate(turns)]
    data, held = write_rows(folder / "train.jsonl", rows), write_rows(folder / "held.jsonl", rows)
    tiny = TinyRun.written(
        folder,
        data={"name": "files", "path": str(data), "instruction": "Add.", "eval": {"held": str(held)}},
        reward={"name": "reward_functions.always"},
        loop={"problems_per_step": 3, "explore_steps": 1},
        consolidate={"name": "none"},
        eval={"sets": []},
    )
    return tiny.finished(folder / "run"), data


def test_messages_have_system_turns_and_the_instruction(
    file_run: tuple[Path, Path], export: Export, tmp_path: Path
) -> None:
    run, _ = file_run
    for out in ("out.jsonl", "out.parquet"):
        rows = export("--what=pool", of=run, out=out)
        assert out.endswith(".parquet") or (tmp_path / out).read_bytes().isascii()
        asked = {row["problem_id"]: row["messages"][:-1] for row in rows}
        assert asked["p2"] == [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "3 4=7:\u202e\u2028x\n\nAdd."},
        ]
    rows = export("--what=pool", "--format=prompt-completion", of=run)
    assert next(row["prompt"] for row in rows if row["problem_id"] == "p0").startswith("S\n\nProblem:\n1 2=3:")


def test_data_may_be_at_another_place_now(
    file_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], export: Export
) -> None:
    run, data = file_run
    moved = tmp_path / "moved.jsonl"
    moved.write_text(data.read_text())
    expected = export("--what=pool", of=run)
    data.rename(tmp_path / "aside.jsonl")
    try:
        assert "no such file or folder" in refused(capsys, run, "--what=pool", "--out", tmp_path / "b.parquet")
        assert export("--what=pool", "--data", str(moved), of=run) == expected
    finally:
        (tmp_path / "aside.jsonl").rename(data)


def test_a_data_class_of_the_users_own_run_needs_no_trust(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], export: Export
) -> None:
    run = tmp_path / "run"
    mine = ["--data=cli.test_export.Sums", "--reward=reward_functions.always"]
    assert tiny.fit(run, *mine, "--consolidate=none", "--eval.sets=[]", "--debug") == 0
    assert main(["check", "cli.test_export.Sums"]) == 0  # a class without arguments
    rows = export("--what=pool", of=run)
    assert {row["messages"][0]["content"] for row in rows} <= {f"{number} 1={number + 1}:" for number in range(8)}
    taken = shutil.copytree(run, tmp_path / "taken")
    assert "if you trust it, add --trust" in refused(capsys, taken, "--what=pool", "--out", tmp_path / "b.parquet")
    assert export("--what=pool", "--trust", of=taken) == rows


def test_the_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    said = capsys.readouterr().out
    for cls in OPTIONS:
        assert all(f"  --{option.name} " in said for option in fields(cls))
    assert main(["refilter", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  --filter.{option.name} " in said for option in fields(Refilter))


def test_changed_or_missing_data_is_refused_and_completions_alone_are_exported(
    file_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], export: Export
) -> None:
    run, data = file_run
    content, out = data.read_text(), tmp_path / "a.parquet"
    try:
        data.write_text(content.replace("2 3=5", "2 3=6"))
        said = refused(capsys, run, "--what=pool", "--out", out)
        assert "the text of 1 problem (p1) is different now" in said
        assert "--format prompt-completion --without_prompts" in said
        data.unlink()
        assert f"no such file or folder: {data}" in refused(capsys, run, "--what=pool", "--out", out)
        assert not out.exists()
        rows = export("--what=pool", "--format=prompt-completion", "--without_prompts", of=run)
        assert len(rows) > 0
        assert "prompt" not in rows[0]
        assert {row["problem_id"] for row in rows} == {"p0", "p1", "p2"}
        assert "no expert set" in refused(capsys, run, "--out", out)
    finally:
        data.write_text(content)


def test_a_strangers_data_class_is_not_imported_without_trust(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = shutil.copytree(finished, tmp_path / "run")
    state = json.loads((run / "state.json").read_text())
    state.pop("sha256")
    state["settings"]["data"] = {"name": "theirs.Theirs"}
    (run / "state.json").write_text(json.dumps({**state, "sha256": json_checksum(state)}))
    said = refused(capsys, run, "--out", tmp_path / "a.jsonl")
    assert "data.name names theirs.Theirs" in said
    assert "reading the problems runs this code; if you trust it, add --trust" in said
    assert not (tmp_path / "ran").exists()
    refused(capsys, run, "--out", tmp_path / "a.jsonl", "--trust")
    assert (tmp_path / "ran").exists()


def test_memory_does_not_grow_with_the_texts(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Export
) -> None:
    """A shard of ten thousand long rollouts: at any time, Arrow holds those of a few row groups."""
    run = shutil.copytree(finished, tmp_path / "run")
    shard = run / "round-0" / "pool" / "step-000001.parquet"
    table = pq.read_table(shard)
    index = table.schema.get_field_index("text")
    one = table.slice(0, 1)
    rows = pa.concat_tables([one] * 10_000)
    texts = pa.array([f"{number} " * 400 for number in range(10_000)])
    pq.write_table(rows.set_column(index, table.schema.field("text"), texts), shard, row_group_size=1024)
    before, peak = pa.total_allocated_bytes(), 0
    original = json.dumps

    def dumps(*arguments: Any, **options: Any) -> str:
        nonlocal peak
        peak = max(peak, pa.total_allocated_bytes() - before)
        return original(*arguments, **options)

    monkeypatch.setattr("rloop_lightning.run.export_file.json.dumps", dumps)
    assert len(export("--what=pool", "--deduplicate=false", "--max_rollout_step=0", of=run, out="a.jsonl")) == 10_000
    assert 0 < peak < texts.nbytes / 2
