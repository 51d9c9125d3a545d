"""What a run hands over: final/, from the command line to the files on disk, and a resume that restores it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_run import TinyRun
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rloop_lightning.cli.main import main
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A complete run to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_final_holds_a_policy_in_safetensors_with_its_card_and_checksums(finished: Path) -> None:
    names = {path.name for path in (finished / "final").iterdir()}
    assert {"README.md", "generation_config.json", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    lines = (finished / "final" / "_SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert listed == {name: digest for name, digest in digests(finished / "final").items() if name != "_SHA256SUMS"}


def test_the_card_is_of_this_run(finished: Path) -> None:
    card = (finished / "final" / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["license"] == "apache-2.0"  # the embedded policy's
    assert (finished / "results.md").read_text().split("\n\n")[0] in text  # the table
    assert "This policy is `round 1 consolidated`" in text
    budget = json.loads((finished / "state.json").read_text())["budget"]
    assert f"- Rollouts: {budget['rollouts']:,}" in text
    assert "- Problem set `train`: 40 problems" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["loop"]["explore_steps"] == 4
    assert str(finished.parent) not in card
    assert json.loads((finished / "state.json").read_text())["run_id"] not in card


def test_the_cards_code_runs(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    example = (finished / "final" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(compile(example.replace('"..."', '"3 7 12=33:"'), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_generate_samples_as_training_did(tmp_path: Path) -> None:
    """And keeps what the base policy's generation config has besides."""
    base = tmp_path / "base"
    Policy.load(PolicyConfig()).save(base)
    theirs = json.loads((base / "generation_config.json").read_text())
    changed = {"eos_token_id": [1, 5], "repetition_penalty": 1.05, "top_k": 20, "bos_token_id": 7, "max_length": 9}
    (base / "generation_config.json").write_text(json.dumps({**theirs, **changed, "do_sample": True}))
    sampling = {"max_new_tokens": 24, "temperature": 0.75, "top_p": 0.9}
    out = tmp_path / "run"
    tiny = TinyRun.written(tmp_path, policy={"model": str(base)}, engine=sampling, loop={"explore_steps": 1})
    assert tiny.fit(out) == 0
    config = GenerationConfig.from_pretrained(out / "final")
    expected = {**sampling, "top_k": 0, "do_sample": True, "eos_token_id": [1, 5], "pad_token_id": 0, "bos_token_id": 7}
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.repetition_penalty is config.max_length is None
    model = AutoModelForCausalLM.from_pretrained(out / "final")
    tokens = AutoTokenizer.from_pretrained(out / "final")("3 7 12=33:", return_tensors="pt").input_ids
    assert model.generate(tokens).shape[1] <= tokens.shape[1] + 24
    assert Policy.load(PolicyConfig(model=str(out / "final"))).stop_token_ids == {1, 5}


@pytest.mark.parametrize(
    ("name", "harm"), [("README.md", "missing"), ("generation_config.json", "damaged"), ("_SHA256SUMS", "missing")]
)
def test_a_resume_restores_the_same_bytes_and_says_so(
    run: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, file = digests(run / "final"), run / "final" / name
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(b"?" + file.read_bytes()[1:])
    assert main(["--resume", str(run)]) == 0
    assert digests(run / "final") == before
    assert f"{file} is {harm}" in caplog.text
