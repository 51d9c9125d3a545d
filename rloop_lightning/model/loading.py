"""Loading a model, and checks of its folder and weights.

    model_faults("path/or/name")              all errors found before weights are read, one message each
    load_model("path/or/name", dtype=...)     the model, with every weight read from its files and finite

Code that ships with a model is never run, and pickles are never read.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rloop_lightning.system.hub import hub_answers, unreachable_hub

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.spm")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SHOWN = 5  # weights that a message lists by name


def is_folder(name: str) -> bool:
    """Whether a model's name is a path, existing or missing, rather than a hub name."""
    return Path(name).expanduser().exists() or _HUB_NAME.fullmatch(name) is None


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or hub name."""
    from transformers import AutoTokenizer  # imported here: it takes seconds, and `--help` does not need it

    return AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=_local(name))


def model_type(name: str) -> str:
    """The architecture in the config.json of a folder or hub name, such as `qwen3_moe`."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=_local(name))
    return config.get_text_config().model_type


def load_model(name: str, **settings: Any) -> Any:
    """The causal LM of a folder or hub name.

    Raises:
        ValueError: a weight is missing, unexpected, of the wrong shape, NaN or infinite.
        OSError: files can't be read.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet():  # it logs what is raised below, and goes on at random
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=_local(name),
                ignore_mismatched_sizes=True,  # reported below, with all other errors
                output_loading_info=True,
                **settings,
            )
    except RuntimeError as error:  # a file with a sound header and broken tensors
        raise ValueError(f"its weights can't be read: {_first_line(error)}") from error
    model, report = loaded
    if wrong := [*_mismatches(report), *_not_finite(model)]:
        raise ValueError("\n".join(wrong))
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and log messages of transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # for good: the run shows its own
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def model_faults(name: str) -> list[str]:
    """Errors found before a model's weights are read, one message each. An empty list does not mean that it loads."""
    if not is_folder(name):
        return _hub_faults(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        what = "is a file; give the folder that holds it" if folder.exists() else "no such folder"
        return [what]
    faults = [*_config_faults(folder), *_weight_faults(folder)]
    if not any(found for pattern in _TOKENIZER_FILES for found in folder.glob(pattern)):
        faults.append("contains no tokenizer (tokenizer.json); save the model's tokenizer to the same folder")
    return faults or list(_tokenizer_faults(folder))


def _local(name: str) -> bool:
    return is_folder(name) or not hub_answers()


def _hub_faults(name: str) -> list[str]:
    from huggingface_hub import try_to_load_from_cache

    if hub_answers() or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return []
    near = difflib.get_close_matches(name, ["countdown"], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return [f"no folder of that name, and not fetched from the hub yet: {unreachable_hub()}{hint}"]


def _config_faults(folder: Path) -> Iterator[str]:
    """Errors in config.json, and in the architecture that it names."""
    config = _read_json(folder / "config.json")
    if config is None and (folder / "adapter_config.json").exists():
        yield "contains only an adapter; merge it into its model, save the result and give its folder"
    elif config is None:
        yield "contains no config.json; give a folder written by save_pretrained"
    elif isinstance(config, str):
        yield config
    else:
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        kind = config.get("model_type")
        if kind not in CONFIG_MAPPING and "auto_map" in config:
            yield "config.json asks for code of its own (auto_map), and code of a model is never run here"
        elif kind not in CONFIG_MAPPING:
            yield f"config.json: the installed transformers knows no model_type {kind!r}; a newer one may"
        elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            yield f"a model of type {kind!r} is not a causal language model, which a policy must be"


def _weight_faults(folder: Path) -> Iterator[str]:
    """Errors in the weight files, found from their headers alone."""
    index = _read_json(folder / "model.safetensors.index.json")
    shards = sorted(folder.glob("*.safetensors"))
    if isinstance(index, str):
        yield index
    elif index is not None:
        named = index.get("weight_map")
        named = {str(shard) for shard in named.values()} if isinstance(named, dict) else set()
        missing = sorted(named - {shard.name for shard in shards})
        if missing:
            yield f"model.safetensors.index.json names {', '.join(missing)}, which the folder lacks; copy it whole"
    elif not shards and any(found for pattern in _PICKLES for found in folder.glob(pattern)):
        yield (
            "contains weights only as pickles, which can run code and are refused; convert those you trust by "
            "AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(FOLDER)"
        )
    elif not shards:
        yield "contains no weights (model.safetensors)"
    yield from (fault for shard in shards if (fault := _cut_short(shard)))


def _cut_short(shard: Path) -> str | None:
    """Whether a safetensors file is truncated: its first eight bytes give the header length, the header the file size.

    Returns the error, or None.
    """
    size = shard.stat().st_size
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, size))
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        whole = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        return f"{shard.name} is cut short or no safetensors file: its header can't be read; copy it again"
    if size != whole:
        return f"{shard.name} holds {size:,} bytes and should hold {whole:,}: it was cut short; copy it again"
    return None


