"""What the pages show of a run's pools. A run renews its page after phases that leave its pools as they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rloop_lightning.run.report.pool_totals import PoolTotals, pool_totals
from rloop_lightning.run.report.samples import Samples, sample
from rloop_lightning.run.report.stored import ReportedRun


@dataclass(frozen=True)
class Pools:
    """Counts of the pools, and samples of their rollouts; None without a pool."""

    totals: PoolTotals
    samples: Samples | None


class _Content:
    """A run for the cache: equal to another if the same shards lie in both."""

    def __init__(self, run: ReportedRun) -> None:
        self.run = run
        pools = run.folder.existing_pools().values()
        files = [path for pool in pools for path in pool.shards()]
        self.key = (
            tuple(run.starts.items()),
            tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def read_pools(run: ReportedRun) -> Pools:
    """Read the pools of a run.

    Raises:
        DamagedError: a file is not a shard of a pool, or damaged; the message names it.
        OSError: a shard can't be read.
    """
    return _read(_Content(run))


@lru_cache(maxsize=1)
def _read(content: _Content) -> Pools:
    totals = pool_totals(content.run)
    return Pools(totals, sample(totals) if totals.index else None)
