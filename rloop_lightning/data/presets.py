"""Layouts of published problem sets: which fields hold the problem and the gold answer, and how to extract it.

    --data.preset gsm8k

A preset lists fields in order of preference, because the same set is published in several layouts. The first field that
a row has is used. `any_gold` extracts a gold answer of unknown layout.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

Extract = Callable[[str], "str | None"]
"""Extracts the gold answer from a field's text; None if it contains none."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"-?[$]?-?(?:\d+(?:,+\d+)*(?:\.\d+)?|\.\d+)%?")
# One number with separators, and no other digit, comma or bracket before it: `(1,234)` may be a point.
_THOUSANDS = re.compile(r"[^\d,(\[{]*\d{1,3}(?:,\d{3})+(?![\d,])[^,]*")
_EXACT = 2**53  # doubles below it hold every integer
MOST_DIGITS = 4000  # of an integer; str() refuses 4,300
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


def without_thousands(text: str) -> str:
    """The text without thousands separators if it is one number, such as `$1,234`; else as it is, such as `(1, 2)`."""
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def after_hashes(text: str) -> str | None:
    r"""The line after the last `####`, as in `#### 1,234`, without thousands separators."""
    _, hashes, answer = text.rpartition("####")
    line = answer.strip().partition("\n")[0].strip()
    return without_thousands(line) or None if hashes else None


def hashes_or_number(text: str) -> str | None:
    """The line after `####`; without `####`, the whole text if it is a number."""
    if "####" in text:
        return after_hashes(text)
    return without_thousands(text.strip()) if _NUMBER.fullmatch(text.strip()) else None


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


Lists = Literal["parts", "alternatives"]
"""What a list of gold answers is: `parts` of one answer, all of them needed, or `alternatives`, each of them right."""


@dataclass(frozen=True)
class Preset:
    """The layout of a problem set.

    Args:
        about: what the set is and where it is published, for the documentation.
        problem_fields: fields that may hold the problem, in order of preference; `extra_info.question` is a nested
            field. A list of messages is read by conversation.py.
        answers: fields that may hold the gold answer, and how to extract it from each.
        lists: what a list of gold answers is; None if the user must say.
        id_fields: fields that may hold the id; without one, a problem is named by its file and row.
        clean: turns the field's text into the problem.
        repeats: whether the published set repeats its rows; identical rows are then skipped and counted.
    """

    about: str
    problem_fields: tuple[str, ...]
    answers: Mapping[str, Extract]
    lists: Lists | None = None
    id_fields: tuple[str, ...] = ("id", "unique_id", "ID", "idx")
    clean: Callable[[str], str] = field(default=as_it_is)
    repeats: bool = False


PRESETS: Mapping[str, Preset] = {
    "auto": Preset(
        about="any set with a problem and an answer under one of the usual names",
        problem_fields=("problem", "question", "prompt", "Problem"),
        answers={"answer": any_gold, "final_answer": any_gold, "gold": any_gold, "Answer": any_gold}
        | {"reward_model.ground_truth": any_gold, "solution": box_or_hashes},
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
        about="DAPO-Math-17k (BytedTsinghua-SIA: prompt, reward_model.ground_truth; or open-r1's processed)",
        problem_fields=("prompt", "problem"),
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
        lists="parts",
    ),
}


def look_up(row: Mapping[str, Any], path: str) -> Any:
    """The value of a field, which may be nested: `reward_model.ground_truth`, `prompt[0].content`.

    A path reaches into a struct that is kept as JSON text, too.

    Raises:
        KeyError: the row has no such field.
    """
    if path in row:
        return row[path]
    value: Any = row
    for name, index in _PATH.findall(path):
        value = _opened(value)
        if name and isinstance(value, Mapping) and name in value:
            value = value[name]
        elif index and isinstance(value, (list, tuple)) and int(index) < len(value):
            value = value[int(index)]
        else:
            raise KeyError(path)
    return value


def _opened(value: Any) -> Any:
    """A struct that is kept as JSON text as a struct; anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def gold_text(value: Any, extract: Extract) -> str | None:
    """The gold answer in a text or number; None if there is none or the value is something else."""
    if isinstance(value, str):
        return extract(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**MOST_DIGITS:
        return extract(str(value))
    finite = value.is_finite() if isinstance(value, Decimal) else isinstance(value, float) and math.isfinite(value)
    if not finite:
        return None
    if isinstance(value, Decimal) and abs(value.adjusted()) > MOST_DIGITS:
        return None
    whole = abs(value) < _EXACT and value == int(value)  # CSV and Parquet may turn 33 into 33.0
    return extract(str(int(value) if whole else value))
