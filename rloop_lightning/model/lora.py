"""LoRA (arXiv 2106.09685): a low-rank adapter on a frozen model, in PEFT's own layers.

    adapter = add_adapter(model, LoraSettings(rank=32))     # new: B = 0, so that the policy begins as the model
    adapter.parameters                                      # name -> weight; all that is trained
    with adapter.off(): ...                                 # the model alone
    merged(model, adapter)                                  # W + s B A under the model's own names

An adapted product is W x + s B A x with s = alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv 2312.03732).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rloop_lightning.model.adapter_packages import import_bitsandbytes, missing_peft
from rloop_lightning.model.lora_targets import ALL_LINEAR, LoraTargets
from rloop_lightning.model.quantization import dequantised, is_quantised, quantised_layers
from rloop_lightning.model.sharding import assign, local
from rloop_lightning.system.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, check_fields

_NAME = "default"  # PEFT's for the only adapter of a model


@dataclass(frozen=True)
class LoraSettings:
    """LoRA: train a low-rank adapter, and keep the weights of the model frozen.

    Args:
        rank: rank of the adapter; 0 trains all weights of the model. Needs the package peft.
        alpha: the adapter's output is multiplied by alpha / rank. With the default of 32, the learning rate need not
            change with the rank.
        targets: the layers that are adapted: `all-linear`, or a list of names such as [q_proj,v_proj]. all-linear
            leaves out the head, embeddings and the routers of a mixture of experts, and includes its experts; an
            expert's weight is named by its parameter, such as experts.gate_up_proj.
        rslora: multiply the adapter's output by alpha / sqrt(rank) instead.
        dropout: must be 0: with dropout, the logprobs of a rollout would be random, and so would their ratios.
        merge: at the end of the run, write the final policy to final-merged as well, as a plain Hugging Face folder
            with the adapter merged into the weights.
    """

    rank: NonNegativeInt = 0
    alpha: PositiveFloat = 32.0
    targets: Literal["all-linear"] | list[str] = ALL_LINEAR
    rslora: bool = False
    dropout: NonNegativeFloat = 0.0
    merge: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "--policy.lora")
        wrong = []
        if self.dropout:
            wrong.append(
                f"--policy.lora.dropout {self.dropout:g}: must be 0, because dropout makes logprobs random, and so the "
                "ratios of policies that training rests on; use --algo.weight_decay to regularise"
            )
        if not self.targets:
            wrong.append("--policy.lora.targets: names no layer; take all-linear, or a list such as [q_proj,v_proj]")
        if wrong:
            raise ValueError("\n".join(wrong))


class Adapter:
    """The adapter of a model. The weights of the model itself are frozen.

    Args:
        model: a PEFT model with one LoRA adapter.

    Raises:
        ValueError: it has another kind of adapter, or one whose logprobs would be random or can't be merged.
    """

    def __init__(self, model: Any) -> None:
        self.base_model: Any = model.get_base_model()
        self._model = (model,)  # a tuple, because the modules belong to the base model
        if list(model.peft_config) != [_NAME] or str(model.peft_config[_NAME].peft_type.value) != "LORA":
            raise ValueError("a policy takes one adapter, LoRA by PEFT, named 'default'")
        self.config: Any = model.peft_config[_NAME]
        layers = adapted_layers(self.base_model).values()
        if any(not isinstance(layer.lora_dropout[_NAME], nn.Identity) for layer in layers):
            raise ValueError("lora_dropout must be 0, because dropout makes logprobs random")
        if any(layer.lora_variant for layer in layers) or self.config.bias != "none" or self.config.lora_bias:
            raise ValueError("only plain LoRA is supported, without DoRA and other variants, and without biases")
        for layer in layers:
            layer._cast_input_dtype = _cast_input_dtype

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's weights by their names in the base model."""
        return {name: weight for name, weight in self.base_model.named_parameters() if f".{_NAME}." in name}

    @contextmanager
    def off(self) -> Iterator[None]:
        """Compute the base model alone in the block."""
        (model,) = self._model
        with model.disable_adapter():
            yield

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Compute with other weights in the block, which must not need gradients of them."""
        own = self.parameters
        kept = {name: _take_over(weight, weights[name]) for name, weight in own.items()}
        try:
            yield
        finally:
            for name, weight in own.items():
                _take_over(weight, kept[name])

    @contextmanager
    def products(self) -> Iterator[None]:
        """Compute the adapter's products in the model's dtype in the block, where it is half precision.

        The adapter's own weights are float32, so that no update is lost in rounding.
        """
        device, dtype = self.base_model.device.type, self.base_model.dtype
        if dtype not in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device):
            yield
            return
        with torch.autocast(device, dtype, cache_enabled=False):
            yield

    @torch.no_grad()
    def reset(self) -> None:
        """Set the weights of a new adapter: A uniform as in PEFT, the same in every run, and B = 0."""
        generator = torch.Generator().manual_seed(0)
        for name, weight in self.parameters.items():
            initial = torch.zeros(weight.shape)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(initial, a=5**0.5, generator=generator)
            assign(weight, initial)


def add_adapter(model: Any, settings: LoraSettings) -> Adapter:
    """Add a new adapter to a Hugging Face causal LM.

    Raises:
        ValueError: peft is not installed, or the model has no layer of a name in `settings.targets`.
    """
    targets = LoraTargets.of(model, settings.targets)
    return attach(
        model,
        {
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "use_rslora": settings.rslora,
            "target_modules": targets.modules,
            "target_parameters": targets.parameters or None,
        },
    )


def attach(model: Any, config: Mapping[str, Any]) -> Adapter:
    """Add an adapter to a model by the arguments of PEFT's LoraConfig.

    Raises:
        ValueError: peft is not installed, or refuses.
    """
    if wrong := missing_peft():
        raise ValueError(wrong)
    import_bitsandbytes()
    from peft import LoraConfig, get_peft_model  # an optional package

    # PEFT's own numbers, which `reset` replaces, come from the global random state.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT calls a deprecated method of transformers
        adapter = Adapter(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config)))
    adapter.reset()
    return adapter


def leave_out_frozen(policy: nn.Module) -> None:
    """Leave the frozen base model out of the state of a policy with an adapter, and so out of checkpoints."""
    policy.register_state_dict_post_hook(_keep_trained)
    policy.register_load_state_dict_post_hook(_expect_trained)


def _keep_trained(policy: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    kept = {f"{prefix}model.{name}" for name in policy.adapter.parameters}
    for name in [name for name in state if name.startswith(prefix) and name not in kept]:
        del state[name]


def _expect_trained(policy: Any, keys: Any) -> None:
    trained = tuple(f"model.{name}" for name in policy.adapter.parameters)
    ours = tuple(f"model.{name}" for name in policy.model.state_dict())
    keys.missing_keys[:] = [name for name in keys.missing_keys if name.endswith(trained) or not name.endswith(ours)]


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of PEFT in a model, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@torch.no_grad()
def merged(adapter: Adapter, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights of the base model plus the adapter's s B A, under the names that the model had before it.

    Quantised weights are dequantised. The sum is computed in float32 and rounded to the dtype of the weights once. The
    model is not changed.

    Args:
        weights: some weights of the model by name, whole; by default all.
    """
    model = adapter.base_model
    own = under_adapter(adapter, model.state_dict(keep_vars=True) if weights is None else weights)
    plain = {name: (dequantised(weight) if is_quantised(weight) else weight).detach() for name, weight in own.items()}
    for name, layer in adapted_layers(model).items():
        changed = f"{_plain(name)}.{getattr(layer, 'parameter_name', 'weight')}"
        if changed in plain:
            weight = plain[changed]
            wide = torch.promote_types(weight.dtype, torch.float32)
            plain[changed] = (weight.to(wide) + layer.get_delta_weight(_NAME).to(wide)).to(weight.dtype)
    return plain


def under_adapter(adapter: Adapter, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the base model among some of an adapted one, under the names that it had before the adapter."""
    quantised = {f"{name}.weight" for name in quantised_layers(adapter.base_model)}
    return {
        _plain(name): weight
        for name, weight in weights.items()
        if f".{_NAME}." not in name and name.rpartition(".weight.")[0] + ".weight" not in quantised
    }


@torch.no_grad()
def _take_over(weight: nn.Parameter, values: Tensor) -> Tensor:
    """Let a weight have other values. Returns its own."""
    if isinstance(weight, DTensor):  # the memory of a shard stays: FSDP gathers from there
        own = weight.detach().clone()
        local(weight).copy_(local(values))
        return own
    own, weight.data = weight.data, values
    return own


def file_name(name: str) -> str:
    """The name of an adapter's weight in PEFT's files."""
    return f"base_model.model.{name}".replace(f".{_NAME}.", ".")


def _plain(name: str) -> str:
    """A name in the model without the layers that PEFT puts around its own."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _cast_input_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """PEFT casts the input of an adapter to its dtype. Under autocast that makes copies that are cast back at once."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(dtype)
