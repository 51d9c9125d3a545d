"""Layouts of published problem sets: which fields hold the problem and the gold answer, and how to extract it.

    --data.preset gsm8k

A preset lists fields in order of preference, because the same set is published in several layouts. The first field that
a row has is used. `any_gold` extracts a gold answer of unknown layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Extract = Callable[[str], "str | None"]
"""Extracts the gold answer from a field's text; None if it contains none."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"-?[$]?-?(?:\d[\d,]*+(?<=\d)(?:\.\d+)?|\.\d+)%?")
_PATH = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_DAPO_PROMPT = re.compile(
    r"\s*Solve the following math problem step by step\.[^\n]*\n\n(?P<problem>.*?)"
    r"Remember to put your answer on its own line after \"Answer:\"\.?\s*+",
    re.DOTALL,
)


def verbatim(text: str) -> str | None:
    """The text itself, without surrounding whitespace and one surrounding pair of dollars."""
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        text = text[1:-1].strip()
    return text or None


def after_hashes(text: str) -> str | None:
    r"""The text after the last `####`, as in `#### 1,234`, without thousands separators."""
    _, hashes, answer = text.rpartition("####")
    return answer.strip().replace(",", "") or None if hashes else None


def hashes_or_number(text: str) -> str | None:
    """The text after `####`; without `####`, the whole text if it is a number."""
    if "####" in text:
        return after_hashes(text)
    return text.strip().replace(",", "") if _NUMBER.fullmatch(text.strip()) else None


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed{}`, `\fbox{}` or `\boxed 5`; None if its braces don't balance."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if not text.startswith("{", start):
        bare = re.match(r"[^\s$\\{}.,]+", text[start:])
        return bare.group() if bare else None
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start + 1 : brace.start()].strip() or None
    return None


def any_gold(text: str) -> str | None:
    """The last box, else the text after `####`, else the whole text."""
    if _BOX.search(text):
        return last_box(text)
    return after_hashes(text) if "####" in text else verbatim(text)


def box_or_hashes(text: str) -> str | None:
    """For a worked solution: the last box, else the text after `####`, else None."""
    return last_box(text) if _BOX.search(text) else after_hashes(text)


def bare_dapo_problem(text: str) -> str:
    """A DAPO-Math prompt without its instruction, which asks for another answer format."""
    found = _DAPO_PROMPT.fullmatch(text)
    return found["problem"].strip() if found else text


def as_it_is(text: str) -> str:
    return text


@dataclass(frozen=True)
class Preset:
    """The layout of a problem set.

    Args:
        about: what the set is and where it is published, for the documentation.
        problem_fields: fields that may hold the problem, in order of preference; `prompt[0].content` is a nested field.
        answers: fields that may hold the gold answer, and how to extract it from each.
        id_fields: fields that may hold the id; without one, a problem is named by its file and row.
        clean: turns the field's text into the problem.
        repeats: whether the published set repeats its rows; identical rows are then skipped and counted.
    """

    about: str
    problem_fields: tuple[str, ...]
    answers: Mapping[str, Extract]
    id_fields: tuple[str, ...] = ("id", "unique_id", "ID", "idx")
    clean: Callable[[str], str] = field(default=as_it_is)
    repeats: bool = False


PRESETS: Mapping[str, Preset] = {
    "auto": Preset(
        about="any set with a problem and an answer under one of the usual names",
        problem_fields=("problem", "question", "prompt", "Problem"),
        answers={"answer": any_gold, "final_answer": any_gold, "gold": any_gold, "Answer": any_gold}
        | {"solution": box_or_hashes},
    ),
    "gsm8k": Preset(
        about="GSM8K (openai/gsm8k: question, answer ending in `#### 18`; or problem, answer)",
        problem_fields=("question", "problem"),
        answers={"answer": hashes_or_number, "solution": after_hashes},
    ),
    "math": Preset(
        about="MATH and MATH-500 (hendrycks: problem, solution with its last box; HuggingFaceH4/MATH-500: answer too)",
        problem_fields=("problem",),
        answers={"answer": verbatim, "solution": last_box},
    ),
    "dapo-math": Preset(
        about="DAPO-Math-17k (BytedTsinghua-SIA: prompt[0].content, reward_model.ground_truth; or open-r1's processed)",
        problem_fields=("prompt[0].content", "prompt", "problem"),
        answers={"reward_model.ground_truth": verbatim, "answer": verbatim, "solution": verbatim},
        id_fields=("extra_info.index", "id"),
        clean=bare_dapo_problem,
        repeats=True,
    ),
    "aime": Preset(
        about="AIME 2024 (HuggingFaceH4/aime_2024, Maxwell-Jia/AIME_2024) and 2025 (opencompass, math-ai, yentinglin)",
        problem_fields=("problem", "Problem", "question"),
        answers={"answer": verbatim, "Answer": verbatim},
    ),
    "minerva-math": Preset(
        about="MinervaMath (math-ai/minervamath: question, answer; or problem, solution with its last box)",
        problem_fields=("question", "problem"),
        answers={"answer": verbatim, "solution": last_box},
    ),
    "omni-math": Preset(
        about="OmniMath (KbsdJames/Omni-MATH: problem, answer, solution)",
        problem_fields=("problem",),
        answers={"answer": verbatim, "solution": last_box},
    ),
    "olympiad-bench": Preset(
        about="OlympiadBench (Hothan/OlympiadBench, math-ai/olympiadbench: question, final_answer as a list)",
        problem_fields=("question", "problem"),
        answers={"final_answer": verbatim, "answer": verbatim},
    ),
}


def look_up(row: Mapping[str, Any], path: str) -> Any:
    """The value of a field, which may be nested: `reward_model.ground_truth`, `prompt[0].content`.

    Raises:
        KeyError: the row has no such field.
    """
    if path in row:
        return row[path]
    value: Any = row
    for name, index in _PATH.findall(path):
        if name and isinstance(value, Mapping) and name in value:
            value = value[name]
        elif index and isinstance(value, (list, tuple)) and int(index) < len(value):
            value = value[int(index)]
        else:
            raise KeyError(path)
    return value


def gold_text(value: Any, extract: Extract) -> str | None:
    """Extract the gold answer from a field's value: text, a number, or a list of these, joined by commas."""
    if isinstance(value, (list, tuple)):
        answers = [gold_text(item, extract) for item in value]
        return ", ".join(answer for answer in answers if answer) if answers and all(answers) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # CSV and Parquet may turn 33 into 33.0
    if isinstance(value, bool) or value != value or not isinstance(value, (str, int, float)):
        return None
    return extract(value if isinstance(value, str) else repr(value))
