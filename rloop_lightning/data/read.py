"""Problem sets that are read from files or the hub: the common base of `--data PATH` and `--data NAME`."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.chat_template import chat_kwargs_faults
from rloop_lightning.data.holdout import hold_out
from rloop_lightning.data.hub_rows import HubName, hub_rows, parse_hub_name
from rloop_lightning.data.presets import PRESETS, Lists
from rloop_lightning.data.problem_set import Layout, ProblemSet, read_set
from rloop_lightning.data.render import BOXED, PLACE, messages_of, render_problems
from rloop_lightning.data.rows import BadRow, Row, files_of, looks_like_a_file, read_rows
from rloop_lightning.system.fetched import fetched
from rloop_lightning.system.fields import NonNegativeInt, PositiveInt, wrong_fields
from rloop_lightning.system.store_errors import StoreError
from rloop_lightning.system.store_urls import is_url, name_of, shown_url
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Message, Problem


@dataclass(frozen=True)
class FileRows:
    """A file, or the files of a folder.

    Args:
        path: where it is on this machine.
        url: where it came from; empty if that is the path.
    """

    path: Path
    url: str = ""

    def __str__(self) -> str:
        return self.url or str(self.path)


Origin = FileRows | HubName
"""The source of a set's rows."""


class ReadProblems(ProblemSource):
    """Problem sets in files or on the hub; each row holds a problem and a gold answer.

    Args:
        preset: the layout of a known problem set: auto, gsm8k, math (MATH-500 too), dapo-math, aime (2024 and 2025),
            minerva-math, omni-math or olympiad-bench; `auto` tries the usual field names.
        problem_field: the field that holds the problem, instead of the preset's; `extra_info.question` is a nested
            field. Of a list of messages, the last user message is the problem and earlier messages are its context.
        answer_field: the field that holds the gold answer, instead of the preset's.
        answer_lists: what a list of gold answers is: `parts` of one answer, or `alternatives`, each of them right. null
            takes what the preset says; if it says nothing, a list of different answers can't be read.
        id_field: the field that holds the id, instead of the preset's; rows without an id are named by their place.
        metadata_fields: additional fields for your own reward, in `Problem.metadata`.
        skip_unreadable: skip and count problems whose gold answer can't be read, from its field or by the reward,
            instead of refusing the set.
        eval: evaluation sets, as files or hub names (NAME[@REVISION][:CONFIG[:SPLIT]]): one, a list, or
            `{name: where}`. They have the layout of the training set unless `eval_presets` names another.
        eval_presets: presets of evaluation sets, `{name: preset}`.
        validation_size: move this many problems, and all copies of them, from the training set to the evaluation set
            `validation`, chosen by a hash of their texts. null moves 5 % of the problems, at least 8 and at most 256,
            if there is no --data.eval; a set of fewer than 40 problems keeps all.
        max_prompt_tokens: skip and count problems whose prompt, template included, is longer; null keeps all.
        instruction: text after each problem; empty for none.
        system_prompt: the system message, or the first lines if there is no chat template; empty for none. null takes
            the set's own system messages, if it has any.
        template: the prompt, containing {problem}, instead of the tokenizer's chat template; null uses the chat
            template, or a plain template if the tokenizer has none.
        chat_template: name of the chat template, if the tokenizer has several; null takes `default`, or the only one.
        chat_template_kwargs: variables of the chat template, such as {enable_thinking: false}.
    """

    _eval_flag = _eval_field = "--data.eval"  # the option that names the evaluation sets, and the one of their mapping

    def __init__(
        self,
        *,
        preset: str = "auto",
        problem_field: str | None = None,
        answer_field: str | None = None,
        answer_lists: Lists | None = None,
        id_field: str | None = None,
        metadata_fields: tuple[str, ...] = (),
        skip_unreadable: bool = False,
        eval: dict[str, str] | list[str] | str | None = None,
        eval_presets: dict[str, str] | None = None,
        validation_size: NonNegativeInt | None = None,
        max_prompt_tokens: PositiveInt | None = None,
        instruction: str = BOXED,
        system_prompt: str | None = None,
        template: str | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.validation_size = validation_size
        self.max_prompt_tokens = max_prompt_tokens
        self.instruction = instruction
        self.system_prompt = system_prompt
        self.template = template
        self.chat_template = chat_template
        self.answer_lists = answer_lists
        self.chat_template_kwargs = {} if chat_template_kwargs is None else chat_template_kwargs
        self._presets = {"train": preset, **(eval_presets or {})}
        self._fields = {"problem_field": problem_field, "answer_field": answer_field, "id_field": id_field}
        self._metadata_fields = tuple(metadata_fields)
        self.skip_unreadable: bool = skip_unreadable
        wrong = wrong_fields(self, "--data")
        train = self.origin(wrong)
        self._origins = {} if train is None else {"train": train}
        self._origins |= _evaluation_origins(eval, wrong, self._eval_flag, self._eval_field)
        wrong += self._invalid()
        if wrong:
            raise ValueError("\n".join(wrong))

    @abstractmethod
    def origin(self, wrong: list[str]) -> Origin | None:
        """The source of the training set; None if there is none. Faults are appended to `wrong`."""

    @cached_property
    def sets(self) -> Mapping[str, ProblemSet]:
        """`train` and the evaluation sets as read, with their faults."""
        return {name: read_set(name, str(at), _rows(at), self._layout(name)) for name, at in self._origins.items()}

    def train(self) -> Sequence[Problem]:
        return self._sound.get("train", ())

    def evaluation(self) -> Mapping[str, Sequence[Problem]]:
        return {name: problems for name, problems in self._sound.items() if name != "train"}

    def render(self, problems: Sequence[Problem], tokenizer: Any) -> list[Problem]:
        return render_problems(
            problems,
            tokenizer,
            system_prompt=self.system_prompt,
            instruction=self.instruction,
            template=self.template,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            today=self.today,
        )

    def messages(self, problem: Problem) -> tuple[Message, ...]:
        texts = [*(turn.text for turn in problem.context), problem.prompt]
        return messages_of(problem, texts, self.system_prompt, self.instruction)

    def notes(self) -> list[str]:
        said = []
        for name, found in self.sets.items():
            if found.repeats:
                said.append(f"{name}: {found.repeats:,} repeated rows left out")
            if found.replies:
                said.append(f"{name}: replies after the problem left out of {found.replies:,} conversations")
            if found.unreadable_golds:
                said.append(f"{name}: {len(found.unreadable_golds):,} problems left out, no gold answer can be read")
        if self._holds_out and (held_out := self._sound.get("validation")):
            said.append(f"validation: {len(held_out):,} problems held out of train (--data.validation_size)")
        return said

    @property
    def _holds_out(self) -> bool:
        """Whether a part of the training set becomes the validation set."""
        return self.validation_size != 0 and (self.validation_size is not None or len(self._origins) == 1)

    @cached_property
    def _sound(self) -> Mapping[str, Sequence[Problem]]:
        """All sets. Raises ValueError with all faults if there are any."""
        flags = {name: "--data" if name == "train" else f"{self._eval_flag} {name}:" for name in self.sets}
        wrong = [f"{flags[name]} {fault}" for name, found in self.sets.items() for fault in found.faults()]
        size = len(self.sets["train"].problems) if "train" in self.sets else 0
        if (self.validation_size or 0) >= max(size, 1) and not wrong:
            wrong.append(f"--data.validation_size {self.validation_size} must be less than the {size} problems")
        if wrong:
            raise ValueError("\n".join(wrong))
        sound = {name: tuple(found.problems) for name, found in self.sets.items()}
        if self._holds_out:
            train, validation = hold_out(sound["train"], self.validation_size)
            if not train:
                raise ValueError(
                    f"--data.validation_size {self.validation_size}: with their copies, these are all problems; "
                    "lower it"
                )
            sound["train"] = train
            if validation:
                sound["validation"] = validation
        repeated = {name: found.repeats_one_problem() for name, found in self.sets.items()}
        if wrong := [f"{flags[name]} {fault}" for name, fault in repeated.items() if fault]:
            raise ValueError("\n".join(wrong))
        return sound

    def _layout(self, name: str) -> Layout:
        own = name in self._presets and name != "train"
        return Layout(
            preset=PRESETS[self._presets[name if own else "train"]],
            metadata_fields=self._metadata_fields,
            answer_lists=None if own else self.answer_lists,
            skip_unreadable=self.skip_unreadable,
            **({} if own else self._fields),
        )

    def _invalid(self) -> Iterable[str]:
        for name, preset in self._presets.items():
            flag = "--data.preset" if name == "train" else f"--data.eval_presets: {name}:"
            if preset not in PRESETS:
                near = difflib.get_close_matches(preset, PRESETS, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                yield f"{flag} {preset!r} is not known; {hint}Known are {', '.join(PRESETS)}"
            if name not in self._origins and name != "train":
                known = ", ".join(other for other in self._origins if other != "train") or "none"
                yield f"{flag} {self._eval_flag} has no set {name!r}, it has {known}"
        if self.validation_size and "validation" in self._origins:
            yield "--data.validation_size: --data.eval has a set named validation already"
        if self.template is not None and self.template.count(PLACE) != 1:
            yield f"--data.template must hold {PLACE} once, got {self.template!r}"
        if self.template is not None and self.chat_template is not None:
            yield "--data.chat_template: --data.template replaces the chat template; leave one of the two out"
        yield from chat_kwargs_faults(self.chat_template_kwargs, self.template)


def file_origin(path: str, flag: str, wrong: list[str]) -> FileRows:
    """The file or folder of that name, fetched if it is a URL. Faults are appended to `wrong`."""
    try:
        origin = FileRows(fetched(path, flag), shown_url(path)) if is_url(path) else FileRows(Path(path).expanduser())
    except StoreError as error:
        wrong += str(error).splitlines()
        return FileRows(Path(), shown_url(path))
    except RuntimeError:
        wrong.append(f"{flag} {one_line(path, limit=200)}: there is no user of that name")
        return FileRows(Path(path))
    try:
        files_of(origin.path)
    except ValueError as error:
        wrong.append(f"{flag}: {error}")
    return origin


def _evaluation_origins(
    given: dict[str, str] | list[str] | str | None, wrong: list[str], flag: str, field: str
) -> dict[str, Origin]:
    """The evaluation sets by name. A set without a name is named after its file or data set.

    Args:
        flag: the option, for messages.
        field: the option that takes a mapping.
    """
    if not isinstance(given, dict):
        places = [given] if isinstance(given, str) else given or []
        given = {}
        for place in places:
            name = _name_of_set(place)
            if name in given:
                wrong.append(
                    f"{flag}: two sets would be named {name}; name them, as in {field} '{{a: {place}, b: ...}}'"
                )
            given[name] = place
    origins: dict[str, Origin] = {}
    for name, place in given.items():
        if not name.strip():
            wrong.append(f"{flag}: a set needs a name; give {place} one, as in {field} '{{other: {place}}}'")
        if name == "train":
            wrong.append(
                f"{flag}: the name train is that of the training set; give {place} another, as in {field} "
                f"'{{other: {place}}}'"
            )
        hub = None if looks_like_a_file(place) else parse_hub_name(place, "test")
        origins[name] = hub or file_origin(place, f"{flag} {name}", wrong)
    return origins


def _name_of_set(place: str) -> str:
    """The name of a file without its ending, or of a data set on the hub without its organisation."""
    if is_url(place):
        return Path(name_of(place)).stem
    if looks_like_a_file(place):
        return Path(place).stem
    return place.partition(":")[0].partition("@")[0].rpartition("/")[2]


def _rows(origin: Origin) -> Iterable[Row | BadRow]:
    if isinstance(origin, HubName):
        return hub_rows(origin)
    return (row for file in files_of(origin.path) for row in read_rows(file))
