"""config.json of a model: read, checked, and without the settings that a model has no say in.

    config = load_config("path/or/name")        the config of transformers
    architecture_faults(settings)               errors in the architecture that it names, one message each

transformers keeps every key of config.json as an attribute. Some of these choose code, such as a kernel repository on
the hub to be used as attention, or other files to be read. They are left out, at any depth.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rloop_lightning.model.libraries import library_errors, quiet
from rloop_lightning.system.hub import hub_file
from rloop_lightning.system.terminal import cause, one_line

CONFIG = "config.json"

IGNORED = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation",
        "_experts_implementation_internal",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "configuration_files",
        "custom_generate",
        "distributed_config",
        "experts_implementation",
        "fusion_config",
        "kernel_config",
        "name_or_path",
        "transformers_weights",
        "trust_remote_code",
        "use_kernels",
    }
)
"""Keys of config.json that choose code or files. The options of `--policy` alone decide these."""

CORRECT = "correct that file, or copy it again"

_SHOWN_CHARACTERS = 80
_MOST_BYTES = 2**28  # of a JSON file; an index of a million weights has half of that


def load_config(name: str) -> Any:
    """The config of a folder or hub name, without the `IGNORED` keys.

    Raises:
        ValueError: it can't be read, or transformers refuses it.
    """
    from transformers import CONFIG_MAPPING

    settings = read_config(name)
    if isinstance(settings, str):
        raise ValueError(settings)
    kind = settings.get("model_type", "")
    if kind == "mistral" and "layer_types" in settings:
        kind = "ministral"  # as AutoConfig reads such a file: attention alternates between two ranges
    with quiet(), library_errors(f"{CONFIG} can't be loaded", CORRECT):
        return CONFIG_MAPPING[kind].from_dict(without_ignored(settings))


def read_config(name: str) -> dict[str, Any] | str:
    """config.json of a folder or hub name as it is; an error message if it can't be read."""
    folder = Path(name).expanduser()
    file = folder / CONFIG if folder.is_dir() else hub_file(name, CONFIG)
    found = None if file is None else read_object(file)
    return f"contains no {CONFIG}; give a folder written by save_pretrained" if found is None else found


def read_object(file: Path) -> dict[str, Any] | str | None:
    """The JSON object in a file; None if the file is missing; an error message if it is not a valid object."""
    try:
        if not file.exists():
            return None
        if not file.is_file():
            return f"{file.name} is no file; replace it"
        if file.stat().st_size > _MOST_BYTES:
            return f"{file.name} holds {file.stat().st_size:,} bytes, which is more than any model needs; replace it"
        value = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate could be read, but not saved
    except OSError as error:
        return f"{file.name} can't be read: {error.strerror}"
    except RecursionError:
        return f"{file.name} is not valid JSON: it nests too deeply; {CORRECT}"
    except ValueError as error:
        return f"{file.name} is not valid JSON: {cause(error)}; {CORRECT}"
    if isinstance(value, dict):
        return value
    return f"{file.name} must hold an object, it holds a {type(value).__name__}; {CORRECT}"


def without_ignored(settings: Any) -> Any:
    """The same settings without the `IGNORED` keys, at any depth."""
    if isinstance(settings, Mapping):
        return {key: without_ignored(value) for key, value in settings.items() if key not in IGNORED}
    return [without_ignored(value) for value in settings] if isinstance(settings, list) else settings


def architecture_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Errors in the architecture and the kind of weights that a config.json names."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = settings.get("model_type")
    shown = one_line(repr(kind), limit=_SHOWN_CHARACTERS)
    if kind is None:
        yield f"{CONFIG} names no model_type; give a folder written by save_pretrained"
    elif not isinstance(kind, str) or (kind not in CONFIG_MAPPING and "auto_map" not in settings):
        yield f"{CONFIG}: the installed transformers knows no model_type {shown}; a newer one may"
    elif kind not in CONFIG_MAPPING:
        yield f"{CONFIG} asks for code of its own (auto_map), and code of a model is never run here"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        yield f"a model of type {shown} is not a causal language model, which a policy must be"
    elif settings.get("is_encoder_decoder"):
        yield f"a model of type {shown} with an encoder is not a causal language model, which a policy must be"
    elif not _takes_a_cache(kind):
        yield (
            f"a model of type {shown} has no KV cache (it is recurrent, or computes each sequence anew), which "
            "generation needs; take a model with attention"
        )
    text = settings.get("text_config")
    for part in (settings, text if isinstance(text, Mapping) else {}):
        if method := part.get("quantization_config") or part.get("compression_config"):
            yield (
                f"its weights are quantised ({_quantisation(method)}), which can't be trained; take the unquantised "
                "model (--policy.quantization nf4 quantises it on loading), or dequantise it with its library, save "
                "the result and give its folder"
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
        return one_line(repr(settings), limit=_SHOWN_CHARACTERS)
    bits = next((f" {bits} bit" for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), "")
    method = settings.get("quant_method") or ("bitsandbytes" if bits else "unknown method")
    return one_line(str(method), limit=_SHOWN_CHARACTERS) + bits
