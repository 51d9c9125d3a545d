"""Problems on the Hugging Face hub: `rloop-fit --data openai/gsm8k --data.config main --data.preset gsm8k`."""

from __future__ import annotations

from typing import Any

from rloop_lightning.data.hub_rows import HubName
from rloop_lightning.data.read import Origin, ReadProblems


class HubProblems(ReadProblems):
    """Problems in a Hugging Face data set, read by the package `datasets`. The data set's code is never run.

    Args:
        dataset: `organisation/name`, or a folder in the hub's layout.
        config: the data set's configuration; null takes its default.
        split: the split to train on; null takes `train`, or the only split.
        revision: a branch, tag or commit; null takes the newest.
    """

    def __init__(
        self,
        dataset: str,
        *,
        config: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.name = HubName(dataset, config, split, revision, usual_split="train")
        super().__init__(**kwargs)

    def origin(self, wrong: list[str]) -> Origin:
        return self.name
