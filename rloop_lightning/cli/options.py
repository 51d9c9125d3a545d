"""The options of `rloop-fit` that belong to no group. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rloop_lightning.cli.presets import preset_names
from rloop_lightning.system.fields import Seed


@dataclass(frozen=True)
class RunOption:
    """An option of the run as a whole.

    Args:
        type: type of its value; bool for a switch.
        default: value if it is not given.
        help: its meaning.
    """

    type: Any
    default: Any
    help: str


RUN_OPTIONS = {
    "seed_everything": RunOption(Seed, 0, "seed of all randomness"),
    "out": RunOption(
        str,
        None,
        "run folder, absent or empty, or a place in a store, such as s3://BUCKET/RUN (default: "
        "runs/DATE-ALGO-CONSOLIDATE)",
    ),
    "resume": RunOption(str, None, "folder of the run to resume, or its place in a store"),
    "restart_from": RunOption(
        str, None, "with --resume: repeat the run from the beginning of this phase, such as round-1/explore"
    ),
    "trust": RunOption(bool, False, "with --resume: import the code that the run's settings name"),
    "dry_run": RunOption(
        bool, False, "print the plan of the run, prompts and the reward's verdicts on right and wrong answers, and end"
    ),
    "debug": RunOption(bool, False, "show the traceback of an error"),
}

SHOWING = {
    "-h, --help": "show the options that people use; with --algo NAME, --data NAME and so on, those of that part",
    "--help_all": "show all options of the chosen parts, with types and defaults",
    "--version": "show the versions of rloop-lightning, Python, torch, lightning and transformers",
    "--plan": "show the memory that training and generation need, by arithmetic, and what fits; nothing is loaded. "
    "--plan.memory 24GiB plans for a GPU of that size, which need not be here",
    "--print_config[=FLAGS]": "check the settings and print them as a file for --config; FLAGS are skip_default, "
    "skip_null and comments, separated by commas",
    "--print_shtab SHELL": "print a completion script for bash, zsh or tcsh (needs the package shtab)",
}
"""Options that print something and end the program."""

CONFIG = f"settings file, or preset: {', '.join(preset_names())}; may be repeated, later ones override earlier ones"
"""The meaning of `--config`."""
