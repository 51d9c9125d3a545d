"""`rloop-data`: check a problem set before starting a run with it, and use the rollouts of a run.

    rloop-data check train.jsonl --data.preset gsm8k --data.eval test.jsonl --policy.model Qwen/Qwen2.5-0.5B
    rloop-data export runs/NAME --what expert --out expert.parquet          (export.py)
    rloop-data refilter runs/NAME --filter.max_success_rate 0.05,0.1,0.2    (refilter.py)

The options of `check` are those of `rloop-fit`, without the fields of a reward. It loads no model, only the tokenizer.
Problem sets are untrusted data, so their text is escaped before it is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from rloop_lightning.cli.arguments import UsageError, pairs
from rloop_lightning.cli.export import export
from rloop_lightning.cli.golds import gold_lines, sample_lines
from rloop_lightning.cli.instant import data_answer
from rloop_lightning.cli.parse_errors import parse
from rloop_lightning.cli.refilter import refilter
from rloop_lightning.cli.registry import find_class
from rloop_lightning.cli.swappable import SWAPPABLE, expand
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.problem_set import ProblemSet
from rloop_lightning.data.read import ReadProblems
from rloop_lightning.data.readable import refusals
from rloop_lightning.data.render import overlap_count, token_count
from rloop_lightning.data.text import normalised_problem
from rloop_lightning.model.adapter_folder import base_of
from rloop_lightning.model.config import model_source
from rloop_lightning.model.loading import load_tokenizer
from rloop_lightning.rewards.base import Reward
from rloop_lightning.system.fields import PositiveInt
from rloop_lightning.system.terminal import one_line, printable, printable_lines
from rloop_lightning.types import Problem

_EXAMPLES = 5
_CHARACTERS_SHOWN = 2000  # of an example
_IDS_SHOWN = 20

_OF_RUNS: Mapping[str, Callable[[Sequence[str]], list[str]]] = {"export": export, "refilter": refilter}
"""The commands that read a run."""

_USAGE = (
    "rloop-data check PATH_OR_NAME [--data.FIELD VALUE ...] [--policy.model NAME_OR_PATH] [--reward NAME] [--limit N]"
)
_DESCRIPTION = """Prints what a problem set contains: counts, prompt lengths, how the reward reads the gold answers and
which of them are suspicious, duplicates, problems that are in both the training set and an evaluation set, five
examples as the policy will see them, and answers that the reward accepts and refuses for five problems.
The exit code is 2 if a run would refuse the set, else 0."""


def main(argv: Sequence[str] | None = None) -> int:
    """The `rloop-data` command. Exit codes: 0 the set is usable, 2 it is not, or the input is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if (code := data_answer(arguments)) is not None:
        return code
    wrong: list[str] = []
    try:
        if (command := _OF_RUNS.get(arguments[0])) is not None:
            for line in command(arguments[1:]):
                print(printable(line))
            return 0
        settings, source = _parse(arguments)
        tokenizer = _tokenizer(settings.policy.model) if settings.policy.model else None
        reward = _reward(settings.reward or source.reward)
        sets, wrong = _read(source)
        unreadable = {} if reward is None else {name: reward.unusable(found) for name, found in sets.items()}
        if not source.skip_unreadable:
            flag = f"--reward {type(reward).__name__}"
            wrong += refusals(unreadable, flag, source.skip_unreadable, shown=_IDS_SHOWN)
        for line in _report(source, sets, unreadable, tokenizer, reward, settings.limit):
            print(printable(line))
    except BrokenPipeError:  # the reader has closed the pipe
        sys.stdout = None  # otherwise the interpreter would flush into the pipe again
        return 0
    except (UsageError, ValueError, OSError) as error:
        wrong = [str(error)]
    for line in printable_lines("\n".join(wrong)):
        print(f"rloop-data: error: {line}", file=sys.stderr)
    return 2 if wrong else 0


def _parse(arguments: list[str]) -> tuple[Namespace, ProblemSource]:
    """The settings, and the problem source that they describe.

    Raises:
        UsageError: the problem set is unknown or settings are invalid; names all errors.
    """
    command, *rest = arguments
    if fields := [flag for flag, _ in pairs(rest) if flag.startswith("--reward.")]:
        raise UsageError(f"{one_line(fields[0])}: give --reward NAME alone; rloop-reward check takes its fields")
    if command != "check":
        raise UsageError(f"{one_line(command)!r} is no command; give check, {' or '.join(_OF_RUNS)}")
    if not rest or rest[0].startswith("-"):
        raise UsageError(f"give a problem set: {_USAGE}")
    given = expand("data", rest.pop(0))
    try:
        cls = find_class("data", given.pop("name"), SWAPPABLE["data"].base)
    except ValueError as error:
        raise UsageError(f"{error}; or a file, a folder or organisation/name") from error
    parser = _parser(cls)
    flags = [flag if value is None else f"{flag}={value}" for flag, value in pairs(rest)]
    settings, wrong = parse(parser, {}, [*(f"--data.{field}={value}" for field, value in given.items()), *flags])
    source = None
    if settings is not None:
        try:
            # A class without arguments is no group of the parser.
            source = parser.instantiate(Namespace(data=settings.data)).data if "data" in settings else cls()
        except ValueError as error:
            wrong += str(error).splitlines()
    if settings is None or source is None or wrong:
        raise UsageError("\n".join(wrong))
    return settings, source


