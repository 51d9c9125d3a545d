"""The example package's RLOO against TRL's RLOOTrainer, on-policy.

The loss itself is not compared: TRL's is that of a ratio, which is 1, and ours that of a logprob; the gradient is one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import relative_difference
from peers.comparing import TOLERANCE
from peers.our_side import our_run
from peers.tables import random_tables
from peers.trl_side import trl_runs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_advantages_and_gradients_are_those_of_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beta: float
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples" / "rloop-lightning-rloo")
    from rloop_lightning_rloo import RLOO

    several = [random_tables(seed, on_policy=True) for seed in range(3)]
    for tables, theirs in zip(several, trl_runs(several, tmp_path, rloo=True, pieces=2, beta=beta), strict=True):
        ours = our_run(RLOO(kl_beta=beta), tables, sorted(theirs.rows[0]))
        assert torch.allclose(ours.advantages, theirs.advantages, rtol=0, atol=TOLERANCE)
        assert relative_difference(ours.gradients[0], theirs.gradients[0]) < TOLERANCE
