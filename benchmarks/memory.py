"""The memory plan against measured peaks: updates of policies that are trained in all their weights, by LoRA and by
QLoRA, and of a mixture of experts, each with and without gradient checkpointing.

Each update runs in a process of its own (memory_side.py): the policy is loaded, its optimizer makes a first step on a
few tokens, and two micro-batches follow. What the process holds at most beyond what loading left is compared with the
plan's gradients, moments, activations and logits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure import ROOT, side_environment
from benchmarks.models import make_tokenizer
from benchmarks.options import Options
from benchmarks.report import Result, Table, size_text
from rloop_lightning.model.adapter_folder import without_weights
from rloop_lightning.model.attention_memory import PackedRows
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.lora import LoraSettings
from rloop_lightning.model.model_shape import ModelShape
from rloop_lightning.model.policy_weights import PolicyWeights
from rloop_lightning.model.update_memory import Products
from rloop_lightning.run.memory_plan import MemoryPlan, Moments, Phase, Setup

EOS = "<eos>"
_RANK = 16
_TOY = PackedRows(prompts=1, prompt=8, rollouts=2, completion=12)
_SHORT = PackedRows(prompts=4, prompt=64, rollouts=16, completion=128)  # attention by products
_LONG = PackedRows(prompts=1, prompt=64, rollouts=4, completion=512)  # attention by PyTorch's kernel
_CARD = PackedRows(prompts=1, prompt=512, rollouts=16, completion=992)
_KINDS = ("full", "LoRA", "QLoRA", "experts")


@dataclass(frozen=True)
class Case:
    """An update to measure.

    Args:
        kind: full, LoRA, QLoRA, or experts, a mixture of experts whose weights are all trained.
        rows: the rollouts of a micro-batch.
        checkpointing: as in PolicyConfig.
        mixed: float32 weights and products in bfloat16.
    """

    kind: str
    rows: PackedRows
    checkpointing: bool = False
    mixed: bool = False

    @property
    def name(self) -> str:
        ways = ["bf16-mixed"] * self.mixed + ["checkpointing"] * self.checkpointing
        rows = f"{self.rows.rollouts} x {self.rows.prompt} + {self.rows.completion} tokens"
        return ", ".join([self.kind, rows, *ways])

    def config(self, folder: str) -> PolicyConfig:
        adapted = self.kind in ("LoRA", "QLoRA")
        return PolicyConfig(
            folder,
            dtype="float32",
            max_tokens_per_micro_batch=2**30,
            gradient_checkpointing=self.checkpointing,
            lora=LoraSettings(rank=_RANK if adapted else 0),
            quantization="nf4" if self.kind == "QLoRA" else "none",
        )


def run(options: Options) -> Result:
    measured: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as scratch:
        folders = {kind: str(save_model(Path(scratch) / kind, kind, options)) for kind in ("dense", "experts")}
        for case in _cases(options):
            folder = folders["experts" if case.kind == "experts" else "dense"]
            found = measure(case, folder, options.device)
            measured[case.name] = {**asdict(case), **found, "planned_bytes": planned(case, folder, options.device)}
            print(f"{case.name}: {measured[case.name]}", file=sys.stderr, flush=True)
    rows = [
        [
            name,
            size_text(one["peak_bytes"] - one["loaded_bytes"]),
            size_text(one["planned_bytes"]),
            f"{one['planned_bytes'] / (one['peak_bytes'] - one['loaded_bytes']) - 1:+.0%}",
        ]
        for name, one in measured.items()
    ]
    note = "Beyond the loaded weights. Bar: within 20 %."
    table = Table("The memory plan of updates", ["update", "measured", "planned", "off by"], rows, [note])
    return Result([table], {"updates": measured})


def _cases(options: Options) -> Iterator[Case]:
    if options.toy:
        yield Case("full", _TOY)
        yield Case("LoRA", _TOY, checkpointing=True)
        return
    on_gpu = options.device == "cuda"
    for kind in _KINDS:
        yield from (Case(kind, _CARD if on_gpu else _SHORT, checkpointing) for checkpointing in (False, True))
    if not on_gpu:
        yield Case("full", _LONG)
    yield Case("full", _CARD if on_gpu else _LONG, mixed=True)


def save_model(folder: Path, kind: str, options: Options) -> Path:
    """Save a random model, dense or with experts, and its tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3MoeConfig

    width, layers = (32, 2) if options.toy else (1024, 12) if options.device == "cuda" else (384, 6)
    settings: dict[str, Any] = {
        "vocab_size": 55 if options.toy else 8192,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    if kind == "experts":
        settings |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": width, "head_dim": width // 4}
    config = (Qwen3MoeConfig if kind == "experts" else Qwen2Config)(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer(settings["vocab_size"], EOS).save_pretrained(folder)
    return folder


def planned(case: Case, folder: str, device: str) -> float:
    """What the plan says of an update beyond the weights, bytes."""
    config, model = case.config(folder), without_weights(folder)
    weights, shape = PolicyWeights.planned(model, config), ModelShape.of(model)
    assert shape is not None
    rows = case.rows
    products = Products(
        device,
        torch.float32,
        torch.bfloat16 if case.mixed else torch.float32,
        checkpointing=case.checkpointing,
        adapted=weights.adapted,
        adapts_experts=weights.adapts_experts,
        trains_all=not config.lora.rank,
        quantised=case.kind == "QLoRA",
    )
    phase = Phase("exploration", Moments(8, 8), False, rows.rollouts, rows.rollouts // rows.prompts)
    setup = Setup(products, (phase,), rows.tokens, 1, rows.prompt, rows.completion, None)
    return MemoryPlan(shape, weights, setup).training().total - weights.bytes


def measure(case: Case, folder: str, device: str) -> dict[str, int]:
    """Bytes that a process holds once the policy is loaded, and at most."""
    settings = {"case": asdict(case), "folder": folder, "device": device}
    # Tensors of more than 64 KiB go back to the system when they are freed, so that a peak is that of live tensors.
    environment = {**side_environment(), "MALLOC_MMAP_THRESHOLD_": "65536"}
    side = [sys.executable, "-m", "benchmarks.memory_side", json.dumps(settings)]
    done = subprocess.run(side, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
