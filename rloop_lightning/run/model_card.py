"""The model card of a final policy: README.md in the form that the Hugging Face hub reads.

    model_card(CardFacts(...))        YAML front matter, then Markdown
    base_facts(policy.source)         what the base policy's own card says

Names, notes and settings may be hostile text. YAML's own writer quotes them in the front matter; in the text they are
code or escaped (system/markdown.py). Of paths on this machine, only the last part is shown.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import rloop_lightning
from rloop_lightning.model.config import EMBEDDED_MODEL, embedded_model_path
from rloop_lightning.model.loading import is_folder
from rloop_lightning.system.hub import hub_file
from rloop_lightning.system.markdown import code, escaped, fenced
from rloop_lightning.types import SamplingParams

CARD = "README.md"

_LIBRARIES = ("torch", "transformers", "lightning")
_HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")  # as the hub names licences
_OF_THE_MACHINE = ("out", "resume", "debug", "hub", "trainer")
"""Settings that the weights do not depend on; `trainer.precision` is shown."""
_OF_THE_ENGINE = ("name", "class_path", "max_new_tokens", "temperature", "top_k", "top_p", "stop", "dtype")
"""Settings of the engine that the weights depend on. Others may hold addresses, paths and keys."""
_ROOTS = ("/", "~", "./", "../", "{run}/")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_LARGEST_CARD = 1_000_000  # characters


@dataclass(frozen=True)
class BaseFacts:
    """What is known of the base policy.

    Args:
        name: its name on the hub, or the name of its folder.
        on_hub: the nearest model on the hub that it is or comes from; empty if none is known.
        licence: `license`, `license_name` and `license_link` of its card, as far as they are there.
    """

    name: str
    on_hub: str = ""
    licence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells.

    Args:
        base: the base policy.
        algorithm: the class of the RL algorithm.
        consolidation: the class of the consolidation; empty for plain RL.
        consolidated_by: what the consolidation did.
        rloop: whether the run was RLoop, with fine-tuning on expert sets.
        handed_over: the name of the final policy in the results table.
        table: the results table, Markdown.
        notes: the notes of the run.
        spent: what the run cost, by what is counted.
        sets: numbers of problems; the training set is `train`.
        settings: those of config.yaml; empty if the run has none.
        sampling: how the rollouts were sampled.
        seed: seed of all randomness.
        adapter: whether the weights are those of an adapter.
    """

    base: BaseFacts
    algorithm: str
    consolidation: str
    consolidated_by: str
    rloop: bool
    handed_over: str
    table: str
    notes: Sequence[str]
    spent: Mapping[str, int]
    sets: Mapping[str, int]
    settings: Mapping[str, Any]
    sampling: SamplingParams
    seed: int
    adapter: bool = False


def base_facts(source: str) -> BaseFacts:
    """What is known of the base policy of a folder or hub name, from its own card."""
    local = is_folder(source)
    file = Path(source) / CARD if local else hub_file(source, CARD)
    card = {} if file is None else _front_matter(file)
    if not local:
        return BaseFacts(source, source, _licence(card, source))
    parent = card.get("base_model")
    parent = parent[0] if isinstance(parent, list) and parent else parent
    on_hub = parent if isinstance(parent, str) and _HUB_NAME.fullmatch(parent) else ""
    name = EMBEDDED_MODEL if Path(source) == embedded_model_path() else Path(source).absolute().name
    return BaseFacts(name, on_hub, _licence(card))


def model_card(facts: CardFacts) -> str:
    """The content of README.md. Equal facts give equal text."""
    front_matter = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True, width=1000)
    parts = [_introduction(facts), _use(facts), _results(facts), _training(facts), _shown_settings(facts)]
    return f"---\n{front_matter}---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _metadata(facts: CardFacts) -> dict[str, Any]:
    data = facts.settings.get("data") or {}
    dataset = data.get("dataset")
    on_hub = isinstance(dataset, str) and _HUB_NAME.fullmatch(dataset) and not Path(dataset).exists()
    method = ["rloop"] if facts.rloop else []
    relation, lora = ("adapter", ["lora"]) if facts.adapter else ("finetune", [])
    return {
        **({"base_model": facts.base.on_hub, "base_model_relation": relation} if facts.base.on_hub else {}),
        **facts.base.licence,
        **({"datasets": [dataset]} if on_hub else {}),
        "library_name": "peft" if facts.adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rloop-lightning", "reinforcement-learning", "rlvr", *method, facts.algorithm.lower(), *lora],
    }


