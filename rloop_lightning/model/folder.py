"""Checks of a model before its weights are read.

    model_faults("path/or/name")        all errors found, one message each
    hub_faults("name")                  those of files that are on the hub, which may be fetched

Whoever made a model wrote its files, and libraries may do anything on a file that they don't expect. So everything that
parses these files is first done in a copy of the process with limits; nothing but messages comes back.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rloop_lightning.model.config_json import (
    CONFIG,
    CORRECT,
    architecture_faults,
    load_config,
    read_config,
    read_object,
)
from rloop_lightning.model.libraries import library_errors, quiet
from rloop_lightning.model.loading import ADAPTER_BESIDE_MODEL, CORRECT_TOKENIZER, is_folder, load_tokenizer
from rloop_lightning.model.stop_tokens import as_ids, stop_token_ids
from rloop_lightning.model.weight_files import WeightFiles
from rloop_lightning.system.bounded import LimitError, Limits, bounded
from rloop_lightning.system.hub import fetched_folder, hub_answers, unreachable_hub
from rloop_lightning.system.terminal import cause, one_line

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.spm")
_GENERATION = "generation_config.json"
_WITHOUT_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.txt", "*.spm", "*.tiktoken")

_LIMITS = Limits(cpu_s=60, memory_mb=4096)  # converting a large tokenizer takes 20 s
# A model that has more numbers than this many times those in its files, and this many besides, is not theirs.
_MOST_TIMES, _MOST_BESIDES = 4, 2**28
_MOST_LAYERS = 10_000
_COUNTS = re.compile(r"(layers?|num_labels)$")
_SOUND: set[tuple[object, ...]] = set()  # stamps of folders without faults; a start asks twice, before and as it loads
_SAMPLE = "Solve 12 + 30 = x.\nDann ist x = 42, größer als 41."


def model_faults(name: str) -> list[str]:
    """Errors found before a model's weights are read, one message each. An empty list does not mean that it loads."""
    if not is_folder(name):
        return _unreachable(name)
    folder = Path(name).expanduser()
    try:
        if not folder.is_dir():
            return ["is a file; give the folder that holds it" if folder.exists() else "no such folder"]
        if special := list(_special_files(folder)):
            return special
        stamp = _stamp(folder)
    except OSError as error:
        return [f"can't be read: {error.strerror}"]
    if stamp in _SOUND:
        return []
    faults = _faults_of_files(folder, weights=True)
    if not faults:
        _SOUND.add(stamp)
    return faults


def _stamp(folder: Path) -> tuple[object, ...]:
    """Differs when a file of the folder was written since."""
    found = [(path.name, path.stat()) for path in sorted(_entries(folder))]
    return folder.resolve(), *((name, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns) for name, now in found)


def hub_faults(name: str) -> list[str]:
    """Errors in the files of a hub name, except for its weights; none for a folder, which `model_faults` checks."""
    if is_folder(name):
        return []
    try:
        folder = fetched_folder(name, _WITHOUT_WEIGHTS)
    except Exception as error:  # HTTP, connection, certificate and cache errors share no base class
        return [f"{CONFIG} can't be loaded: {cause(error)}"]
    return _faults_of_files(folder, weights=False)


def faults_for_a_plan(name: str) -> list[str]:
    """Errors in the config.json of a folder or hub name, the only file that a memory plan reads."""
    if is_folder(name) and not Path(name).expanduser().is_dir():
        return ["no such folder"]
    if not is_folder(name) and (wrong := _unreachable(name)):
        return wrong
    config = read_config(name)
    if isinstance(config, str):
        return [config]

    def settings() -> Iterator[str]:
        yield from architecture_faults(config)
        yield from _too_many_layers(config, 0)

    def model() -> Iterator[str]:
        _without_weights(name)
        yield from ()

    return checked_in_a_copy(lambda: iter([(CONFIG, settings), (CONFIG, model)]))


def _unreachable(name: str) -> list[str]:
    from huggingface_hub import try_to_load_from_cache

    if hub_answers() or isinstance(try_to_load_from_cache(name, CONFIG), str):
        return []
    near = difflib.get_close_matches(name, ["countdown"], n=1)
    elsewhere = f"get it where the hub answers, by `hf download {name} --local-dir FOLDER`, and give the folder"
    hint = f"did you mean {near[0]}?" if near else elsewhere
    return [f"no folder of that name, and not fetched from the hub yet: {unreachable_hub()}; {hint}"]


def _entries(folder: Path) -> list[Path]:
    return [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]


def _special_files(folder: Path) -> Iterator[str]:
    """Entries of a folder that can't be read as files, or that never end."""
    for path in _entries(folder):
        name = one_line(path.name)
        try:
            path.stat()
        except OSError as error:
            yield f"{name} can't be read ({error.strerror}); remove or replace it"
        else:
            if not path.is_file() and not path.is_dir():
                yield f"{name} is neither a file nor a folder; remove or replace it"


def _faults_of_files(folder: Path, *, weights: bool) -> list[str]:
    """Errors in the files of a folder."""
    return checked_in_a_copy(lambda: _checks(folder, weights=weights))


def checked_in_a_copy(checks: Callable[[], Iterator[tuple[str, Callable[[], Iterator[str]]]]]) -> list[str]:
    """Errors found by checks, in a copy of this process with limits.

    Args:
        checks: the files that a check reads, and the check; the first that finds errors is the last.
    """

    def read() -> Iterator[tuple[str, str]]:
        """What is read next, without an error, and the errors found in it."""
        torch.set_num_threads(1)  # the others were not copied
        for files, check in checks():
            yield files, ""
            with quiet():  # what matters of the libraries' warnings is told here
                faults = list(check())
            if faults:
                yield from ((files, fault) for fault in faults)
                return  # other checks take for granted what this one found wrong

    try:
        return [fault for _, fault in bounded(read, _LIMITS) if fault]
    except LimitError as error:
        files = error.values[-1][0] if error.values else "its files"
        return [f"reading {files} {error}: damaged, or made to do harm; take another copy of the model"]
    except ValueError as error:
        return str(error).splitlines()