def _parser(source: type) -> ArgumentParser:
    parser = ArgumentParser(
        prog="rloop-data", usage=_USAGE, description=_DESCRIPTION, exit_on_error=False, allow_abbrev=False
    )
    parser.add_class_arguments(source, "data")
    parser.add_argument(
        "--policy.model", type=str, default=None, help="render prompts and count tokens with this model's tokenizer"
    )
    parser.add_argument(
        "--limit", type=PositiveInt | None, default=None, help="show this many gold answers of each set, evenly spread"
    )
    parser.add_argument("--reward", type=str, default=None, help="check that this reward can read the gold answers")
    return parser


def _reward(name: str) -> Reward:
    """The reward that must read the gold answers.

    Raises:
        UsageError: it can't be made without fields of its own.
    """
    settings = expand("reward", name)
    cls = find_class("rewards", settings.pop("name"), SWAPPABLE["reward"].base)
    try:
        return cls(**settings)
    except TypeError as error:
        raise UsageError(
            f"--reward {one_line(name)}: {one_line(str(error), limit=200)}; rloop-reward check takes its fields"
        ) from error


def _read(source: ProblemSource) -> tuple[Mapping[str, Sequence[Problem]], list[str]]:
    """All problems that can be read, by set, and the errors in the rest."""
    if not isinstance(source, ReadProblems):
        return {"train": source.train(), **source.evaluation()}, []
    try:
        return {"train": source.train(), **source.evaluation()}, []
    except ValueError as error:
        return {name: found.problems for name, found in source.sets.items()}, str(error).splitlines()


def _report(
    source: ProblemSource,
    sets: Mapping[str, Sequence[Problem]],
    unreadable: Mapping[str, Mapping[str, str]],
    tokenizer: Any,
    reward: Reward | None,
    limit: int | None,
) -> Iterator[str]:
    """The lines to print."""
    for name, problems in sets.items():
        read = source.sets.get(name) if isinstance(source, ReadProblems) else None
        held_out = read is None and isinstance(source, ReadProblems)
        of = f" of {read.rows:,} rows" if read else ", held out of train (--data.validation_size)" if held_out else ""
        yield f"{one_line(name)}: {len(problems):,} problems{of}"
        if read is not None:
            yield from _reading(read)
        if ids := list(unreadable.get(name, {})):
            yield f"  the reward can't read the gold answer of: {len(ids):,} ({_some(ids)})"
        if reward is not None:
            yield from gold_lines(reward, problems, limit)
        if problems:
            yield f"  repeated problems: {_repeated(problems):,}"
            yield f"  prompt length, {_lengths(source, problems, tokenizer)}"
        if name != "train":
            yield f"  also in train: {overlap_count(sets['train'], problems):,}"
    if not sets["train"]:
        return
    shown = sets["train"][:_EXAMPLES]
    how = "as the policy will see them" if tokenizer else "without a template; --policy.model names one's tokenizer"
    yield f"\nfirst {len(shown)} of train, {how}:"
    for problem in _rendered(source, shown, tokenizer):
        golds = " or ".join(one_line(gold, limit=200) for gold in problem.golds)
        yield f"\n--- {one_line(problem.id)}, answer: {golds}"
        if not tokenizer:
            yield from (f"[{turn.role}] {printable(turn.text, limit=_CHARACTERS_SHOWN)}" for turn in problem.context)
        yield printable(problem.prompt, limit=_CHARACTERS_SHOWN)
    if reward is not None:
        yield from sample_lines(reward, sets["train"])


def _reading(read: ProblemSet) -> Iterator[str]:
    if read.repeats:
        yield f"  repeated rows, left out: {read.repeats:,}"
    if read.lists:
        yield f"  gold answers that are lists: {read.lists:,}, read as {read.lists_as} (--data.answer_lists)"
    if read.replies:
        yield f"  conversations that go on after the problem, replies left out: {read.replies:,}"
    ids = [f"{name}: {why}" if why else name for name, why in read.unreadable_golds.items()]
    yield f"  unreadable gold answers: {len(ids):,}" + (f" ({_some(ids)})" if ids else "")
    yield f"  duplicate ids: {len(read.duplicate_ids):,}"


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(one_line, ids[:_IDS_SHOWN])) + (" ..." if len(ids) > _IDS_SHOWN else "")


def _repeated(problems: Sequence[Problem]) -> int:
    """The number of problems that repeat the normalised text of an earlier one."""
    return len(problems) - len({normalised_problem(problem) for problem in problems})


def _tokenizer(model: str) -> Any:
    try:
        return load_tokenizer(base_of(model_source(model)))
    except ValueError as error:
        raise ValueError(f"--policy.model {model}: {error}") from error


def _rendered(source: ProblemSource, problems: Sequence[Problem], tokenizer: Any) -> Sequence[Problem]:
    return source.render(problems, tokenizer) if tokenizer else problems


def _lengths(source: ProblemSource, problems: Sequence[Problem], tokenizer: Any) -> str:
    shown = _rendered(source, problems, tokenizer)
    lengths = np.array([token_count(p, tokenizer) if tokenizer else len(p.prompt) for p in shown])
    quantiles = np.quantile(lengths, [0, 0.5, 0.95, 1], method="nearest").astype(int)
    said = ", ".join(f"{what} {n:,}" for what, n in zip(("min", "median", "p95", "max"), quantiles, strict=True))
    limit = source.max_prompt_tokens
    over = f"; {int((lengths > limit).sum()):,} over --data.max_prompt_tokens {limit}" if limit and tokenizer else ""
    return f"{'tokens' if tokenizer else 'characters'}: {said}{over}"
