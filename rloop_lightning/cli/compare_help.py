"""The help of `rloop-compare`. Imports no torch."""

from __future__ import annotations

from rloop_lightning.cli.short_help import options_help

_TEXT = """usage: rloop-compare [--algos NAME,...] [--consolidate NAME,...] [--seeds 0,1,2] [--OPTION VALUE ...]
       rloop-compare STUDY.yaml [--seeds 0,1,2] [--OPTION VALUE ...]

Runs several settings (arms) with the same seeds and the same budget, and compares the policies: pass@k with intervals,
paired differences to the first arm, and costs. Each run is an ordinary run folder, STUDY/ARM/seed-N. The same command
goes on where a study was stopped or killed. The settings of rloop-fit may be given, and apply to every run, but for
--seed_everything; --resume, --restart_from, --debug and --trust belong to single runs.

Examples:
  rloop-compare --algos dapo,grpo,kl --consolidate none,rft --seeds 0,1,2
  rloop-compare --algos dapo --consolidate none,rft --dry_run             the runs, and the expected time
  rloop-compare filter.yaml --jobs 2 --out studies/filter
  rloop-compare filter.yaml --jobs 20 --launcher 'srun -c 8 --gres gpu:1 {command}'
"""


def compare_help() -> str:
    """The text of `rloop-compare --help`."""
    return options_help(_TEXT, ["rloop_lightning.cli.compare_options.CompareOptions"])
