"""`rloop-reward`: check a reward on a problem set before starting a run with it.

    rloop-reward check train.jsonl --data.preset gsm8k --reward math --reward.extract box

The options are those of `rloop-fit`. No model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rloop_lightning.cli.arguments import UsageError, pairs
from rloop_lightning.cli.dry_run import verdict_lines
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.quiet import quiet_lightning
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.probes import RewardCheck, probe
from rloop_lightning.rewards.workers import WorkerStartError
from rloop_lightning.run.forecast import spread
from rloop_lightning.system.terminal import one_line, printable, printable_lines
from rloop_lightning.types import Problem

_EXPLAINED = 3  # problems of a set whose verdicts are explained
_WRONG_SHOWN = 20  # problems with a wrong verdict
_CHARACTERS = 80  # of a gold answer
_USAGE = "rloop-reward check PATH_OR_NAME [--reward NAME] [--GROUP.FIELD VALUE ...] [--limit N]"
_HELP = f"""usage: {_USAGE}

Scores completions whose verdict is known: gold answers in several forms, an empty text, the problem itself, a
gold answer cut short, and another problem's gold answer. For a few problems of each set, and for those with a wrong
verdict, it tells what was extracted, how it was read, and why it is right or wrong. --limit N takes N problems of each
set, evenly spread; the default is all. Every option of rloop-fit is accepted, such as --config.

The exit code is 1 if the reward never pays, pays wrong answers or raises; 2 if the input is wrong or the reward
can't read a gold answer; else 0."""


def main(argv: Sequence[str] | None = None) -> int:
    """The `rloop-reward` command. Exit codes: see `_HELP`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_HELP)
        return 0
    try:
        with quiet_lightning():
            return _check(arguments)
    except BrokenPipeError:  # the reader has closed the pipe
        sys.stdout = None  # otherwise the interpreter would flush into the pipe again
        return 0
    except (UsageError, ValueError, OSError, WorkerStartError) as error:
        for line in printable_lines(str(error)):
            print(f"rloop-reward: error: {line}", file=sys.stderr)
        return 1 if isinstance(error, WorkerStartError) else 2


def _check(arguments: Sequence[str]) -> int:
    """Print the reward's verdicts on each set."""
    data, limit, options = _parse(arguments)
    parts, wrong = RLoopCLI(["--data", data, *options]).parts.readable()
    if wrong:
        raise UsageError("\n".join(wrong))
    faulty = False
    for name, problems in {"train": parts.problems, **parts.evaluation_sets}.items():
        shown = spread(problems, limit) if limit else problems
        of_all = "" if len(shown) == len(problems) else f" of {len(problems):,}, evenly spread"
        print(f"{one_line(name)}: {len(shown):,} problems{of_all}", flush=True)
        check = probe(parts.reward, shown)
        for line in verdict_lines(check):
            print(printable(line))
        for line in _reasons(parts.reward, shown, check):
            print(printable(line))
        faulty = faulty or bool(check.faults())
    return int(faulty)


def _reasons(reward: Reward, problems: Sequence[Problem], check: RewardCheck) -> Iterator[str]:
    """The reward's own words on the completions of a few problems, those with wrong verdicts first."""
    paid = [problem_id for kind in check.wrong for problem_id, scored in kind.scored.items() if scored.success]
    wrong = dict.fromkeys([*check.unpaid(), *paid])
    known = {problem.id: problem for problem in problems}
    chosen = [*(known[name] for name in list(wrong)[:_WRONG_SHOWN]), *spread(problems, min(_EXPLAINED, len(problems)))]
    for problem in {problem.id: problem for problem in chosen}.values():
        said = [
            (kind.kind, told)
            for kind in (*check.right, *check.wrong)
            if problem.id in kind.texts and (told := reward.explain(problem, kind.texts[problem.id])) is not None
        ]
        if not said:
            return
        golds = " or ".join(f"'{one_line(gold, limit=_CHARACTERS)}'" for gold in problem.golds)
        read = [reading.value or "not readable" for reading in reward.readings(problem.golds)]
        yield f"  {one_line(problem.id)}: gold answer {golds}, read as {one_line(' or '.join(read), limit=200)}"
        width = max(len(kind) for kind, _ in said)
        yield from (f"    {kind:<{width}}  {one_line(told.in_words(), limit=300)}" for kind, told in said)


def _parse(arguments: Sequence[str]) -> tuple[str, int, list[str]]:
    """The problem set, the number of problems (0: all), and the options for the parser of `rloop-fit`.

    Raises:
        UsageError: the command is incomplete, or --limit is not a number.
    """
    command, *rest = arguments
    if command != "check" or not rest or rest[0].startswith("-"):
        raise UsageError(f"give a problem set: {_USAGE}")
    limit, options = 0, []
    for flag, value in pairs(rest[1:]):
        if flag != "--limit":
            options.append(flag if value is None else f"{flag}={value}")
        elif value is not None and value.isdecimal() and int(value) > 0:
            limit = int(value)
        else:
            raise UsageError(f"--limit: expected an integer > 0, got {value}")
    return rest[0], limit, options