def _tokenizer_faults(folder: Path) -> Iterator[str]:
    """Whether the tokenizer loads, ends its texts, and fits the model's vocabulary."""
    from transformers import AutoConfig

    try:
        with quiet():  # what matters of its warnings is told here
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
            tokenizer = load_tokenizer(str(folder))
    except Exception as error:  # the libraries may raise anything on a broken file
        yield f"config or tokenizer can't be loaded: {_first_line(error)}"
        return
    generation = _read_json(folder / "generation_config.json")
    if isinstance(generation, str):
        yield generation
    else:
        of_model = getattr(config, "eos_token_id", None) if generation is None else generation.get("eos_token_id")
        if tokenizer.eos_token_id is None and of_model is None:
            yield (
                "neither the tokenizer nor generation_config.json names an EOS token, so that no rollout would end; "
                "set tokenizer.eos_token and save it"
            )
    yield from vocabulary_faults(tokenizer, config)


def vocabulary_faults(tokenizer: Any, config: Any) -> list[str]:
    """An error if the tokenizer has ids without an embedding. `config` is the model's text config."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest < config.vocab_size:
        return []
    return [
        f"the tokenizer has ids up to {largest:,}, the model's vocabulary ends at {config.vocab_size - 1:,}; take the "
        "tokenizer that the model was trained with, or resize the model's embeddings"
    ]


def _read_json(file: Path) -> dict[str, Any] | str | None:
    """The JSON object in a file; None if the file is missing; an error message if it is not a valid object."""
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{file.name} is not valid JSON: {_first_line(error)}"
    return value if isinstance(value, dict) else f"{file.name} must hold an object, it holds a {type(value).__name__}"


def _mismatches(report: Mapping[str, Any]) -> Iterator[str]:
    """Weights that the files and the architecture don't share. transformers would initialise them at random."""
    said = {
        "missing_keys": "the files lack {}, which config.json's architecture has",
        "unexpected_keys": "the files hold {}, which config.json's architecture has no place for",
        "mismatched_keys": "of another shape in the files than in config.json's architecture: {}",
    }
    for kind, message in said.items():
        names = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in report.get(kind) or ())
        if names:
            more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            yield message.format(", ".join(names[:_SHOWN]) + more)


@torch.no_grad()
def _not_finite(model: torch.nn.Module) -> Iterator[str]:
    """Weights that are NaN or infinite.

    The sum of a weight is a cheap first check. A finite sum proves all elements finite; others may have overflowed.
    """
    names = [
        name
        for name, weight in model.named_parameters()
        if not weight.sum(dtype=torch.float32).isfinite() and not weight.isfinite().all()
    ]
    if names:
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        yield f"NaN or infinite numbers in {', '.join(names[:_SHOWN])}{more}; take another checkpoint"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
