"""Every rollout of an evaluation on a set, as Parquet files in one folder, each with the problems of one part.

    parts = RolloutParts(evaluation / "00-final" / "rollouts" / "0-test", "final", "test")
    parts.done(problems, n)             # problems of complete parts: where sampling goes on
    parts.write(groups, first=16)       # part-000016.parquet: problems 16 and following
    parts.groups(problems, n)           # all rollouts

A part appears by atomic rename or not at all, and its checksum is in `_SHA256SUMS`. Any Parquet reader can read the
folder as one table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.pool import POOL_SCHEMA, ROW_GROUP_ROWS, list_rows, rollout_table
from rloop_lightning.system.checksums import add_checksum, damaged_files
from rloop_lightning.system.files import atomic_path
from rloop_lightning.types import Group, Problem, Rollout

_OF_RUNS = ("round", "rollout_step", "policy_version", "run_id")  # columns of a pool
_OF_POOLS = pa.schema([field for field in POOL_SCHEMA if field.name not in _OF_RUNS])

ROLLOUT_SCHEMA = pa.schema(
    [
        pa.field("policy", pa.string(), nullable=False),  # as in the results table
        pa.field("set", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),  # number of the rollout among those of its problem
        *_OF_POOLS,
    ]
)


class RolloutParts:
    """The rollouts of one policy on one set.

    Args:
        folder: the folder of the files, which the first write creates.
        policy: name of the policy, for the column.
        name: name of the set, for the column.
    """

    def __init__(self, folder: Path, policy: str, name: str) -> None:
        self.folder = folder
        self.policy = policy
        self.name = name

    def done(self, problems: Sequence[Problem], n: int) -> int:
        """The number of problems, from the first on, whose rollouts are there and intact.

        Args:
            problems: of the set, in order.
            n: rollouts per problem.
        """
        done, intact = 0, self._intact()
        while size := self._problems_in(self._file(done), intact, problems, done, n):
            done += size
        return done

    def write(self, groups: Sequence[Group], first: int) -> None:
        """Write the groups of a part, atomically.

        Args:
            groups: in the order of the set.
            first: number of their first problem in the set, from 0.

        Raises:
            WriteError: the file can't be written.
        """
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        table = rollout_table(rollouts, _OF_POOLS)
        samples = np.concatenate([np.arange(len(group.rollouts), dtype=np.int32) for group in groups])
        own = [pa.array([self.policy] * len(rollouts)), pa.array([self.name] * len(rollouts)), pa.array(samples)]
        path = self._file(first)
        with atomic_path(path) as partial:
            whole = pa.Table.from_arrays([*own, *table.columns], schema=ROLLOUT_SCHEMA)
            pq.write_table(whole, partial, compression="zstd", row_group_size=ROW_GROUP_ROWS)
        add_checksum(path)

    def groups(self, problems: Sequence[Problem], n: int) -> list[Group]:
        """The groups of all problems, without their prompts' tokens.

        Args:
            problems: of the set, in order.
            n: rollouts per problem.

        Raises:
            DamagedError: a file is missing or is not what was written.
        """
        rollouts: list[Rollout] = []
        intact = self._intact()
        while len(rollouts) < len(problems) * n:
            path = self._file(len(rollouts) // n)
            if not self._problems_in(path, intact, problems, len(rollouts) // n, n):
                raise DamagedError(f"{path} is missing or damaged")
            rollouts += _read(path)
        return [Group(problem, tuple(rollouts[place * n : (place + 1) * n])) for place, problem in enumerate(problems)]

    def _file(self, first: int) -> Path:
        """The file of the part that begins with problem number `first`."""
        return self.folder / f"part-{first:06d}.parquet"

    def _intact(self) -> set[str]:
        """The names of the files that are what was written."""
        names = [path.name for path in self.folder.glob("part-*.parquet")]
        return set(names) - damaged_files(self.folder, names).keys()

    def _problems_in(self, path: Path, intact: Collection[str], problems: Sequence[Problem], first: int, n: int) -> int:
        """The number of problems in a file; 0 if it is missing or damaged, or does not hold those from `first` on."""
        if path.name not in intact:
            return 0
        try:
            if not pq.read_schema(path).equals(ROLLOUT_SCHEMA):
                return 0
            ids = pq.read_table(path, columns=["problem_id"])["problem_id"].to_pylist()
        except (OSError, pa.ArrowException):
            return 0
        size = len(ids) // n
        expected = [problem.id for problem in problems[first : first + size] for _ in range(n)]
        return size if ids == expected else 0


def _read(path: Path) -> Iterator[Rollout]:
    table = pq.read_table(path).combine_chunks()
    ids, logprobs = (
        [row for chunk in table[name].chunks for row in list_rows(chunk)]
        for name in ("completion_ids", "sampling_logprobs")
    )
    plain = table.select(["problem_id", "text", "reward", "success", "check_fault", "finish_reason"]).to_pylist()
    for row, completion, sampling in zip(plain, ids, logprobs, strict=True):
        yield Rollout(prompt_ids=np.empty(0, np.int64), completion_ids=completion, sampling_logprobs=sampling, **row)
