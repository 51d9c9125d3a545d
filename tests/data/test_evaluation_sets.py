"""Problem sets without a training set, as `rloop-eval` reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rloop_lightning.data.evaluation_sets import EvaluationSets, SelectedSets

GSM8K = '{"question": "1+1?", "answer": "so it is 2\\n#### 2"}\n'
PLAIN = '{"problem": "1+2?", "answer": "3"}\n{"problem": "1+2?", "answer": "3"}\n'


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "gsm8k.jsonl").write_text(GSM8K)
    (tmp_path / "plain.jsonl").write_text(PLAIN)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "plain.jsonl").write_text(PLAIN)
    return tmp_path


def test_each_file_is_a_set_with_its_preset(files: Path) -> None:
    source = EvaluationSets([f"{files}/gsm8k.jsonl", f"{files}/plain.jsonl"], eval_presets={"gsm8k": "gsm8k"})
    assert source.train() == ()
    assert {name: [problem.answer for problem in found] for name, found in source.evaluation().items()} == {
        "gsm8k": ["2"],
        "plain": ["3", "3"],
    }


def test_sets_of_one_name_are_named(files: Path) -> None:
    places = [f"{files}/plain.jsonl", f"{files}/sub/plain.jsonl"]
    with pytest.raises(ValueError, match=r"two sets would be named plain; name them, as in --data\.sets"):
        EvaluationSets(places)
    assert list(EvaluationSets({"a": places[0], "train-split": places[1]}).evaluation()) == ["a", "train-split"]


def test_sets_are_named_after_their_files_whatever_their_folders_are_called(files: Path) -> None:
    folder = files / "run@2024" / "a:b"
    folder.mkdir(parents=True)
    for name in ("gsm.jsonl", "v1.5.jsonl"):
        shutil.copy(files / "plain.jsonl", folder / name)
    assert list(EvaluationSets([f"{folder}/gsm.jsonl", f"{folder}/v1.5.jsonl"]).evaluation()) == ["gsm", "v1.5"]


def test_a_set_needs_a_name(files: Path) -> None:
    with pytest.raises(ValueError, match=r"--data: a set needs a name; give .*plain.jsonl one, as in --data\.sets"):
        EvaluationSets({"": f"{files}/plain.jsonl"})


def test_faults_name_the_option_that_the_user_gave(files: Path) -> None:
    with pytest.raises(ValueError, match=r"^--data gone: no such file or folder: gone.jsonl$"):
        EvaluationSets("gone.jsonl")
    with pytest.raises(ValueError, match="--data: give at least one set"):
        EvaluationSets([])
    with pytest.raises(ValueError, match=r"^--data gsm8k: .*gsm8k.jsonl: 1 row without a field 'problem'"):
        EvaluationSets(f"{files}/gsm8k.jsonl", problem_field="problem").evaluation()
    with pytest.raises(ValueError, match=r"--data\.eval_presets: x: --data has no set 'x', it has gsm8k"):
        EvaluationSets(f"{files}/gsm8k.jsonl", eval_presets={"x": "gsm8k"})


def test_some_sets_of_a_source(files: Path) -> None:
    source = EvaluationSets({"a": f"{files}/plain.jsonl", "b": f"{files}/gsm8k.jsonl"}, max_prompt_tokens=7)
    selected = SelectedSets(source, ["b"])
    assert (list(selected.evaluation()), selected.train()) == (["b"], ())
    assert selected.max_prompt_tokens == 7
    source.notes = lambda: ["a: 2 problems left out", "b: 3 problems left out"]
    assert selected.notes() == ["b: 3 problems left out"]
    assert selected.messages(selected.evaluation()["b"][0])[-1].text.startswith("1+1?\n\nPlease reason")
