"""Problem sets from Python objects: what counts as one, and the files that they become."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from rloop_lightning.data.files import ProblemFiles
from rloop_lightning.data.records import record_faults, record_sets, write_sets
from rloop_lightning.types import Problem

ROWS = [{"problem": "1+1=", "answer": "2", "numbers": [1, 1]}, {"problem": "é\n+2=", "answer": "3", "numbers": [1, 2]}]
TABLE = datasets.Dataset.from_list(ROWS)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (ROWS, ["train"]),
        (tuple(ROWS), ["train"]),
        (TABLE, ["train"]),
        (TABLE.to_iterable_dataset(), ["train"]),
        (datasets.DatasetDict(train=TABLE, test=TABLE), ["train", "test"]),
        ({"train": ROWS, "ood": TABLE}, ["train", "ood"]),
    ],
    ids=["list", "tuple", "Dataset", "IterableDataset", "DatasetDict", "dict"],
)
def test_rows_are_read_back_as_the_same_problems(value: Any, names: list[str], tmp_path: Path) -> None:
    sets = record_sets(value)
    assert sets is not None
    assert record_faults(sets) == []
    files = write_sets(sets, tmp_path / "data")
    assert files == {name: tmp_path / "data" / f"{name}.jsonl" for name in names}
    expected = (
        Problem("train.jsonl:1", "1+1=", "2", {"numbers": [1, 1]}),
        Problem("train.jsonl:2", "é\n+2=", "3", {"numbers": [1, 2]}),
    )
    evaluation = {name: str(file) for name, file in files.items() if name != "train"}
    source = ProblemFiles(str(files["train"]), metadata_fields=("numbers",), eval=evaluation)
    assert source.train() == expected
    assert {name: len(problems) for name, problems in source.evaluation().items()} == dict.fromkeys(names[1:], 2)


@pytest.mark.parametrize(
    "value",
    ["countdown", "train.jsonl", [], ["a.jsonl"], {}, {"train_size": 8}, {"eval": ["a"]}, dict, 3, ROWS[0], None],
)
def test_names_and_settings_are_no_rows(value: Any) -> None:
    assert record_sets(value) is None


def test_a_set_named_train_is_needed_and_names_become_files() -> None:
    assert record_faults({"test": ROWS, "../x": ROWS}) == [
        "data: '../x' can't name a set; take letters, digits, `_`, `-` and `.`",
        "data: there is no set named train, only test, ../x; name one of them so",
    ]


def test_numbers_and_arrays_of_numpy_become_plain_ones(tmp_path: Path) -> None:
    row = {"problem": "?", "answer": np.int64(2), "numbers": np.array([1, 2])}
    files = write_sets({"train": [row]}, tmp_path)
    assert files["train"].read_text() == '{"problem": "?", "answer": 2, "numbers": [1, 2]}\n'


def test_decimals_keep_their_digits(tmp_path: Path) -> None:
    files = write_sets({"train": [{"problem": "?", "answer": Decimal("1.50")}]}, tmp_path)
    assert ProblemFiles(str(files["train"])).train()[0].answer == "1.50"


def test_all_sets_that_have_no_form_in_json_are_named_and_none_is_written(tmp_path: Path) -> None:
    bad = [*ROWS, {"problem": "?", "answer": {1, 2}}]
    with pytest.raises(ValueError, match=r"data: train\[2\] can't be written as JSON \(a set has no form") as caught:
        write_sets({"train": bad, "test": ROWS, "ood": [{"problem": b"?"}]}, tmp_path)
    assert "data: ood[0] can't be written as JSON (a bytes has no form in JSON)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
