"""Weights to files: a whole model, an adapter, or a model with its adapter merged into it.

A model is written a layer at a time. Of a sharded policy, all ranks gather, and the first one writes.
"""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from rloop_lightning.errors import NonFiniteError
from rloop_lightning.model.adapter_folder import write_adapter
from rloop_lightning.model.lora import Adapter
from rloop_lightning.model.safetensors_file import TensorWriter
from rloop_lightning.model.sharding import whole
from rloop_lightning.model.whole_weights import described, meta, plain_weights

if TYPE_CHECKING:
    from rloop_lightning.model.policy import Policy

_FILE, _INDEX = "model{suffix}.safetensors", "model.safetensors.index.json"
_LARGEST_FILE = "50GB"  # as transformers writes them


def write_weights(policy: Policy, folder: Path, *, base: str, merge: bool) -> None:
    """Write a policy's model to a folder; of one with an adapter, the adapter alone.

    Args:
        base: folder or hub name of the model under the adapter.
        merge: write the model with the adapter merged into it.

    Raises:
        OSError: it can't be written.
    """
    folder.mkdir(exist_ok=True)
    if policy.adapter is None or merge:
        _write_model(policy, folder)
    else:
        write_adapter(policy.adapter, folder, base)


def gather_for_writer(policy: Policy, *, merge: bool) -> None:
    """Gather with the rank that calls `write_weights`."""
    if policy.adapter is None or merge:
        for _ in plain_weights(policy):
            pass
    else:
        for weight in policy.adapter.parameters.values():
            whole(weight)


def _write_model(policy: Policy, folder: Path) -> None:
    """Write the files that `save_pretrained` writes, without the whole model in memory."""
    plain = policy.model if policy.adapter is None else _without_adapter(policy.adapter)
    plain.config.dtype = str(policy.model.dtype).removeprefix("torch.")
    plain.config.architectures = [type(plain).__name__]
    plain.config.save_pretrained(folder)
    if plain.can_generate():
        plain.generation_config.save_pretrained(folder)
    layout = described(policy)
    in_order = {name: layout[name] for name in plain.state_dict() if name in layout}
    # Such as one tensor for each expert, each in its own memory, since files are filled by that.
    in_files = {name: meta(weight) for name, weight in revert_weight_conversion(plain, in_order).items()}
    plan = split_torch_state_dict_into_shards(in_files, filename_pattern=_FILE, max_shard_size=_LARGEST_FILE)
    with ExitStack() as stack:
        writers = {
            file: stack.enter_context(TensorWriter(folder / file, {name: in_files[name] for name in names}))
            for file, names in plan.filename_to_tensors.items()
        }
        for weights in plain_weights(policy):
            for name, weight in revert_weight_conversion(plain, weights).items():
                writers[plan.tensor_to_filename[name]].write(name, weight)
    if plan.is_sharded:
        index = {
            "metadata": {"total_parameters": plain.num_parameters(), **plan.metadata},
            "weight_map": plan.tensor_to_filename,
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _without_adapter(adapter: Adapter) -> Any:
    """The model under an adapter as it was before, on the device meta."""
    model = adapter.base_model
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):  # merged weights are not quantised
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.generation_config = model.generation_config
    return plain


@torch.no_grad()
def check_finite(model: nn.Module) -> None:
    """Check that every trained weight is finite. All ranks of a sharded model call it.

    Raises:
        NonFiniteError: names the first weight that is NaN or infinite.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if torch.isfinite(whole(nn.utils.get_total_norm(weights.values()))):  # a single device sync
        return
    for name, weight in weights.items():
        if not whole(weight.isfinite().all()):
            raise NonFiniteError(f"the policy's weight {name} holds NaN or infinite values")
