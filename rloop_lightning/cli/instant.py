"""What the commands answer before torch is imported: `--help` and `--version`."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

from rloop_lightning.cli.report_usage import HELP
from rloop_lightning.system.terminal import printable_lines

_SHOWN = ("torch", "lightning", "transformers")


def fit_answer(argv: Sequence[str]) -> int | None:
    """Answer `rloop-fit --help` or `--version`, and return the exit code; None if neither is asked for."""
    if "--version" in argv:
        show(versions("rloop-fit"))
        return 0
    if not {"-h", "--help"} & set(argv):
        return None
    from rloop_lightning.cli.short_help import fit_help

    try:
        show(fit_help(_named(argv)))
    except ValueError as error:
        for line in printable_lines(str(error)):
            print(f"rloop-fit: error: {line}", file=sys.stderr)
        return 2
    return 0


def data_answer(argv: Sequence[str]) -> int | None:
    """The same for `rloop-data`."""

    def text() -> str:
        from rloop_lightning.cli.short_help import data_help

        return data_help(argv[0] if argv else "")

    return _answer("rloop-data", argv, text)


def eval_answer(argv: Sequence[str]) -> int | None:
    """The same for `rloop-eval`."""

    def text() -> str:
        from rloop_lightning.cli.eval_help import eval_help

        return eval_help(argv[0] if argv else "")

    return _answer("rloop-eval", argv, text)


def compare_answer(argv: Sequence[str]) -> int | None:
    """The same for `rloop-compare`."""

    def text() -> str:
        from rloop_lightning.cli.compare_help import compare_help

        return compare_help()

    return _answer("rloop-compare", argv, text)


def report_answer(argv: Sequence[str]) -> int | None:
    """The same for `rloop-report`."""
    return _answer("rloop-report", argv, lambda: HELP)


def _answer(command: str, argv: Sequence[str], text: Callable[[], str]) -> int | None:
    """The same for a command that without arguments shows its help too."""
    if "--version" in argv:
        show(versions(command))
        return 0
    if argv and not {"-h", "--help"} & set(argv):
        return None
    show(text())
    return 0


def versions(command: str) -> str:
    """The line of `--version`."""
    others = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
    return f"{command} {_version('rloop-lightning')} (Python {platform.python_version()}, {others})"


def show(text: str, stream: TextIO | None = None) -> None:
    """Print a text, to a reader that may close the pipe early; to stdout, or to another stream."""
    stream = stream or sys.stdout
    try:
        print(text, flush=True, file=stream)
    except BrokenPipeError:
        # Otherwise later texts and the interpreter, at its end, would flush into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _named(argv: Sequence[str]) -> dict[str, str]:
    """By group, the part that the command line names."""
    from rloop_lightning.cli.swappable import SWAPPABLE

    named = {}
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        group = name.removeprefix("--").removesuffix(".name").removesuffix(".class_path")
        if name.startswith("--") and group in SWAPPABLE and (chosen := value if equals else following):
            named[group] = chosen
    return {group: name for group, name in named.items() if not name.startswith("-")}
