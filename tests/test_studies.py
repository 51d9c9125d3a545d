"""The files in studies/: every arm is accepted as a run's settings, and the reward that one of them brings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rloop_lightning.cli.compare import main
from rloop_lightning.data import countdown_policy
from rloop_lightning.types import Problem
from studies.partial_credit import closeness

STUDIES = Path(__file__).parents[1] / "studies"


@pytest.fixture(scope="module")
def of_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experts")
    countdown_policy.main(["--out", str(out), "--experts", "8", "--steps", "2"])
    return out


@pytest.mark.parametrize("study", sorted(path.stem for path in STUDIES.glob("*.yaml")))
def test_a_study_is_accepted(study: str, of_experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = STUDIES / f"{study}.yaml"
    model = ["--policy.model", str(of_experts)] if study == "experts" else []
    assert main([str(file), *model, "--out", str(tmp_path / "out"), "--table_only"]) == 0, capsys.readouterr().err
    assert f"rloop-compare studies/{study}.yaml" in file.read_text()
    given = yaml.safe_load(file.read_text())
    if "grid" not in given:
        stored = yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())
        assert len(stored["arms"]) >= len(given["arms"])


def test_closeness_pays_more_the_closer_the_value_is() -> None:
    problem = Problem(id="a", prompt="3 7 12=33:", answer="33", metadata={"numbers": [3, 7, 12]})
    texts = [rf"\boxed{{{one}}}" for one in ("7*3+12", "(7+3)+12", "7*3-12", "7*3", "12/(7-7)", "3/(7-12)", "x")]
    values = [1, 0.5 * 2 ** -(11 / 10), 0.5 * 2 ** -(24 / 10), 0, 0, 0.5 * 2 ** -(33.6 / 10), 0]
    # (7-7) uses 7 twice, so it is no expression of the given numbers.
    assert closeness([problem] * 7, texts) == pytest.approx(values)
