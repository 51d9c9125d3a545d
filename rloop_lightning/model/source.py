"""What a policy is made of, loaded from where its settings say: model, tokenizer, and adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rloop_lightning.model.adapter_folder import AdapterFolder, is_adapter, source_faults, without_weights
from rloop_lightning.model.config import PolicyConfig, lora_faults, lora_target_faults, model_source, routing_faults
from rloop_lightning.model.folder import hub_faults, vocabulary_faults
from rloop_lightning.model.loading import is_folder, load_model, load_tokenizer
from rloop_lightning.model.lora import Adapter, add_adapter
from rloop_lightning.model.quantization import keep_layout, nf4, not_finite_in_files
from rloop_lightning.system.hub import MODEL_FILES, fetched_folder


@dataclass(frozen=True)
class Source:
    """A model, its tokenizer, and the adapter on it.

    Args:
        name: folder or hub name of the policy.
        model: the Hugging Face causal LM, with the adapter's layers in it.
        tokenizer: its tokenizer.
        adapter: the adapter; None if all weights are trained.
    """

    name: str
    model: Any
    tokenizer: Any
    adapter: Adapter | None


def load_source(config: PolicyConfig) -> Source:
    """Load from a folder or the hub.

    Raises:
        ValueError, OSError: it is not usable or can't be read; names all errors.
    """
    name = model_source(config.model)
    if wrong := lora_faults(config) or source_faults(name):
        raise ValueError("\n".join(wrong))
    folder = AdapterFolder.read(Path(name)) if is_adapter(name) else None
    base = folder.base if folder else name
    if wrong := hub_faults(base) or [*routing_faults(config), *lora_target_faults(config)]:
        raise ValueError("\n".join(wrong))
    # None lets transformers choose sdpa, or eager for a model without it. Flash attention runs only on a GPU, so it is
    # set after the checks.
    attention = "eager" if config.attn_implementation == "eager" else None
    model = _load(base, getattr(torch, config.dtype), config, attn_implementation=attention)
    tokenizer = load_tokenizer(base)
    if wrong := vocabulary_faults(tokenizer, model.config.get_text_config()):  # the first check for a hub name
        raise ValueError("\n".join(wrong))
    adapter = None
    if folder:
        adapter = folder.attach(model)
    elif config.lora.rank:
        adapter = add_adapter(model, config.lora)
    return Source(name, model, tokenizer, adapter)


def _load(base: str, dtype: torch.dtype, config: PolicyConfig, **settings: Any) -> Any:
    if config.quantization == "none":
        return load_model(base, dtype=dtype, **settings)
    local = Path(base) if is_folder(base) else fetched_folder(base, MODEL_FILES)
    if wrong := not_finite_in_files(local):
        raise ValueError("\n".join(wrong))
    quantised = nf4(dtype, without_weights(base))
    model = load_model(base, dtype=dtype, quantization_config=quantised, **settings)
    keep_layout(model)
    return model
