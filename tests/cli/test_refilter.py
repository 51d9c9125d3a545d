"""`rloop-data refilter`: each line is the expert set that the filter would write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rloop_lightning.cli.data import main
from rloop_lightning.rollouts import pool_scan
from rloop_lightning.rollouts.filter import FilterConfig, build_expert_set
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import count_rollouts
from rloop_lightning.seeds import derive_seed


def table(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[list[str]]:
    """The cells of each line."""
    capsys.readouterr()
    assert main(["refilter", *map(str, arguments)]) == 0
    _, _, _, _, *lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def expected(run: Path, number: int, config: FilterConfig, out: Path) -> list[str]:
    pools = [RolloutPool(run / f"round-{before}" / "pool") for before in range(number + 1)]
    seed = derive_seed(0, "consolidate", number)
    stats = build_expert_set(pools[-1], out, config, seed, earlier=pools[:-1])
    rows = pq.read_table(out).to_pylist()
    rated = count_rollouts(*(pools if config.rate_over == "run" else pools[-1:])).to_pylist()
    rates = {row["problem_id"]: row["successes"] / row["rollouts"] for row in rated}
    problems = {row["problem_id"] for row in rows}
    cut = build_expert_set(
        pools[-1], out, FilterConfig(**{**vars(config), "finished_only": True}), 0, earlier=pools[:-1]
    )
    return [
        str(number),
        f"{config.max_success_rate:g}",
        str(stats.kept),
        str(len(problems)),
        f"{np.mean([rates[name] for name in problems]):.3f}" if problems else "-",
        f"{np.mean([len(row['completion_ids']) for row in rows]):,.1f}" if rows else "-",
        f"{1 - cut.truncated / cut.hard_successes:.0%}" if cut.hard_successes else "-",
    ]


@pytest.fixture(scope="module")
def rounds(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds, of which the second has half of the first one's shards."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("refilter") / "run")
    shutil.copytree(run / "round-0", run / "round-1")
    for path in RolloutPool(run / "round-1" / "pool").shards()[2:]:
        path.unlink()
    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"finished_only": False, "max_per_problem": 1},
        {"rate_over": "run", "deduplicate": False, "finished_only": False, "max_per_problem": 0},
    ],
)
def test_each_line_is_what_the_filter_writes(
    rounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict
) -> None:
    flags = [f"--filter.{name}={str(value).lower()}" for name, value in changes.items()]
    thresholds = (0.1, 0.3, 0.6, 1.0)
    found = table(capsys, rounds, "--filter.max_success_rate", "0.6,0.1,1,0.3", *flags)
    configs = [FilterConfig(**changes, max_success_rate=threshold) for threshold in thresholds]
    assert found == [expected(rounds, number, config, tmp_path / "e") for number in (0, 1) for config in configs]
    assert any(int(line[2]) > 0 for line in found)


def test_the_pool_is_read_once_for_all_thresholds(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = pool_scan.successes_of

    def successes_of(pool: RolloutPool, problems: object) -> Iterator[pool_scan.Success]:
        read.append(pool.folder)
        return original(pool, problems)

    monkeypatch.setattr("rloop_lightning.rollouts.refilter.successes_of", successes_of)
    assert len(table(capsys, finished)) == 4
    assert read == [finished / "round-0" / "pool"]


def test_wrong_input_is_an_error(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refilter", str(finished), "--filter.max_success_rate=0.1,2", "--filter.control=random"]) == 2
    said = capsys.readouterr().err
    assert "--filter.max_success_rate: expected a list" in said
    assert "--filter.control: no such option" in said
    assert main(["refilter", str(tmp_path)]) == 2
    assert "give the folder of a run" in capsys.readouterr().err
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "round-0" / "pool")
    assert main(["refilter", str(run)]) == 2
    assert "it has no pool yet" in capsys.readouterr().err
    assert main(["refliter", str(run)]) == 2
    assert "'refliter' is no command; give check, export or refilter" in capsys.readouterr().err
