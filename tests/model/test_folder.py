"""Checks of models named as on the hub, from files that were fetched earlier."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bad_models import CONFIG, adapter_left, make_good_model, recurrent, with_values

from rloop_lightning.model import folder, loading
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy
from rloop_lightning.system import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "good"
    make_good_model(path)
    return path


@pytest.fixture
def fetched(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of `acme/model` in the hub's cache; no hub answers."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for module in (folder, loading, hub):
        monkeypatch.setattr(module, "hub_answers", lambda: False)
    repository = tmp_path / "models--acme--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(good, repository / "snapshots" / COMMIT)
    return repository / "snapshots" / COMMIT


def fault_of_fetched() -> str:
    with pytest.raises(ValueError, match=r".") as refusal:
        Policy.load(PolicyConfig(model="acme/model"))
    return str(refusal.value)


def test_a_fetched_model_loads(fetched: Path) -> None:
    assert Policy.load(PolicyConfig(model="acme/model")).source == "acme/model"


def test_fetched_models_are_checked_as_folders_are(fetched: Path) -> None:
    with_values(CONFIG, quantization_config={"quant_method": "mxfp4"})(fetched)
    assert fault_of_fetched().startswith("its weights are quantised (mxfp4), which can't be trained; ")
    recurrent(fetched)
    assert fault_of_fetched().startswith("a model of type 'mamba' has no KV cache ")
    (fetched / CONFIG).write_text("{")
    assert fault_of_fetched().startswith("config.json is not valid JSON: ")


def test_an_adapter_beside_a_fetched_model_is_not_added_to_it(fetched: Path) -> None:
    peft = pytest.importorskip("peft", reason="transformers adds adapters by the package peft")
    model = peft.get_peft_model(loading.load_model(str(fetched)), peft.LoraConfig(target_modules=["q_proj"], r=2))
    model.save_pretrained(fetched)
    settings = json.loads((fetched / "adapter_config.json").read_text())
    (fetched / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(fetched)}))
    assert "contains an adapter (adapter_config.json) beside a model" in fault_of_fetched()


def test_weights_of_a_folder_beside_an_adapter_are_refused(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "merged")
    adapter_left(tmp_path / "merged")
    (fault,) = folder.model_faults(str(tmp_path / "merged"))
    assert fault == loading.ADAPTER_BESIDE_MODEL


def test_a_folder_that_was_without_faults_is_checked_again_once_a_file_changed(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "model")
    assert folder.model_faults(str(tmp_path / "model")) == folder.model_faults(str(tmp_path / "model")) == []
    config = tmp_path / "model" / CONFIG
    text = config.read_text()
    config.write_text("[" + text[1:])  # of the same length
    assert folder.model_faults(str(tmp_path / "model"))
    config.write_text(text)
    assert folder.model_faults(str(tmp_path / "model")) == []
    templates = tmp_path / "model" / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_bytes(b"{% \xff")
    assert folder.model_faults(str(tmp_path / "model"))


def test_numbers_that_make_no_logprobs_are_refused(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "model")
    with_values(CONFIG, rope_parameters={"rope_type": "default", "rope_theta": 0})(tmp_path / "model")
    with pytest.raises(ValueError, match=r"NaN or infinite logprobs in float32; .* config.json, such as .*rope"):
        Policy.load(PolicyConfig(model=str(tmp_path / "model")))


def test_a_name_that_no_file_can_have_is_no_traceback() -> None:
    (fault,) = folder.model_faults("a" * 5000)
    assert fault == "can't be read: File name too long"
