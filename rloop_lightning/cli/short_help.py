"""The short help of `rloop-fit` and `rloop-data`: the options that people use, as the sources of their classes say."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rloop_lightning.cli.declared import REQUIRED, Declared, DeclaredClass, declared_class
from rloop_lightning.cli.options import CONFIG, RUN_OPTIONS, SHOWING
from rloop_lightning.cli.registry import NONE, names
from rloop_lightning.cli.swappable import SWAPPABLE, expand
from rloop_lightning.system.terminal import one_line

FIXED_PATHS: Mapping[str, str] = {
    "policy": "rloop_lightning.model.config.PolicyConfig",
    "policy.lora": "rloop_lightning.model.lora.LoraSettings",
    "loop": "rloop_lightning.run.state.LoopConfig",
    "filter": "rloop_lightning.rollouts.filter.FilterConfig",
    "eval": "rloop_lightning.evaluation.evaluator.EvaluationConfig",
    "hub": "rloop_lightning.system.hub.HubConfig",
}
"""The classes of the groups whose options are shown, by import path."""

TRAINER = {
    "accelerator": Declared("auto", "cpu, gpu, or auto, which takes a GPU if there is one"),
    "devices": Declared(1, "processes on this machine, one per GPU; they split generation and updates"),
    "strategy": Declared("auto", "of several processes: ddp, or fsdp2 or hsdp, which shard the weights"),
    "precision": Declared(None, "32-true, or bf16-mixed for forward and backward passes in bfloat16"),
    "logger": Declared(
        None, "a further logger, such as WandbLogger; metrics.csv and TensorBoard logs are there anyway"
    ),
}
"""Options of Lightning's Trainer, whose own texts are too long to be short."""

SECTIONS: Sequence[tuple[str, Sequence[str]]] = (
    ("Model and data", ("policy.model", "data", "reward", "engine.max_new_tokens", "engine.temperature")),
    ("Method", ("algo", "algo.lr", "consolidate", "consolidate.lr", "consolidate.epochs")),
    (
        "Length and size",
        (
            "loop.rounds",
            "loop.explore_steps",
            "loop.problems_per_step",
            "loop.rollouts_per_problem",
            "algo.updates_per_step",
            "loop.select",
        ),
    ),
    ("Expert set", ("filter.max_success_rate", "filter.max_per_problem")),
    ("Evaluation", ("eval.samples", "eval.k", "eval.every_n_steps", "eval.max_problems")),
    (
        "Memory and speed",
        (
            "policy.max_tokens_per_micro_batch",
            "policy.gradient_checkpointing",
            "policy.lora.rank",
            "engine.max_rows",
            "trainer.accelerator",
            "trainer.devices",
            "trainer.strategy",
            "trainer.precision",
        ),
    ),
    (
        "Run",
        (
            "config",
            "dry_run",
            "out",
            "resume",
            "seed_everything",
            "loop.checkpoint_every_n_steps",
            "trainer.logger",
            "hub.push",
        ),
    ),
)
"""The options that people use, by subject."""

_FIT = """usage: rloop-fit [--OPTION VALUE ...]

Trains a language model by reinforcement learning with verifiable rewards, in rounds of exploration and consolidation
(RLoop, arXiv 2511.04285), or with one algorithm alone (--consolidate none).

Examples:
  rloop-fit                                                     a small model that ships with the package, on a CPU
  rloop-fit --policy.model Qwen/Qwen2.5-0.5B --data train.jsonl --data.eval test.jsonl
  rloop-fit --algo grpo --consolidate none --algo.lr 2e-6
  rloop-fit --resume runs/NAME
"""

_DEFAULTS = """Defaults are those with --policy.model or --config. Without both, the preset countdown sets its own;
rloop-fit --print_config prints them."""