def _introduction(facts: CardFacts) -> str:
    paper = " (RLoop, [arXiv 2511.04285](https://arxiv.org/abs/2511.04285))" if facts.rloop else ""
    consolidated = (
        f"Each round of exploration with {code(facts.algorithm)} was followed by consolidation with "
        f"{code(facts.consolidation)}: {facts.consolidated_by}{paper}."
    )
    plain = f"The algorithm was {code(facts.algorithm)}."
    licence = facts.base.licence.get("license")
    about = (
        f"The licence is the base policy's: {code(licence)}."
        if licence
        else "The licence of the base policy is not known here. Look it up before you publish this one."
    )
    return (
        f"# {code(facts.base.name)}, trained with rloop-lightning\n\n"
        f"{code(facts.base.name)}, trained by reinforcement learning with verifiable rewards. "
        f"{consolidated if facts.consolidation else plain} {about}"
    )


def _use(facts: CardFacts) -> str:
    sampling = facts.sampling
    package, cls = ("peft", "AutoPeftModelForCausalLM") if facts.adapter else ("transformers", "AutoModelForCausalLM")
    imports = f"from {package} import {cls}\nfrom transformers import AutoTokenizer"
    if not facts.adapter:
        imports = f"from {package} import {cls}, AutoTokenizer"
    example = f"""{imports}

folder = "final"  # this folder, or the name of its repository on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {cls}.from_pretrained(folder)

prompt = "..."  # in the form of the training prompts: chat template, instruction
tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
completion = model.generate(**tokens, tokenizer=tokenizer)[0, tokens.input_ids.shape[1] :]
print(tokenizer.decode(completion, skip_special_tokens=True))"""
    top_k = sampling.top_k or "off"
    return (
        f"## Use\n\n{fenced(example, 'python')}\n\n"
        + ("The folder holds an adapter (LoRA); its base model is loaded with it. " if facts.adapter else "")
        + "`generate` samples as training did: "
        f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, top-k {top_k}, at most "
        f"{sampling.max_new_tokens:,} tokens (generation_config.json)."
    )


def _results(facts: CardFacts) -> str:
    notes = "".join(f"\n- {escaped(note)}" for note in facts.notes)
    return (
        f"## Results\n\nThis policy is {code(facts.handed_over)}. pass@k is the estimated probability that at least "
        f"one of k completions is right.\n\n{facts.table}" + (f"\n{notes}" if notes else "")
    )


def _training(facts: CardFacts) -> str:
    lines = [
        *(f"Problem set {code(name)}: {count:,} problems" for name, count in facts.sets.items()),
        *(f"{name}: {count:,}" for name, count in facts.spent.items()),
        f"Seed: {facts.seed}",
        f"Versions: rloop-lightning {rloop_lightning.__version__}, "
        + ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
        + f", Python {platform.python_version()}",
    ]
    return "## Training\n\n" + "\n".join(f"- {line}" for line in lines)


def _shown_settings(facts: CardFacts) -> str:
    if not facts.settings:
        return ""
    shown = {key: _without_paths(value) for key, value in facts.settings.items() if key not in _OF_THE_MACHINE}
    if precision := (facts.settings.get("trainer") or {}).get("precision"):
        shown["trainer"] = {"precision": precision}
    if isinstance(engine := shown.get("engine"), Mapping):
        shown["engine"] = {name: engine[name] for name in engine if name in _OF_THE_ENGINE}
    if "policy" in shown:
        shown["policy"] = {**shown["policy"], "model": facts.base.name}
    return f"## Settings\n\n{fenced(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), 'yaml')}"


def _without_paths(value: Any) -> Any:
    """A setting with the last part of each path in it."""
    if isinstance(value, Mapping):
        return {name: _without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and _is_path(value) else value


def _is_path(text: str) -> bool:
    """Whether a setting is a file or folder of this machine, rather than a name or a text."""
    if text.startswith(_ROOTS) and text.count("/") > 1 and text.split() == [text]:
        return True
    try:
        return Path(text).exists()
    except OSError:  # a text that is too long for a name
        return False


def _front_matter(file: Path) -> Mapping[str, Any]:
    """The YAML at the head of a card; empty if there is none that can be read."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")[:_LARGEST_CARD]
        found = _FRONT_MATTER.match(text)
        values = yaml.safe_load(found[1]) if found else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return values if isinstance(values, Mapping) else {}


def _licence(card: Mapping[str, Any], repository: str = "") -> dict[str, str]:
    """`license`, `license_name` and `license_link` of a card; empty if it names no licence as the hub does.

    Args:
        repository: where the card is on the hub, for a link to a file beside it.
    """
    said = {key: text for key in ("license", "license_name", "license_link") if (text := _short_text(card.get(key)))}
    if not _LICENCE.fullmatch(said.get("license", "")):
        return {}
    link = said.pop("license_link", "")
    if link.startswith("https://"):
        return {**said, "license_link": link}
    if link and repository:
        return {**said, "license_link": f"https://huggingface.co/{repository}/blob/main/{link}"}
    return said


def _short_text(value: Any) -> str:
    """The value, if it is a short text of one line."""
    return value if isinstance(value, str) and len(value) <= 300 and value.isprintable() else ""
