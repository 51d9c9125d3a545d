"""Loading a model and its tokenizer from a folder or the hub.

    load_model("path/or/name", dtype=...)     the model, with every weight read from its files and finite

Code that ships with a model is never run, and pickles are never read. folder.py checks a folder before that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rloop_lightning.model.config_json import load_config
from rloop_lightning.model.libraries import library_errors, quiet
from rloop_lightning.system.hub import hub_answers
from rloop_lightning.system.terminal import one_line

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ADAPTER_BESIDE_MODEL = (
    "contains an adapter (adapter_config.json) beside a model, and would load it on top of these weights; if they "
    "contain it already, delete adapter_config.json, else merge it, save the result and give its folder"
)
CORRECT_TOKENIZER = "correct tokenizer.json and tokenizer_config.json, or copy them again"
_SHOWN = 5  # weights that a message lists by name
_LONGEST_NAME = 100  # characters shown


def is_folder(name: str) -> bool:
    """Whether a model's name is a path, existing or missing, rather than a hub name."""
    try:
        return Path(name).expanduser().exists() or _HUB_NAME.fullmatch(name) is None
    except OSError:  # a name that is too long, or a folder above it that can't be entered
        return True


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or hub name.

    Raises:
        ValueError: it can't be loaded.
    """
    from transformers import AutoTokenizer  # imported here: it takes seconds, and `--help` does not need it

    config = load_config(name)
    with library_errors("its tokenizer can't be loaded", CORRECT_TOKENIZER):
        return AutoTokenizer.from_pretrained(
            name, config=config, trust_remote_code=False, local_files_only=_local(name)
        )


def model_type(name: str) -> str:
    """The architecture in the config.json of a folder or hub name, such as `qwen3_moe`."""
    return load_config(name).get_text_config().model_type


def load_model(name: str, **settings: Any) -> Any:
    """The causal LM of a folder or hub name.

    Raises:
        ValueError: it can't be loaded, or a weight is missing, unexpected, of the wrong shape, NaN or infinite.
        OSError: files can't be read.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(name)
    # quiet: it logs what is raised below, and goes on at random
    with quiet(), library_errors("its weights can't be loaded"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=_local(name),
            ignore_mismatched_sizes=True,  # reported below, with all other errors
            output_loading_info=True,
            **settings,
        )
    model, report = loaded
    if getattr(model, "_hf_peft_config_loaded", False):  # a folder's is found before
        raise ValueError(ADAPTER_BESIDE_MODEL)
    if wrong := [*_mismatches(report), *_not_finite(model)]:
        raise ValueError("\n".join(wrong))
    return model


def _local(name: str) -> bool:
    return is_folder(name) or not hub_answers()


def _mismatches(report: Mapping[str, Any]) -> Iterator[str]:
    """Weights that the files and the architecture don't share. transformers would initialise them at random."""
    said = {
        "missing_keys": "the files lack {}, which config.json's architecture has",
        "unexpected_keys": "the files hold {}, which config.json's architecture has no place for",
        "mismatched_keys": "of another shape in the files than in config.json's architecture: {}",
    }
    for kind, message in said.items():
        keys = report.get(kind) or ()
        names = sorted(one_line(str(key[0] if isinstance(key, tuple) else key), limit=_LONGEST_NAME) for key in keys)
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
