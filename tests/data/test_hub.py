"""Problems from Hugging Face data sets: names, and folders in the hub's layout in place of a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from problem_files import ROWS, write_rows

from rloop_lightning.data.hub import HubProblems
from rloop_lightning.data.hub_rows import HubName, parse_hub_name

CARD = """---
configs:
- config_name: main
  default: true
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train-*}
---
"""
SOCRATIC = ({"question": "Why?", "answer": "hence\n#### 5"},)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of two configurations, as its repository would hold it; the cache is the test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "repository"
    write_rows(folder / "main" / "train-00000-of-00001.parquet", ROWS)
    write_rows(folder / "main" / "test-00000-of-00001.parquet", ROWS[:1])
    write_rows(folder / "socratic" / "train-00000-of-00001.parquet", SOCRATIC)
    (folder / "README.md").write_text(CARD)
    return folder


def refusal(dataset: Path | str, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the callers look at the message
        HubProblems(str(dataset), **settings).train()
    return str(caught.value)


def test_the_default_config_and_the_split_train(hub: Path) -> None:
    problems = HubProblems(str(hub)).train()
    assert [(p.id, p.prompt, p.answer) for p in problems] == [(r["id"], r["problem"], r["answer"]) for r in ROWS]


def test_a_config_a_split_and_a_slice_of_it(hub: Path) -> None:
    (problem,) = HubProblems(str(hub), config="socratic", preset="gsm8k").train()
    assert (problem.id, problem.prompt, problem.answer) == ("train[0]", "Why?", "5")
    assert [p.id for p in HubProblems(str(hub), split="test").train()] == ["a"]
    assert [p.id for p in HubProblems(str(hub), split="train[1:]").train()] == ["b", "c"]


def test_the_only_split_is_taken_whatever_its_name(tmp_path: Path, hub: Path) -> None:
    write_rows(tmp_path / "one" / "data" / "validation-00000-of-00001.parquet", ROWS[:2])
    assert len(HubProblems(str(tmp_path / "one")).train()) == 2


def test_what_is_not_there_is_named(hub: Path) -> None:
    assert f"--data {hub}:nope: " in (message := refusal(hub, config="nope"))
    assert "socratic" in message
    assert "can't be loaded" in refusal(hub, split="nope")
    message = refusal("nobody/nothing-of-that-name")
    assert message.startswith("--data nobody/nothing-of-that-name: can't be loaded: ")
    assert "no file or folder has that name either" in message
    write_rows(hub.parent / "two" / "data" / "test-00000-of-00001.parquet")
    write_rows(hub.parent / "two" / "data" / "validation-00000-of-00001.parquet")
    assert "has no split 'train', it has" in refusal(hub.parent / "two")


def test_a_scripts_code_is_not_run(tmp_path: Path, hub: Path) -> None:
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "can't be loaded" in refusal(tmp_path / "scripted")
    assert not (tmp_path / "ran").exists()


def test_without_the_package_the_message_names_the_extra(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal(hub)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("openai/gsm8k", HubName("openai/gsm8k", usual_split="test")),
        ("openai/gsm8k:main", HubName("openai/gsm8k", "main", usual_split="test")),
        ("openai/gsm8k:main:train[:10%]", HubName("openai/gsm8k", "main", "train[:10%]", usual_split="test")),
        ("a/b@v1.0::test", HubName("a/b", None, "test", "v1.0", usual_split="test")),
        ("a.module.Class", None),
        ("a/b/c", None),
        ("countdown", None),
    ],
)
def test_names(spec: str, expected: HubName | None) -> None:
    assert parse_hub_name(spec, "test") == expected
    if expected:
        assert str(expected) == spec


def test_an_evaluation_set_of_the_hub_beside_files_takes_the_split_test(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from rloop_lightning.data.files import ProblemFiles

    local = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *args, **kwargs: local(str(hub), *args, **kwargs))
    source = ProblemFiles(str(write_rows(tmp_path / "a.jsonl")), eval=["somebody/numbers:main"])
    assert [problem.id for problem in source.evaluation()["numbers"]] == ["a"]