_DATA = """usage: rloop-data check PATH_OR_NAME [--data.FIELD VALUE ...] [--policy.model NAME_OR_PATH] [--reward NAME]
       rloop-data export RUN --out FILE [--what WHAT] [--format FORMAT] [--OPTION VALUE ...]
       rloop-data refilter RUN [--filter.max_success_rate 0.05,0.1,0.2,0.5] [--filter.FIELD VALUE ...]

check prints what a problem set contains: counts, prompt lengths, unreadable gold answers, duplicates, problems that are
in both the training set and an evaluation set, and five examples as the policy will see them. The exit code is 2 if a
run would refuse the set, else 0.

export writes rollouts of a run as a data set for other trainers. refilter shows what the filter of a run would select
at other thresholds. `rloop-data export --help` and `rloop-data refilter --help` list their options; those of check:
"""

_DATA_OF_RUNS = {
    "export": """usage: rloop-data export RUN --out FILE [--what WHAT] [--format FORMAT] [--OPTION VALUE ...]

Writes rollouts of a run as a data set, FILE.parquet or FILE.jsonl. The problems are read from the run's data again, and
compared with those that the run began with.

Examples:
  rloop-data export runs/NAME --out expert.parquet                  expert sets as chats, for TRL's SFTTrainer
  rloop-data export runs/NAME --out hard.parquet --format verl --max_success_rate 0.1
  rloop-data export runs/NAME --out all.jsonl --what pool --format prompt-completion --max_per_problem 4
""",
    "refilter": """usage: rloop-data refilter RUN [--filter.max_success_rate 0.05,0.1,...] [--filter.FIELD VALUE ...]

Shows what the hard-problem filter would select from the pools of a run at each threshold, as a table. Nothing is
trained. Settings that are not given are those of the run.
""",
}

OF_RUNS: Mapping[str, tuple[str, Sequence[str]]] = {
    "export": (
        "",
        (
            "rloop_lightning.run.export.ExportConfig",
            "rloop_lightning.rollouts.selection.Selection",
            "rloop_lightning.cli.export.ProblemOptions",
        ),
    ),
    "refilter": ("filter.", ("rloop_lightning.cli.refilter.Refilter",)),
}
"""The commands that read a run: the prefix of their options, and the classes whose fields these are."""

_LONG = 100  # characters of a sentence
_NO_TERMINAL = 110  # columns


@dataclass(frozen=True)
class Shown:
    """A line of the help."""

    flag: str
    text: str


def fit_help(named: Mapping[str, str], width: int = 0) -> str:
    """The short help of `rloop-fit`.

    Args:
        named: by group, the part that the command line names; its own options are shown.
        width: columns; 0 takes the terminal's.

    Raises:
        ValueError: a name is unknown.
    """
    classes = _classes(named)
    sections = [(title, [line for key in keys if (line := _shown(key, classes))]) for title, keys in SECTIONS]
    for group, part in named.items():
        chosen = classes.get(group)
        listed = {key for _, keys in SECTIONS for key in keys}
        fields = (chosen.own or chosen.arguments) if chosen else {}
        if group == "data" and chosen:  # the fields of files and data sets are those of their common base
            fields = chosen.arguments
        lines = [
            option_line(f"{group}.{name}", field) for name, field in fields.items() if f"{group}.{name}" not in listed
        ]
        summary = f": {one_line(chosen.summary.rstrip('.'), limit=200)}" if chosen else ""
        sections.append((f"--{group} {one_line(part)}{summary}", [line for line in lines if line]))
    sections.append(("Help", [Shown(flag, text) for flag, text in SHOWING.items()]))
    return "\n".join([_FIT, _DEFAULTS, "", *layout(sections, width)])


def data_help(command: str = "", width: int = 0) -> str:
    """The help of `rloop-data`, or of its command `export` or `refilter`."""
    if command in OF_RUNS:
        group, classes = OF_RUNS[command]
        return options_help(_DATA_OF_RUNS[command], classes, group=group, width=width)
    fields = _classes({"data": "files"})["data"]
    assert fields is not None
    options = [option_line(f"data.{name}", field) for name, field in fields.arguments.items() if name != "path"]
    others = [
        Shown("--policy.model", "render prompts and count tokens with this model's tokenizer"),
        Shown("--reward", "check that this reward can read the gold answers (default: math)"),
        Shown("--version", SHOWING["--version"]),
    ]
    return "\n".join([_DATA, *layout([("Options", [*options, *others])], width)])


