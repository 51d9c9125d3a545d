"""Writes rollouts of a run as a data set for other trainers.

    export = Export(folder, origin, ExportConfig(what="expert", out="expert.parquet"), Selection())
    export.write(source, tokenizer)

selection.py chooses the rollouts, export_formats.py says what a row is. A pool may be larger than memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import count_rollouts
from rloop_lightning.rollouts.selection import SelectedRollouts, Selection, Shard, pool_shards
from rloop_lightning.run.export_file import SUFFIXES, write_rows
from rloop_lightning.run.export_formats import (
    VERL_SCHEMA,
    Format,
    Messages,
    Origin,
    PromptCompletion,
    verl_rows,
)
from rloop_lightning.run.export_problems import ExportProblem, export_problems
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.state import Stage
from rloop_lightning.system.fields import NonNegativeInt
from rloop_lightning.system.store_urls import local_only

What = Literal["expert", "pool", "successes"]


@dataclass(frozen=True)
class ExportConfig:
    """What is written, and where.

    Args:
        what: the rollouts of the `expert` sets, all `successes` of the pools, or every rollout of the `pool`.
        format: `messages`, `prompt-completion`, or `verl`. The first two have a row per rollout: a chat with the
            completion last, or the texts that the policy saw and sampled. The last has a row per problem, with verl's
            columns for RL.
        out: the file, FILE.parquet or FILE.jsonl.
        rounds: the rounds, counted from 0 as in the names of their folders; null takes all.
        overwrite: replace an existing file.
        without_prompts: with `prompt-completion`, write completions and problem ids alone. The data of the run is then
            not needed.
        data_source: verl's data_source, by which it chooses its reward function; null takes the run's data.
        ability: verl's ability.
    """

    what: What = "expert"
    format: Format = "messages"
    out: str = ""
    rounds: list[NonNegativeInt] | None = None
    overwrite: bool = False
    without_prompts: bool = False
    data_source: str | None = None
    ability: str = "math"

    def faults(self, folder: RunFolder) -> list[str]:
        """Errors in the settings, one message each."""
        wrong = []
        if self.without_prompts and self.format != "prompt-completion":
            wrong.append(
                f"--without_prompts: a row of --format {self.format} has the prompt; give --format prompt-completion"
            )
        if not self.out:
            return [*wrong, "--out: give a file to write, FILE.parquet or FILE.jsonl"]
        if remote := local_only(self.out, "--out"):
            return [*wrong, *remote]
        try:
            wrong += [f"--out {self.out}: {fault}" for fault in self._faults_of_place(Path(self.out), folder)]
        except OSError as error:  # a name that is too long, or a folder that can't be entered
            wrong.append(f"--out {self.out}: {error.strerror}")
        return wrong

    def _faults_of_place(self, out: Path, folder: RunFolder) -> Iterator[str]:
        parent = next(parent for parent in out.absolute().parents if parent.exists())
        if out.suffix not in SUFFIXES:
            yield f"the name must end in {' or '.join(SUFFIXES)}"
        if not parent.is_dir():
            yield f"{parent} is not a folder"
        elif out.is_dir():
            yield "it is a folder; give a file"
        elif out.exists() and not self.overwrite:
            yield "it exists; give another name, or add --overwrite"
        if _belongs_to_run(out, folder):
            yield "the run keeps its own files there; give a place outside of the run folder"


@dataclass(frozen=True)
class Written:
    """What an export wrote.

    Args:
        rows: of the file.
        problems: problems of the rows.
        tokens: completion tokens of the selected rollouts.
        truncated: selected rollouts that were cut at the length limit.
        copies: rollouts that were left out, since the file has one of the same problem with the same tokens.
    """

    rows: int
    problems: int
    tokens: int
    truncated: int
    copies: int


@dataclass
class _Totals:
    rollouts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    truncated: int = 0
    copies: int = 0

    def add(self, table: pa.Table) -> None:
        self.rollouts.update(table["problem_id"].to_pylist())
        self.tokens += pc.sum(table["length"]).as_py()
        self.truncated += pc.sum(pc.equal(table["finish_reason"], "length")).as_py()


@dataclass(frozen=True)
class Export:
    """An export of a run.

    Args:
        folder: the run.
        origin: what its rows say of the run.
        config: what is written.
        selection: which rollouts are taken.
        data_source: verl's data_source, if the config has none.
    """

    folder: RunFolder
    origin: Origin
    config: ExportConfig
    selection: Selection
    data_source: str = ""

    def write(self, problems: Callable[[], ProblemSource] | None, tokenizer: Any) -> Written:
        """Write the file.

        Args:
            problems: gives the problem sets of the run; None with `without_prompts`.
            tokenizer: of the run's policy.

        Raises:
            ValueError: there is nothing to write, or the problems are not those of the run.
            DamagedError: a file of the run is damaged.
            WriteError: the file can't be written.
        """
        totals = self._totals
        if not totals.rollouts:
            raise ValueError(f"--what {self.config.what}: {self._nothing()}")
        found = None
        if problems is not None:
            found = self._problems(problems, tokenizer)
        if self.config.format == "verl":
            assert found is not None
            source = self.config.data_source or self.data_source
            rates = self._mean_rates
            rows = verl_rows(
                self.origin, found, totals.rollouts, rates, data_source=source, ability=self.config.ability
            )
            count = write_rows(Path(self.config.out), VERL_SCHEMA, rows)
        else:
            count = self._write_rollouts(found, tokenizer)
        return Written(count, len(totals.rollouts), totals.tokens, totals.truncated, totals.copies)

    def _problems(self, problems: Callable[[], ProblemSource], tokenizer: Any) -> Mapping[str, ExportProblem]:
        try:
            return export_problems(self.folder, problems(), tokenizer, self._totals.rollouts.keys())
        except ValueError as error:
            raise ValueError(
                f"{error}\nthe texts of problems are read from the run's --data again; restore it as it was when the "
                "run started, or export completions alone with --format prompt-completion --without_prompts"
            ) from error

    def _write_rollouts(self, found: Mapping[str, ExportProblem] | None, tokenizer: Any) -> int:
        layout: Messages | PromptCompletion
        if self.config.format == "messages":
            assert found is not None
            layout = Messages(self.origin, found)
        else:
            layout = PromptCompletion(self.origin, found)

        def rows() -> Iterator[dict[str, Any]]:
            for table in self._selected.tables():
                texts = table["text"].to_pylist()
                if layout.needs_tokens:
                    texts = tokenizer.batch_decode(
                        table["completion_ids"].to_pylist(),
                        skip_special_tokens=False,
                        clean_up_tokenization_spaces=False,
                    )
                yield from layout.rows(table, texts)

        return write_rows(Path(self.config.out), layout.schema, rows())

    @cached_property
    def _totals(self) -> _Totals:
        totals = _Totals()
        copies: list[int] = []
        for table in self._selected.tables(copies):
            totals.add(table)
        totals.copies = sum(copies)
        return totals

    @cached_property
    def _selected(self) -> SelectedRollouts:
        successes_only = self.config.what == "successes"
        return SelectedRollouts(self._shards, self._rates, self.selection, successes_only=successes_only)

    @cached_property
    def _pools(self) -> dict[int, RolloutPool]:
        """The pools of the chosen rounds.

        Raises:
            ValueError: a round is not there.
        """
        pools = self.folder.existing_pools()
        if missing := [number for number in self.config.rounds or [] if number not in pools]:
            known = f"it has {', '.join(map(str, pools))}" if pools else "it has none yet"
            raise ValueError(f"--rounds: the run has no round {', '.join(map(str, missing))}; {known}, counted from 0")
        chosen = self.config.rounds
        return {number: pool for number, pool in pools.items() if chosen is None or number in chosen}

    @cached_property
    def _shards(self) -> list[Shard]:
        if self.config.what != "expert":
            return [shard for number, pool in self._pools.items() for shard in pool_shards(pool, number)]
        files = {number: self.folder.expert_set(Stage(number, "consolidate")) for number in self._pools}
        return [Shard(path, number, of_pool=False) for number, path in files.items() if path.exists()]

    @cached_property
    def _counts(self) -> dict[int, pa.Table]:
        return {number: count_rollouts(pool) for number, pool in self._pools.items()}

    @cached_property
    def _rates(self) -> dict[int, dict[str, float]]:
        return {number: _rates_of(counts) for number, counts in self._counts.items()}

    @property
    def _mean_rates(self) -> dict[str, float]:
        """Success rates over all chosen rounds."""
        both = pa.concat_tables(self._counts.values()).group_by("problem_id")
        summed = both.aggregate([("rollouts", "sum"), ("successes", "sum")])
        return _rates_of(
            summed.select(["problem_id", "rollouts_sum", "successes_sum"]).rename_columns(
                ["problem_id", "rollouts", "successes"]
            )
        )

    def _nothing(self) -> str:
        """Why nothing is selected."""
        if not self._shards:
            return f"there is no {'expert set' if self.config.what == 'expert' else 'pool'} in {self.folder.out}"
        if self.config.what == "expert" and not any(pq.read_metadata(shard.path).num_rows for shard in self._shards):
            return (
                "the expert sets of the rounds are empty; export --what successes, or look for another "
                "--filter.max_success_rate with rloop-data refilter RUN"
            )
        seen = sum(pc.sum(counts["rollouts"]).as_py() or 0 for counts in self._counts.values())
        return f"nothing is left of the {seen:,} rollouts of the rounds; ask for less with --min_... and --max_..."


def _rates_of(counts: pa.Table) -> dict[str, float]:
    rates = counts["successes"].to_numpy() / counts["rollouts"].to_numpy()
    return dict(zip(counts["problem_id"].to_pylist(), rates.tolist(), strict=True))


def _belongs_to_run(out: Path, folder: RunFolder) -> bool:
    """Whether the run has its own files at this place."""
    try:
        parts = out.resolve().relative_to(folder.out.resolve()).parts
    except ValueError:
        return False
    first = re.sub(r"^round-\d+$", "round", parts[0]) if parts else ""
    names = (folder.final, folder.merged, folder.base, folder.data, folder.tensorboard, folder.plots, folder.problems)
    return first == "round" or first in {path.name for path in names}
