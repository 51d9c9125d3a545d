"""The formats of an export: what a row is, and the columns that tell where it came from.

messages             TRL's conversational format: the chat with the completion as the assistant's last message
prompt-completion    TRL's standard format: the prompt as the policy saw it, and the completion with its special tokens
verl                 verl's columns for RL, a row per problem

(https://huggingface.co/docs/trl/dataset_formats, https://verl.readthedocs.io/en/latest/preparation/prepare_data.html)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from rloop_lightning.run.export_problems import ExportProblem
from rloop_lightning.types import Message

Format = Literal["messages", "prompt-completion", "verl"]

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

_RUN = [("run_id", pa.string()), ("model", pa.string()), ("settings_sha256", pa.string())]
_ROLLOUT = [
    ("problem_id", pa.string()),
    ("round", pa.int32()),
    ("rollout_step", pa.int32()),
    ("reward", pa.float64()),
    ("success", pa.bool_()),
    ("success_rate", pa.float64()),
    ("finish_reason", pa.string()),
    ("length", pa.int32()),
]


@dataclass(frozen=True)
class Origin:
    """The run that an export comes from.

    Args:
        run_id: its id.
        model: its `--policy.model`.
        settings_sha256: checksum of its settings.
    """

    run_id: str
    model: str
    settings_sha256: str


@dataclass(frozen=True)
class Messages:
    """A row per rollout: `messages`. The content of the last one is the completion without special tokens."""

    origin: Origin
    problems: Mapping[str, ExportProblem]

    schema = pa.schema([("messages", _TURNS), *_ROLLOUT, *_RUN])
    needs_tokens = False

    def rows(self, table: pa.Table, completions: list[str]) -> Iterator[dict[str, Any]]:
        for row, text in zip(_provenance(table, self.origin), completions, strict=True):
            told = self.problems[row["problem_id"]].messages
            yield {"messages": _turns((*told, Message("assistant", text))), **row}


@dataclass(frozen=True)
class PromptCompletion:
    """A row per rollout: `prompt` and `completion`, which together are the text that the policy saw.

    Without problems, there is no column `prompt`.
    """

    origin: Origin
    problems: Mapping[str, ExportProblem] | None

    needs_tokens = True

    @property
    def schema(self) -> pa.Schema:
        prompt = [("prompt", pa.string())] if self.problems is not None else []
        return pa.schema([*prompt, ("completion", pa.string()), *_ROLLOUT, *_RUN])

    def rows(self, table: pa.Table, completions: list[str]) -> Iterator[dict[str, Any]]:
        for row, text in zip(_provenance(table, self.origin), completions, strict=True):
            prompt = {} if self.problems is None else {"prompt": _utf8(self.problems[row["problem_id"]].prompt)}
            yield {**prompt, "completion": _utf8(text), **row}


VERL_SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", _TURNS),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("split", pa.string()),
                    ("index", pa.int64()),
                    ("problem_id", pa.string()),
                    ("golds", pa.list_(pa.string())),
                    ("rollouts", pa.int64()),
                    ("success_rate", pa.float64()),
                    *_RUN,
                ]
            ),
        ),
    ]
)


def verl_rows(
    origin: Origin,
    problems: Mapping[str, ExportProblem],
    rollouts: Mapping[str, int],
    rates: Mapping[str, float],
    *,
    data_source: str,
    ability: str,
) -> Iterator[dict[str, Any]]:
    """A row per problem.

    Args:
        origin: the run.
        problems: the problems, in order.
        rollouts: the number of selected rollouts of each problem.
        rates: the success rate of each problem over the exported rounds.
        data_source: by which verl chooses its reward function.
        ability: the kind of task.
    """
    for name, problem in problems.items():
        yield {
            "data_source": data_source,
            "prompt": _turns(problem.messages),
            "ability": ability,
            "reward_model": {"style": "rule", "ground_truth": _utf8(problem.golds[0])},
            "extra_info": {
                "split": "train",
                "index": problem.index,
                "problem_id": _utf8(name),
                "golds": [_utf8(gold) for gold in problem.golds],
                "rollouts": rollouts[name],
                "success_rate": rates[name],
                **asdict(origin),
            },
        }


def _provenance(table: pa.Table, origin: Origin) -> Iterator[dict[str, Any]]:
    columns = table.select([name for name, _ in _ROLLOUT]).to_pylist()
    for row in columns:
        yield {**row, **asdict(origin)}


def _turns(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": _utf8(turn.text)} for turn in messages]


def _utf8(text: str) -> str:
    """The text with lone surrogates as "?", which files can't hold."""
    return text.encode(errors="replace").decode()