def options_help(text: str, classes: Sequence[str], *, group: str = "", width: int = 0) -> str:
    """A text, and the options that the fields of these classes are.

    Args:
        text: what the command does.
        classes: import paths.
        group: prefix of the options, such as `filter.`.
        width: columns; 0 takes the terminal's.
    """
    declared = filter(None, map(declared_class, classes))
    options = [option_line(f"{group}{name}", field) for one in declared for name, field in one.arguments.items()]
    return "\n".join([text, *layout([("Options", options)], width)])


def _classes(named: Mapping[str, str]) -> dict[str, DeclaredClass | None]:
    """The class of each group."""
    found = {group: declared_class(path) for group, path in FIXED_PATHS.items()}
    for group, part in SWAPPABLE.items():
        name = named.get(group, part.default)
        known = names(part.registry)
        if group in named and name != NONE:
            name = expand(group, name)["name"]
            if name not in known and "." not in name:
                raise ValueError(f"--{group}: unknown name {one_line(name)!r}. Known are {', '.join(sorted(known))}")
        found[group] = declared_class(known.get(name, name))
    return found


def _shown(key: str, classes: Mapping[str, DeclaredClass | None]) -> Shown | None:
    """The line of an option of `SECTIONS`; None if the named part has no such option."""
    group, _, field = key.rpartition(".")
    if key == "config":
        return Shown("--config", CONFIG)
    if key in RUN_OPTIONS:
        return option_line(key, Declared(RUN_OPTIONS[key].default, RUN_OPTIONS[key].help))
    if not group:
        return Shown(f"--{key}", f"{SWAPPABLE[key].help} (default: {SWAPPABLE[key].default})")
    if group == "trainer":
        return option_line(key, TRAINER[field])
    chosen = classes[group]
    if chosen is None:  # a class that is not ours, or none
        return Shown(f"--{key}", "")
    return option_line(key, chosen.arguments[field]) if field in chosen.arguments else None


def option_line(key: str, argument: Declared) -> Shown:
    """The line of an option: the first sentence of its documentation, and its default."""
    default = argument.default
    known = " (required)" if default is REQUIRED else f" (default: {_written(default)})"
    if default is None or "(default: " in argument.help:
        known = ""
    return Shown(f"--{key}", f"{summary_of(argument.help)}{known}")


def summary_of(text: str) -> str:
    """The first sentence of a field's documentation; of a long one, what stands before its explanations."""
    sentence = _before(text.removesuffix("."), ". ")
    return sentence if len(sentence) <= _LONG else _before(sentence, "; ", ": ", " (")


def _before(text: str, *ends: str) -> str:
    """The text up to the first of these ends that is not inside backticks or parentheses."""
    for place in range(len(text)):
        before = text[:place]
        inside = before.count("`") % 2 or before.count("(") > before.count(")")
        if not inside and text[place:].startswith(ends):
            return before
    return text


def _written(value: Any) -> str:
    """A default as a user would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{','.join(map(str, value))}]"
    return one_line(str(value), limit=40) or "empty"


def layout(sections: Sequence[tuple[str, Sequence[Shown]]], width: int) -> Iterator[str]:
    """The lines of a help.

    Args:
        sections: titles with their options.
        width: columns; 0 takes the terminal's.
    """
    columns = width or min(shutil.get_terminal_size((_NO_TERMINAL, 24)).columns, 120)
    indent = 2 + max(len(line.flag) for _, lines in sections for line in lines if len(line.flag) < 36) + 2
    for title, lines in sections:
        yield f"{title}:"
        for line in lines:
            text = textwrap.wrap(line.text, max(columns - indent, 20)) or [""]
            first = f"  {line.flag:<{indent - 2}}{text[0]}"
            if len(line.flag) > indent - 4:
                yield f"  {line.flag}"
                first = f"{'':<{indent}}{text[0]}"
            yield first.rstrip()
            yield from (f"{'':<{indent}}{rest}" for rest in text[1:])
        yield ""
