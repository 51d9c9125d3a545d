"""Calls of a user's reward: what it raises becomes one error that says where, with the resume command behind it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rloop_lightning.errors import RunFault
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.workers import WorkerStartError
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Problem, Scored

_PACKAGE = Path(__file__).parents[1]
_T = TypeVar("_T")


def score(reward: Reward, problems: Sequence[Problem], texts: Sequence[str]) -> list[Scored]:
    """What a reward gives; see its `__call__`.

    Raises:
        RunFault: it is a class of the user and raises.
    """
    if type(reward).__module__.partition(".")[0] == _PACKAGE.name:
        return reward(problems, texts)
    return called(type(reward).__name__, lambda: reward(problems, texts))


def called(name: str, call: Callable[[], _T]) -> _T:
    """What the call of a user's code gives.

    Args:
        name: of the function or class.

    Raises:
        RunFault: it raises; the message has the exception, and the last line of the user's file.
    """
    try:
        return call()
    except (RunFault, WorkerStartError):  # of a reward of ours that it calls
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
        own = [frame for frame in frames if frame.filename == frames[0].filename]
        where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
        message = one_line(f"{type(error).__name__}: {error}", limit=200)
        raise RunFault(f"--reward {name}: it raised {message}{where}; --debug shows all of it") from error


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(_PACKAGE)
