"""A word on the command line of `rloop-fit` that is no option: what was probably meant."""

from __future__ import annotations

from pathlib import Path

from rloop_lightning.cli.parse_errors import no_option
from rloop_lightning.cli.presets import preset_names
from rloop_lightning.cli.registry import names
from rloop_lightning.cli.swappable import SWAPPABLE
from rloop_lightning.data.rows import looks_like_a_file
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.system.terminal import one_line

_SUBCOMMANDS = ("fit", "train", "run", "start", "validate", "test", "eval", "evaluate", "predict", "check")


def about(word: str) -> str:
    """The message for a word."""
    if word.startswith("-"):
        return no_option(word)
    shown = one_line(word, limit=200)
    if word in ("help", "version"):
        return f"'{word}' is no subcommand; run rloop-fit --{word}"
    if word in _SUBCOMMANDS:
        return f"rloop-fit takes no subcommand; leave {word!r} out and give options alone (rloop-fit --help)"
    path = Path(word)
    if RunFolder(path).state.is_file():
        return f"to resume a run, give --resume {shown}"
    if path.suffix in (".yaml", ".yml") or word in preset_names():
        return f"settings are given as --config {shown}"
    for group, part in SWAPPABLE.items():
        if word in names(part.registry):
            return f"to choose it, give --{group} {shown}"
    if looks_like_a_file(word):
        return f"problems are given as --data {shown}, settings as --config {shown}"
    return no_option(word)
