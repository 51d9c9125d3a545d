"""Several processes read a pool: the same expert set as one process, bit for bit, and faults that name their cause."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rollouts.test_filter import make_pool

from rloop_lightning.errors import DamagedError, RunFault
from rloop_lightning.rollouts import shard_processes
from rloop_lightning.rollouts.expert_draw import Drawn
from rloop_lightning.rollouts.filter import FilterConfig, build_expert_set
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.shard_processes import counts_of, draw_from, processes_for

CONFIGS = {
    "paper": FilterConfig(max_success_rate=0.5),
    "one of each, truncated too": FilterConfig(enabled=False, max_per_problem=1, finished_only=False),
    "all copies": FilterConfig(enabled=False, deduplicate=False, max_per_problem=3),
    "no limit": FilterConfig(enabled=False, max_per_problem=0),
    "over the run": FilterConfig(max_success_rate=0.5, rate_over="run"),
    "control": FilterConfig(max_success_rate=0.5, control="random"),
}


def write_pool(folder: Path, *, steps: int = 7, seed: int = 0) -> RolloutPool:
    """A pool with copies within and across shards, of problems of all success rates."""
    draw = random.Random(seed)
    rows = [
        [
            (f"problem {number}", [draw.randrange(3), number], draw.random() < number / 12, draw.random() < 0.2)
            for number in range(12)
            for _ in range(4)
        ]
        for _ in range(steps)
    ]
    return make_pool(folder, rows)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> tuple[RolloutPool, RolloutPool]:
    folder = tmp_path_factory.mktemp("pools")
    return write_pool(folder / "first", steps=3, seed=1), write_pool(folder / "second")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [None, 1, 7, 1000])
def test_merged_draws_of_parts_are_the_draw_of_the_whole(
    config: FilterConfig, size: int | None, pools: tuple[RolloutPool, RolloutPool]
) -> None:
    shards = pools[1].shards()
    problems = {f"problem {number}" for number in range(1, 12)}
    rules = replace(config.rules(3), control_size=size)
    whole, merged = Drawn(rules), Drawn(rules)
    whole.take(shards, problems)
    for some in (shards[:2], shards[2:3], [], shards[3:]):
        part = Drawn(rules)
        part.take(some, problems)
        merged.merge(part.batches(), part.schema)
    assert whole.rows()
    assert merged.rows() == whole.rows()
    assert merged.truncated == whole.truncated


@pytest.mark.parametrize("processes", [2, 4])
def test_an_expert_set_has_the_same_bytes_from_several_processes(
    processes: int, pools: tuple[RolloutPool, RolloutPool], tmp_path: Path
) -> None:
    first, second = pools
    config = FilterConfig(max_success_rate=0.5, rate_over="run", control="random")
    one, several = (
        build_expert_set(second, tmp_path / name, config, 3, earlier=[first], processes=number)
        for name, number in (("one", 1), ("several", processes))
    )
    assert one == several
    assert one.kept > 3
    assert (tmp_path / "one").read_bytes() == (tmp_path / "several").read_bytes()


def test_small_pools_are_read_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_pool(tmp_path / "pool").shards()
    assert processes_for(shards) == processes_for([]) == 1
    monkeypatch.setattr(shard_processes, "_BYTES_EACH", 1)
    monkeypatch.setattr(shard_processes, "usable_cores", lambda: 5)
    assert processes_for(shards) == 5


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shards = write_pool(tmp_path / "pool").shards()
    shards[5].write_bytes(b"no shard")
    with pytest.raises(DamagedError, match=rf"{shards[5].name} is not a shard of a rollout pool"):
        counts_of(shards, 3)


def test_a_process_that_is_killed_is_reported_and_none_is_left(
    pools: tuple[RolloutPool, RolloutPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def dying(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **options))  # type: ignore[call-overload]  # as it was called
        if len(started) == 2:
            started[-1].kill()
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", dying)
    with pytest.raises(RunFault, match=r"killed by signal 9 \(it said nothing\).*taskset"):
        draw_from(pools[1].shards(), ["problem 3"], FilterConfig().rules(seed=0), 3)
    assert len(started) == 3
    assert all(process.poll() is not None for process in started)


def test_the_processes_do_without_torch() -> None:
    code = "import sys, rloop_lightning.rollouts.shard_process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
