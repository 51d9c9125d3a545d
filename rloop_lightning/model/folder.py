"""Checks of a model's folder before its weights are read.

model_faults("path/or/name")        all errors found, one message each
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rloop_lightning.model.loading import ADAPTER_BESIDE_MODEL, cause, is_folder, load_tokenizer, quiet
from rloop_lightning.model.stop_tokens import as_ids, stop_token_ids
from rloop_lightning.system.hub import hub_answers, unreachable_hub
from rloop_lightning.system.terminal import one_line

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.spm")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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


def _hub_faults(name: str) -> list[str]:
    from huggingface_hub import try_to_load_from_cache

    if hub_answers() or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return []
    near = difflib.get_close_matches(name, ["countdown"], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return [f"no folder of that name, and not fetched from the hub yet: {unreachable_hub()}{hint}"]


def hub_config_faults(name: str) -> list[str]:
    """Errors in the config.json of a hub name, which may be fetched; none for a folder, which `model_faults` checks."""
    if is_folder(name):
        return []
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(name, local_files_only=not hub_answers())
    except Exception as error:  # the libraries may raise anything
        return [f"config.json can't be loaded: {cause(error)}"]
    return list(_architecture_faults(config))


def _config_faults(folder: Path) -> Iterator[str]:
    """Errors in config.json, and in the architecture that it names."""
    config = _read_json(folder / "config.json")
    has_adapter = (folder / "adapter_config.json").exists()
    if config is None and has_adapter:
        yield "contains only an adapter; merge it into its model, save the result and give its folder"
    elif config is None:
        yield "contains no config.json; give a folder written by save_pretrained"
    elif isinstance(config, str):
        yield config
    else:
        if has_adapter:
            yield ADAPTER_BESIDE_MODEL
        yield from _architecture_faults(config)


def _architecture_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Errors in the architecture and the kind of weights that a config.json names."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind is None:
        yield "config.json names no model_type; give a folder written by save_pretrained"
    elif not isinstance(kind, str) or (kind not in CONFIG_MAPPING and "auto_map" not in config):
        yield f"config.json: the installed transformers knows no model_type {kind!r}; a newer one may"
    elif kind not in CONFIG_MAPPING:
        yield "config.json asks for code of its own (auto_map), and code of a model is never run here"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        yield f"a model of type {kind!r} is not a causal language model, which a policy must be"
    elif config.get("is_encoder_decoder"):
        yield f"a model of type {kind!r} with an encoder is not a causal language model, which a policy must be"
    elif not _takes_a_cache(kind):
        yield (
            f"a model of type {kind!r} has no KV cache (it is recurrent, or computes each sequence anew), which "
            "generation needs; take a model with attention"
        )
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        if method := part.get("quantization_config") or part.get("compression_config"):
            yield (
                f"its weights are quantised ({_quantisation(method)}), which can't be trained; take the unquantised "
                "model, or dequantise it with its library, save the result and give its folder"
            )


def _takes_a_cache(kind: str) -> bool:
    """Whether the forward pass of a model type takes the KV cache of transformers."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        forward = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]).forward
    except (ImportError, AttributeError, RuntimeError):  # needs a package; loading reports it
        return True
    return "past_key_values" in inspect.signature(forward).parameters


def _quantisation(settings: Any) -> str:
    """The name of a quantisation method."""
    if not isinstance(settings, Mapping):
        return one_line(repr(settings), limit=80)
    bits = next((f" {bits} bit" for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), "")
    method = settings.get("quant_method") or ("bitsandbytes" if bits else "unknown method")
    return one_line(str(method), limit=80) + bits


def _weight_faults(folder: Path) -> Iterator[str]:
    """Errors in the weight files, found from their headers alone."""
    index = _read_json(folder / "model.safetensors.index.json")
    shards = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
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
    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, size))
    except OSError as error:
        return f"{shard.name} can't be read: {error.strerror}"
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
        yield f"config or tokenizer can't be loaded: {cause(error)}"
        return
    generation = _read_json(folder / "generation_config.json")
    if isinstance(generation, str):
        yield generation
    else:
        of_model = getattr(config, "eos_token_id", None) if generation is None else generation.get("eos_token_id")
        if not all(type(token) is int for token in as_ids(of_model)):
            yield f"eos_token_id must be a token id or a list of them, got {one_line(repr(of_model), limit=80)}"
        elif not stop_token_ids(of_model, tokenizer):
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
        return f"{file.name} is not valid JSON: {cause(error)}"
    return value if isinstance(value, dict) else f"{file.name} must hold an object, it holds a {type(value).__name__}"
