"""Adapter folders, as PEFT writes them: LoRA weights, and the name of the model that they belong to.

    is_adapter("runs/NAME/final")                   adapter_config.json without a config.json
    source_faults("path/or/name")                   errors in a model, or in an adapter and the model under it
    AdapterFolder.read(folder)                      the settings of the adapter, checked
    write_adapter(adapter, folder, base)

adapter_settings.py has what adapter_config.json may say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rloop_lightning.model.adapter_packages import missing_peft
from rloop_lightning.model.adapter_settings import ADAPTER, BASE, TAKEN, setting_faults
from rloop_lightning.model.config_json import CONFIG, load_config, read_object
from rloop_lightning.model.folder import checked_in_a_copy, model_faults
from rloop_lightning.model.libraries import library_errors, quiet
from rloop_lightning.model.loading import is_folder
from rloop_lightning.model.lora import Adapter, attach, file_name
from rloop_lightning.model.lora_targets import LoraTargets
from rloop_lightning.model.quantization import quantised_share
from rloop_lightning.model.safetensors_file import TensorWriter
from rloop_lightning.model.sharding import leads, scatter, whole
from rloop_lightning.model.weight_files import WeightFiles
from rloop_lightning.system.fetched import fetched_word, url_of
from rloop_lightning.system.terminal import one_line

WEIGHTS = "adapter_model.safetensors"
_LEAST_QUANTISED = 0.3  # of all weights; the embeddings of small models are most of the rest
_SHOWN = 5  # weights that a message lists by name


def is_adapter(name: str) -> bool:
    """Whether a model's name is a folder with an adapter alone."""
    if not is_folder(name):
        return False
    folder = Path(name).expanduser()
    try:
        return (folder / ADAPTER).is_file() and not (folder / CONFIG).exists()
    except OSError:
        return False


def base_of(name: str) -> str:
    """The folder or hub name of the model under an adapter folder; of any other name, that name.

    Raises:
        ValueError: adapter_config.json can't be used.
    """
    return AdapterFolder.read(Path(name).expanduser()).base if is_adapter(name) else name


def rank_of(name: str) -> int:
    """The rank of an adapter folder; 0 of any other name, or if adapter_config.json can't be used."""
    try:
        return AdapterFolder.read(Path(name).expanduser()).config["r"] if is_adapter(name) else 0
    except ValueError:
        return 0


def source_faults(name: str) -> list[str]:
    """Errors in a model, or in an adapter folder and the model under it, found before weights are read."""
    if not is_adapter(name):
        return model_faults(name)
    folder = Path(name).expanduser()
    try:
        found = AdapterFolder.read(folder)
    except ValueError as error:
        return str(error).splitlines()
    base = f"{ADAPTER} names the base model {one_line(found.base)}"
    if is_adapter(found.base):
        return [f"{base}, which is an adapter itself; merge that one into its model, and name the merged folder"]
    if wrong := model_faults(found.base):
        return [f"{base}: {fault}; correct {BASE} in that file, or restore the model" for fault in wrong]
    if missing := missing_peft():
        return [missing]
    return checked_in_a_copy(lambda: iter([(f"{ADAPTER} or the header of {WEIGHTS}", found.faults)]))


def target_faults(name: str, targets: Sequence[str]) -> list[str]:
    """Which of the layers to adapt a model does not have, found without its weights.

    Args:
        name: folder or hub name of the model.
    """

    def faults() -> Iterator[str]:
        try:
            LoraTargets.of(without_weights(name), targets)
        except ValueError as error:
            yield from str(error).splitlines()

    return checked_in_a_copy(lambda: iter([(CONFIG, faults)]))


def quantization_faults(name: str) -> list[str]:
    """Why quantising a model would not save memory, found without its weights.

    Args:
        name: folder or hub name of the model.
    """

    def faults() -> Iterator[str]:
        model = without_weights(name)
        share = quantised_share(model)
        if share < _LEAST_QUANTISED:
            yield (
                f"{type(model).__name__} has only {share:.0%} of its weights in linear layers, which is all that is "
                "quantised (experts are not); leave it out, or take a dense model"
            )

    return checked_in_a_copy(lambda: iter([(CONFIG, faults)]))