def _checks(folder: Path, *, weights: bool) -> Iterator[tuple[str, Callable[[], Iterator[str]]]]:
    """The files that a check reads, and the check."""
    yield f"{CONFIG}, or the headers of the weights,", lambda: _settings_faults(folder, weights=weights)
    yield "the tokenizer's files, or its chat template,", lambda: _tokenizer_faults(folder)
    yield f"{CONFIG} or {_GENERATION}", lambda: _architecture_faults(folder, weights=weights)


def _settings_faults(folder: Path, *, weights: bool) -> Iterator[str]:
    """Errors in what files there are, in config.json and in the headers of the weights."""
    config = read_object(folder / CONFIG)
    adapter = (folder / "adapter_config.json").exists()
    read = WeightFiles.read(folder) if weights else None
    if config is None and adapter:
        yield "contains only an adapter; copy it to a folder (hf download NAME --local-dir FOLDER) and give that"
    elif config is None:
        yield f"contains no {CONFIG}; give a folder written by save_pretrained"
    elif isinstance(config, str):
        yield config
    else:
        if adapter:
            yield ADAPTER_BESIDE_MODEL
        yield from architecture_faults(config)
        yield from _too_many_layers(config, 0 if read is None else read.tensors)
    yield from [] if read is None else read.faults
    if not any(found for pattern in _TOKENIZER_FILES for found in folder.glob(pattern)):
        yield "contains no tokenizer (tokenizer.json); save the model's tokenizer to the same folder"


def _too_many_layers(settings: Mapping[str, Any], tensors: int) -> Iterator[str]:
    """Numbers of layers or labels that no model has. Configs make lists of them, which would take all memory."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _too_many_layers(value, tensors)
        elif (
            re.search(r"(layers?|num_labels)$", name) and isinstance(value, int) and value > max(tensors, _MOST_LAYERS)
        ):
            shown = one_line(name)
            yield f"{CONFIG}: {shown} {one_line(str(value))} is more than a model has; restore the model's own {CONFIG}"


def _tokenizer_faults(folder: Path) -> Iterator[str]:
    """Whether the tokenizer loads, ends its texts, and fits the model's vocabulary."""
    settings = read_object(folder / "tokenizer_config.json")
    if isinstance(settings, str):
        yield settings
        return
    if fault := _class_fault((settings or {}).get("tokenizer_class")):
        yield f"tokenizer_config.json: {fault}"
        return
    config = load_config(str(folder))
    if fault := _class_fault(getattr(config, "tokenizer_class", None)):
        yield f"{CONFIG}: {fault}"
        return
    config, tokenizer = config.get_text_config(), load_tokenizer(str(folder))
    generation = read_object(folder / _GENERATION)
    if isinstance(generation, str):
        yield generation
    else:
        of_model = getattr(config, "eos_token_id", None) if generation is None else generation.get("eos_token_id")
        if not all(type(token) is int for token in as_ids(of_model)):
            yield f"eos_token_id must be a token id or a list of them, got {one_line(repr(of_model), limit=80)}"
        elif not stop_token_ids(of_model, tokenizer):
            yield (
                f"neither the tokenizer nor {_GENERATION} names an EOS token, so that no rollout would end; set "
                "tokenizer.eos_token and save it"
            )
    with library_errors("its tokenizer can't be used", CORRECT_TOKENIZER):
        tokenizer.decode(tokenizer.encode(_SAMPLE, add_special_tokens=False))
        yield from vocabulary_faults(tokenizer, config)


def _class_fault(name: Any) -> str:
    """Why a class can't be that of a tokenizer; empty if it can. The class of a model would load its weights."""
    import transformers

    if name is None:
        return ""
    if not isinstance(name, str):
        return f"tokenizer_class must be a name, got {one_line(repr(name), limit=80)}"
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase):
        return ""
    return "" if found is None else f"tokenizer_class {one_line(name)} is no tokenizer; restore the model's own file"


def _architecture_faults(folder: Path, *, weights: bool) -> Iterator[str]:
    """Whether transformers can build the model, without its numbers, and whether that is as large as its files."""
    from transformers import GenerationConfig

    if (folder / _GENERATION).exists():
        with library_errors(f"{_GENERATION} can't be used", CORRECT):
            GenerationConfig.from_pretrained(folder)
    model = _without_weights(str(folder))
    if not weights:
        return
    held = WeightFiles.read(folder).elements
    described = sum(part.numel() for part in [*model.parameters(), *model.buffers()])
    if described > _MOST_TIMES * held + _MOST_BESIDES:
        yield (
            f"{CONFIG} describes a model of {described:,} numbers, and the weights hold {held:,}; restore the {CONFIG} "
            "that belongs to them"
        )


def _without_weights(name: str) -> Any:
    """The model of a folder or hub name, on the device meta.

    Raises:
        ValueError: transformers can't build it.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(name)
    with library_errors(f"{CONFIG} describes no model", CORRECT), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def vocabulary_faults(tokenizer: Any, config: Any) -> list[str]:
    """An error if the tokenizer has ids without an embedding. `config` is the model's text config."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest < config.vocab_size:
        return []
    return [
        f"the tokenizer has ids up to {largest:,}, the model's vocabulary ends at {config.vocab_size - 1:,}; take the "
        "tokenizer that the model was trained with, or resize the model's embeddings"
    ]
