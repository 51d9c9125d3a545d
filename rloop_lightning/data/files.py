"""Problems in files, here or in a store: `rloop-fit --data train.jsonl --data.eval s3://bucket/test.jsonl`."""

from __future__ import annotations

from typing import Any

from rloop_lightning.data.read import Origin, ReadProblems, file_origin


class ProblemFiles(ReadProblems):
    """Problems in a JSONL, JSON, CSV or Parquet file, or in all such files of a folder.

    Args:
        path: the file or folder, or its URL in a store, such as s3://BUCKET/train.jsonl.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        self.path = path
        super().__init__(**kwargs)

    def origin(self, wrong: list[str]) -> Origin:
        return file_origin(self.path, "--data", wrong)
