"""A few runs of each scenario. `make chaos` runs many more; RLOOP_CHAOS_SEED draws others."""

from __future__ import annotations

import os

import pytest
from chaos.rehearsal import Rehearsal

SEED = os.environ.get("RLOOP_CHAOS_SEED", "0")
RUNS = {"kills": 2, "damages": 3, "full disks": 1, "concurrent starts": 2, "struck workers": 1}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    return Rehearsal(tmp_path_factory.mktemp("chaos"), SEED)


@pytest.mark.timeout(900)  # up to five runs, and others beside it
@pytest.mark.parametrize(("scenario", "number"), [(name, i) for name, count in RUNS.items() for i in range(count)])
def test_whatever_befalls_a_run_its_result_has_the_same_bits(scenario: str, number: int, rehearsal: Rehearsal) -> None:
    rehearsal.play(scenario, number)
