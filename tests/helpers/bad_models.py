"""A tiny model folder, and what can be wrong with one: `make_models(folder)` makes `good` and all of `SPOILED`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from builders import make_model
from problem_files import byte_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

Spoil = Callable[[Path], None]

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
NORM = "model.norm.weight"


def make_models(folder: Path) -> None:
    make_good_model(folder / "good")
    for name, spoil in SPOILED.items():
        shutil.copytree(folder / "good", folder / name)
        spoil(folder / name)


def make_good_model(folder: Path) -> None:
    """A tiny random model that takes any text, with a chat template."""
    tokenizer = byte_tokenizer()
    make_model(
        vocab_size=len(tokenizer) + 1,  # reading it again adds a token
        max_position_embeddings=2048,
        dtype=torch.float32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_text(name: str, text: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(text)

    return spoil


def with_values(name: str, **changes: Any) -> Spoil:
    """Values of a JSON file; None takes one out."""

    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return spoil


def with_weights(changes: Mapping[str, Tensor | None]) -> Spoil:
    """Weights; None takes one out."""

    def spoil(folder: Path) -> None:
        weights = {**load_file(folder / WEIGHTS), **changes}
        kept = {name: weight for name, weight in weights.items() if weight is not None}
        save_file(kept, folder / WEIGHTS, {"format": "pt"})

    return spoil


def without(*patterns: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for path in {path for pattern in patterns for path in folder.glob(pattern)}:
            path.unlink()

    return spoil


def cut_to(size: int) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])

    return spoil


def adapter(folder: Path) -> None:
    (folder / CONFIG).rename(folder / "adapter_config.json")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def sharded(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    shards = {NORM: "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def without_eos(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    with_values(CONFIG, eos_token_id=None)(folder)
    without("generation_config.json", "special_tokens_map.json", "chat_template.jinja")(folder)  # it ends turns


def adapter_left(folder: Path) -> None:
    """What a merge leaves behind, or somebody put there."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))


def recurrent(folder: Path) -> None:
    config = transformers.MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    transformers.MambaForCausalLM(config).save_pretrained(folder)


def with_unknown_dtype(folder: Path) -> None:
    """A header that is whole, but of a newer format."""
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[NORM]["dtype"] = "F99"
    changed = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])


def with_header(header: bytes, length: int | None = None) -> Spoil:
    """A safetensors file of a header alone, whose length is told right or not."""

    def spoil(folder: Path) -> None:
        told = len(header) if length is None else length
        (folder / WEIGHTS).write_bytes(told.to_bytes(8, "little") + header)

    return spoil


def index_outside(folder: Path) -> None:
    index = {"weight_map": {NORM: "../../x\x1b[2J.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def endless_file(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("/dev/zero")


def unfed_pipe(folder: Path) -> None:
    os.mkfifo(folder / "merges.txt")


def unreadable(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def longrope(folder: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    tokenizer = byte_tokenizer()
    make_model(
        "Phi3",
        vocab_size=len(tokenizer) + 1,
        max_position_embeddings=2048,
        original_max_position_embeddings=256,
        rope_parameters=rope,
        dtype=torch.float32,
        eos_token_id=tokenizer.eos_token_id,
    ).save_pretrained(folder)


SPOILED: Mapping[str, Spoil] = {
    "no_config": without(CONFIG),
    "adapter": adapter,
    "bad_config": with_text(CONFIG, "{"),
    "auto_map": with_values(CONFIG, model_type="theirs", auto_map={"AutoModelForCausalLM": "theirs.Model"}),
    "unknown": with_values(CONFIG, model_type="nonesuch"),
    "t5": with_values(CONFIG, model_type="t5"),
    "bart": with_values(CONFIG, model_type="bart", is_encoder_decoder=True),
    "vision": with_values(CONFIG, model_type="qwen2_5_vl"),
    "list_config": with_text(CONFIG, "[1]"),
    "no_type": with_text(CONFIG, "{}"),
    "adapter_left": adapter_left,
    "bitsandbytes": with_values(CONFIG, quantization_config={"load_in_4bit": True}),
    "gptq": with_values(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}),
    "awq": with_values(CONFIG, text_config={"quantization_config": {"quant_method": "awq"}}),
    "recurrent": recurrent,
    "longrope": longrope,
    "unknown_activation": with_values(CONFIG, hidden_act="nonesuch"),
    "no_heads": with_values(CONFIG, num_attention_heads=0),
    "text_for_size": with_values(CONFIG, hidden_size="many"),
    "text_as_eos": with_values("generation_config.json", eos_token_id="<eos>"),
    "list_tokenizer": with_text("tokenizer_config.json", "[]"),
    "unknown_dtype": with_unknown_dtype,
    "unreadable": unreadable,
    "no_head": with_weights({"lm_head.weight": None}),
    "no_tokenizer": without("tokenizer*", "special_tokens_map.json"),
    "bad_tokenizer": with_text(TOKENIZER, "{"),
    "no_eos": without_eos,
    "small_vocabulary": with_values(CONFIG, vocab_size=200),
    "pickle": pickled,
    "no_weights": without("*.safetensors"),
    "cut": cut_to(9_999),
    "beheaded": cut_to(100),
    "shards": sharded,
    "missing_weight": with_weights({NORM: None}),
    "extra_weight": with_weights({"value.weight": torch.zeros(1)}),
    "other_shape": with_weights({NORM: torch.ones(7)}),
    "template_bomb": with_text("chat_template.jinja", "{{ 'a' * 10**9 }}"),
    "template_recursion": with_text("chat_template.jinja", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"),
    "huge_vocabulary": with_values(CONFIG, vocab_size=10**12),
    "huge_depth": with_values(CONFIG, num_hidden_layers=10**9),
    "unknown_rope": with_values(CONFIG, rope_parameters={"rope_type": "\x1b[2J", "rope_theta": 1e4}),
    "no_factor": with_values(CONFIG, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
    "no_context": with_values(CONFIG, max_position_embeddings=-7),
    "model_as_tokenizer": with_values("tokenizer_config.json", tokenizer_class="Qwen2ForCausalLM"),
    "endless_header": with_header(b"{}", length=2**60),
    "garbled_header": with_header(b"\x80" * 20),
    "escape_in_header": with_header(b'{"\\u001b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}'),
    "index_outside": index_outside,
    "endless_file": endless_file,
    "unfed_pipe": unfed_pipe,
    "nan": with_weights({NORM: torch.full([32], float("nan"))}),
    "infinite": with_weights({NORM: torch.tensor([float("inf"), *[1.0] * 31])}),
}
