"""Seeded damage of a model's folder: `mutate(folder, random.Random(seed))` does it, and says what it did."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bad_models import CONFIG, TOKENIZER, WEIGHTS

SETTINGS = (CONFIG, "generation_config.json", TOKENIZER, "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"

_NESTED: Any = []
for _ in range(300):
    _NESTED = [_NESTED]

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 10**12, 2**63, -(2**63), 10**40, 1e308, -0.5, 1e-308),
    *(float("nan"), float("inf"), "", "x", "\x1b[2Jbad\nline", "a" * 100_000, "../../x", "/dev/zero", "\ud800"),
    *("kernels-community/flash-attn", "acme/code--model.Model", "Qwen2ForCausalLM", "gpt2", "yarn", "gelu"),
    *([], {}, [0], [-1, 10**12], ["a", None], {"a": {}}, {"rope_type": "yarn"}, _NESTED, list(range(3000))),
)
# Settings that choose code or files, or make other code of transformers read the rest.
KEYS: tuple[str, ...] = (
    *("_attn_implementation", "attn_implementation", "_experts_implementation", "auto_map", "quantization_config"),
    *("transformers_weights", "use_kernels", "kernel_config", "fusion_config", "distributed_config", "custom_generate"),
    *("text_config", "per_layer_config", "num_labels", "id2label", "rope_scaling", "rope_parameters", "sliding_window"),
    *("layer_types", "tie_word_embeddings", "is_encoder_decoder", "tokenizer_class", "added_tokens_decoder"),
    *("extra_special_tokens", "chat_template", "model_max_length", "vocab_file", "tokenizer_file", "eos_token"),
)
TEMPLATES: tuple[str, ...] = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ raise_exception('\x1b[2J') }}",
    "{{ messages",
    "\x00\ud7ff",
)


def mutate(folder: Path, rng: random.Random) -> str:
    """Damage a folder in one to three places."""
    return "; ".join(_mutate_once(folder, rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))


def _mutate_once(folder: Path, rng: random.Random) -> str:
    kind, weight = zip(*_KINDS.items(), strict=True)
    (chosen,) = rng.choices(kind, weight)
    try:
        return f"{chosen.__name__[1:]} {chosen(folder, rng)}"
    except (OSError, ValueError, LookupError):  # another mutation took its place
        return f"{chosen.__name__[1:]} of nothing"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _bytes(folder: Path, rng: random.Random) -> str:
    file = rng.choice(_files(folder))
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content) if rng.random() < 0.5 else min(len(content), 200))
    what = rng.choice(("flip", "cut", "insert", "delete", "repeat"))
    length = rng.choice((1, 2, 8, 100))
    if what == "flip":
        content[place] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del content[place:]
    elif what == "insert":
        content[place:place] = rng.randbytes(length)
    elif what == "delete":
        del content[place : place + length]
    else:
        content[place:place] = content[place : place + length] * 3
    file.write_bytes(content)
    return f"{file.name} {what} {length} at {place}"


def _value(folder: Path, rng: random.Random) -> str:
    """Another value for a setting, or none."""
    file = folder / rng.choice(SETTINGS)
    settings = json.loads(file.read_text())
    said = _change(settings, rng)
    file.write_text(json.dumps(settings))
    return f"{file.name} {said}"


def _key(folder: Path, rng: random.Random) -> str:
    """A setting that was not there."""
    file = folder / rng.choice(SETTINGS)
    settings = json.loads(file.read_text())
    key, value = rng.choice(KEYS), rng.choice(VALUES)
    settings[key] = value
    file.write_text(json.dumps(settings))
    return f"{file.name} {key}={str(value)[:40]!r}"


def _twice(folder: Path, rng: random.Random) -> str:
    """A key twice."""
    file = folder / rng.choice(SETTINGS)
    key = rng.choice(list(json.loads(file.read_text())))
    file.write_text("{" + f"{json.dumps(key)}: {json.dumps(rng.choice(VALUES))}, " + file.read_text().lstrip()[1:])
    return f"{file.name} {key}"


def _header(folder: Path, rng: random.Random) -> str:
    """The header of the weights, whose length fits or does not."""
    file = folder / WEIGHTS
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, said = json.loads(content[8 : 8 + length]), "length"
    if rng.random() < 0.8:
        said = _change(header, rng)
    changed = json.dumps(header).encode()
    wrong = rng.choice((0, 1, len(changed) - 1, len(changed) + 1, 2**31, 2**60, 2**64 - 1))
    told = wrong if said == "length" or rng.random() < 0.1 else len(changed)
    file.write_bytes(told.to_bytes(8, "little") + changed + content[8 + length :])
    return f"{said}, length {told}"


def _index(folder: Path, rng: random.Random) -> str:
    """The weights as shards, with something wrong in the index."""
    shard = "model-00001-of-00001.safetensors"
    names = json.loads((folder / WEIGHTS).read_bytes()[8:].split(b"}}")[0] + b"}}")
    index = {"metadata": {"total_size": 1}, "weight_map": {name: shard for name in names if name != "__metadata__"}}
    (folder / WEIGHTS).rename(folder / shard)
    said = _change(index, rng)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return said


def _file(folder: Path, rng: random.Random) -> str:
    """Something else in the place of a file."""
    file = rng.choice(_files(folder))
    what = rng.choice(("nothing", "empty", "folder", "loop", "fifo", "device", "other"))
    other = rng.choice(_files(folder))
    content = other.read_bytes()
    file.unlink()
    if what == "empty":
        file.touch()
    elif what == "folder":
        file.mkdir()
    elif what == "loop":
        file.symlink_to(file.name)
    elif what == "fifo":
        os.mkfifo(file)
    elif what == "device":
        file.symlink_to("/dev/zero")
    elif what == "other":
        file.write_bytes(content)
    return f"{file.name} is {what} {other.name if what == 'other' else ''}"


def _template(folder: Path, rng: random.Random) -> str:
    template = rng.choice(TEMPLATES)
    (folder / TEMPLATE).write_text(template)
    return repr(template[:40])


_KINDS: dict[Callable[[Path, random.Random], str], float] = {
    _bytes: 4,
    _value: 8,
    _key: 3,
    _twice: 1,
    _header: 3,
    _index: 1,
    _file: 1,
    _template: 0.05,
}


def _change(settings: Any, rng: random.Random) -> str:
    """Change one value inside of nested objects and lists; all depths are as likely."""
    depths: dict[int, list[tuple[Any, Any]]] = {}
    for depth, parent, key in _places(settings):
        depths.setdefault(depth, []).append((parent, key))
    parent, key = rng.choice(rng.choice(list(depths.values())))
    if rng.random() < 0.15:
        del parent[key]
        return f"without {key!r}"
    if rng.random() < 0.1:
        other, there = rng.choice(rng.choice(list(depths.values())))
        parent[key], other[there] = other[there], parent[key]
        return f"{key!r} for {there!r}"
    parent[key] = rng.choice(VALUES)
    return f"{key!r}={str(parent[key])[:40]!r}"


def _places(settings: Any, depth: int = 0) -> Iterator[tuple[int, Any, Any]]:
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in list(entries):
        yield depth, settings, key
        if isinstance(value, dict | list):
            yield from _places(value, depth + 1)


def copied(source: Path, target: Path) -> Path:
    """A fresh copy of a folder."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))
