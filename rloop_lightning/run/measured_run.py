"""What a run measured, for simulations of others: lengths of its completions, and the rates of its rollout steps.

measured = MeasuredRun.of(Path("runs/NAME"))
measured.lengths            # how many completions have each length
measured.rates()            # of generation, updates, reward and metrics
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.pool_scan import open_shard
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import Row, read_metrics
from rloop_lightning.run.step_simulation import Rates

_NEEDED = tuple(f"rollout/{name}" for name in ("generated_rollouts", "generated_tokens", "kept_rate"))
_NEEDED += tuple(f"time/{name}_s" for name in ("generate", "reward", "update"))


@dataclass(frozen=True)
class MeasuredRun:
    """The rollout steps of a run. Its first step, which may compile or start processes, does not count.

    Args:
        name: its folder.
        lengths: number of completions by their length [longest + 1].
        steps: rollout steps that count.
        rollouts: of all these steps.
        tokens: completion tokens of all these steps.
        trained: share of the rollouts that was trained on.
        generate_s: seconds of generation.
        reward_s: seconds of the reward.
        update_s: seconds of the updates.
        metrics_s: seconds of what else was measured.
    """

    name: str
    lengths: np.ndarray
    steps: int
    rollouts: int
    tokens: int
    trained: float
    generate_s: float
    reward_s: float
    update_s: float
    metrics_s: float

    @classmethod
    def of(cls, out: Path) -> Self:
        """Read a run.

        Raises:
            ValueError: it is not the folder of a run with an exploration of two rollout steps; names --plan.from_run.
        """
        flag = f"--plan.from_run {out}"
        folder = RunFolder(out)
        if not folder.metrics.is_file():
            raise ValueError(f"{flag}: there is no {folder.metrics.name}; give the folder of a run")
        try:
            rows = [row for row in read_metrics(folder.metrics) if row["phase"] == "explore"]
            lengths = _lengths([shard for pool in folder.existing_pools().values() for shard in pool.shards()])
        except DamagedError as error:
            raise ValueError(f"{flag}: {error}") from error
        counted = [row for row in rows[1:] if all(name in row for name in _NEEDED)]
        if not any(row["rollout/kept_rate"] for row in counted) or not lengths.sum():
            raise ValueError(f"{flag}: a run with a pool and at least two rollout steps is needed; take another one")
        return cls(
            name=str(out),
            lengths=lengths,
            steps=len(counted),
            rollouts=int(_sum(counted, "rollout/generated_rollouts")),
            tokens=int(_sum(counted, "rollout/generated_tokens")),
            trained=_share_kept(counted),
            generate_s=_sum(counted, "time/generate_s"),
            reward_s=_sum(counted, "time/reward_s"),
            update_s=_sum(counted, "time/update_s"),
            metrics_s=_sum(counted, "time/metrics_s"),
        )

    def rates(self) -> Rates:
        """The rates of its engine and its rank, of which it is taken to have one each."""
        return Rates(
            generate=self.tokens / self.generate_s,
            update=self.trained * self.tokens / self.update_s,
            reward_s=self.reward_s / self.rollouts,
            metrics_s=self.metrics_s / self.rollouts,
        )

    @property
    def step_s(self) -> float:
        """Mean seconds of a rollout step whose parts follow each other."""
        return (self.generate_s + self.reward_s + self.update_s + self.metrics_s) / self.steps


def _lengths(shards: Sequence[Path]) -> np.ndarray:
    """Number of completions by length, without more memory for more shards."""
    counts = np.zeros(1, dtype=np.int64)
    for path in shards:
        with open_shard(path, ["length"]) as shard:
            found = np.bincount(shard.read(columns=["length"], use_threads=False)["length"].to_numpy())
        if len(found) > len(counts):
            counts, found = found.astype(np.int64), counts
        counts[: len(found)] += found
    return counts


def _share_kept(rows: Sequence[Row]) -> float:
    """The share of the rollouts in groups that dynamic sampling keeps."""
    weights = [row["rollout/generated_rollouts"] for row in rows]
    return float(np.average([row["rollout/kept_rate"] for row in rows], weights=weights))


def _sum(rows: Sequence[Row], name: str) -> float:
    return float(sum(row.get(name, 0.0) for row in rows))