def without_weights(name: str) -> Any:
    """The model of a folder or hub name without its weights, on the device meta."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(name), trust_remote_code=False)


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter on disk.

    Args:
        folder: where it is.
        base: folder or hub name of the model under it.
        config: arguments of PEFT's LoraConfig.
    """

    folder: Path
    base: str
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> AdapterFolder:
        """Read and check adapter_config.json.

        Raises:
            ValueError: names all errors in it.
        """
        settings = read_object(folder / ADAPTER)
        if not isinstance(settings, dict):
            raise ValueError(settings or f"contains no {ADAPTER}")
        if wrong := list(setting_faults(settings)):
            raise ValueError("\n".join(f"{ADAPTER}: {fault}" for fault in wrong))
        config = {name: settings[name] for name in TAKEN if settings.get(name) is not None}
        base = fetched_word(settings[BASE], BASE)
        return cls(folder, str(Path(base).expanduser()) if is_folder(base) else base, config)

    def faults(self) -> Iterator[str]:
        """Why the weights don't fit the model under the adapter, by the headers of its files alone."""
        files = WeightFiles.read(self.folder)
        if not (self.folder / WEIGHTS).is_file():
            yield f"contains no {WEIGHTS}; adapters as pickles are refused, because they can run code"
            return
        if files.faults:
            yield from files.faults
            return
        with library_errors(f"{ADAPTER} describes no adapter of its model"), quiet(), torch.device("meta"):
            expected = attach(without_weights(self.base), self.config).parameters
        yield from _mismatches(
            {file_name(name): tuple(weight.shape) for name, weight in expected.items()}, _shapes(self.folder / WEIGHTS)
        )

    def attach(self, model: Any) -> Adapter:
        """Put the adapter on a model.

        Raises:
            ValueError: it does not fit, or a weight is not finite.
        """
        adapter = attach(model, self.config)
        read_adapter(adapter, self.folder)
        return adapter


def read_adapter(adapter: Adapter, folder: Path) -> None:
    """Set the weights of an adapter to those of a folder. If it is sharded, all ranks call it, and rank 0 reads.

    Raises:
        ValueError: they don't fit, or one is NaN or infinite.
    """
    own = {file_name(name): weight for name, weight in adapter.parameters.items()}
    held = _checked(folder, own) if leads(adapter.base_model) else {}
    for name, weight in own.items():
        scatter(weight, held.get(name))


def _checked(folder: Path, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a folder, which fit those of an adapter and are finite."""
    with library_errors(f"{WEIGHTS} can't be read"):
        held = load_file(folder / WEIGHTS)
    wrong = list(_mismatches(_by_shape(own), _by_shape(held)))
    if not wrong:
        wrong = [
            f"NaN or infinite numbers in {one_line(name)}; take another adapter"
            for name, weight in held.items()
            if not weight.isfinite().all()
        ][:_SHOWN]
    if wrong:
        raise ValueError("\n".join(wrong))
    return held


def write_adapter(adapter: Adapter, folder: Path, base: str) -> None:
    """Write an adapter to a folder.

    Args:
        base: folder or hub name of the model under it.
    """
    weights = {file_name(name): weight for name, weight in adapter.parameters.items()}
    folder.mkdir(exist_ok=True)
    with TensorWriter(folder / WEIGHTS, weights) as writer:
        for name, weight in weights.items():
            writer.write(name, whole(weight))
    under = (url_of(Path(base)) or str(Path(base).absolute())) if is_folder(base) else base
    settings = {**adapter.config.to_dict(), BASE: under}
    # PEFT keeps names in sets, whose order changes from process to process.
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    (folder / ADAPTER).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 -- no mapping


def _by_shape(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _mismatches(expected: Mapping[str, tuple[int, ...]], held: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Weights that the file and the adapter that adapter_config.json describes don't share."""
    said = {
        f"{WEIGHTS} lacks {{}}, which {ADAPTER} describes": expected.keys() - held.keys(),
        f"{WEIGHTS} holds {{}}, which {ADAPTER} has no place for in its model": held.keys() - expected.keys(),
        f"of another shape in {WEIGHTS} than {ADAPTER} and its model say: {{}}": {
            name for name in expected.keys() & held.keys() if expected[name] != held[name]
        },
    }
    for message, names in said.items():
        if names:
            more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            yield message.format(", ".join(one_line(name, limit=100) for name in sorted(names)[:_SHOWN]) + more)
