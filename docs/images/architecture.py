"""Draws docs/images/architecture.svg: the package's rooms, and the path of one rollout through them.

    python docs/images/architecture.py

`tests/test_docs.py` compares the rooms drawn here with the folders of the package, and the script with its output.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

WIDTH, HEIGHT = 960, 586
TOP, ROW, BOX = 70, 55, 42  # top of the first row, distance between rows, height of a box, in pixels
INK, QUIET = "#1f2328", "#59636e"

# From the top down: (room, what it holds). A room imports only from the rows below it.
ROOMS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("cli", "rloop-fit, -eval, -compare, -report, -data, -reward"),),
    (("run", "rounds, resume, run folder, table, report"),),
    (("callbacks", "rollout capture, evaluation, checkpoints"),),
    (("algorithms", "DAPO, GRPO, ..., RFT"), ("evaluation", "pass@k")),
    (("rollouts", "stream, pool, filter, replay buffer"),),
    (("engines", "decoding: TorchEngine"),),
    (("data", "problem sets"), ("rewards", "checking"), ("model", "logprobs")),
    (("system", "atomic files, checksums, signals"),),
)
ROOT_FILES = "types.py, errors.py, seeds.py"

COLOURS = {
    "cli": "#eaeef2",
    "run": "#eaeef2",
    "callbacks": "#eaeef2",
    "algorithms": "#fff1b8",
    "evaluation": "#eaeef2",
    "rollouts": "#d5f0e8",
    "engines": "#d4e8fb",
    "data": "#e9defa",
    "rewards": "#fbdce8",
    "model": "#eaeef2",
    "system": "#eaeef2",
}


@dataclass(frozen=True)
class Box:
    """A labelled rectangle.

    Args:
        room: gives the colour.
        title: in bold.
        note: beside or below the title.
    """

    x: float
    y: float
    width: float
    room: str
    title: str
    note: str = ""
    height: float = BOX

    @property
    def centre(self) -> float:
        return self.x + self.width / 2

    def svg(self) -> str:
        shape = (
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="6" '
            f'fill="{COLOURS[self.room]}" stroke="#8c959f"/>'
        )
        title_y = self.y + (17 if self.note else 26)
        lines = [shape, text(self.centre, title_y, self.title, weight="bold")]
        if self.note:
            lines.append(text(self.centre, self.y + 34, self.note, size=12, colour=QUIET))
        return "\n".join(lines)


def text(x: float, y: float, label: str, *, size: int = 14, colour: str = INK, weight: str = "normal") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" font-weight="{weight}" '
        f'text-anchor="middle">{label}</text>'
    )


def arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{QUIET}" stroke-width="1.5"{dash} marker-end="url(#head)"/>'


def rooms() -> list[str]:
    left, width, gap = 30, 380, 10
    parts = [text(left + width / 2, 30, "The rooms", size=18, weight="bold")]
    parts.append(text(left + width / 2, 52, "a room imports only from the rows below it", size=12, colour=QUIET))
    for row, members in enumerate(ROOMS):
        each = (width - gap * (len(members) - 1)) / len(members)
        for column, (room, note) in enumerate(members):
            parts.append(Box(left + column * (each + gap), TOP + row * ROW, each, room, f"{room}/", note).svg())
    parts.append(text(left + width / 2, TOP + len(ROOMS) * ROW + 24, ROOT_FILES, size=13, colour=QUIET))
    return parts


def path_of_a_rollout() -> list[str]:
    left, width, gap = 490, 210, 30
    middle = left + (width + gap) / 2
    stem = [
        Box(middle, TOP, width, "data", "Problem", "prompt and gold answer"),
        Box(middle, TOP + ROW, width, "engines", "engine", "generates G completions"),
        Box(middle, TOP + 2 * ROW, width, "engines", "Rollout", "tokens, sampling logprobs"),
        Box(middle, TOP + 3 * ROW, width, "rewards", "reward", "scores each completion"),
        Box(middle, TOP + 4 * ROW, width, "rollouts", "Group", "the G rollouts of a problem"),
    ]
    fork = TOP + 5 * ROW + 20
    train = [
        Box(left, fork, width, "rollouts", "RolloutBatch", "padded tensors, B rows"),
        Box(left, fork + ROW, width, "algorithms", "loss", "--algo: explore"),
    ]
    right = left + width + gap
    expert = [
        Box(right, fork, width, "rollouts", "pool", "every rollout of the round"),
        Box(right, fork + ROW, width, "rollouts", "filter", "successes on hard problems"),
        Box(right, fork + 2 * ROW, width, "rollouts", "expert set"),
        Box(right, fork + 3 * ROW, width, "algorithms", "loss", "--consolidate: fine-tune"),
    ]
    parts = [text(right - gap / 2, 30, "The path of a rollout", size=18, weight="bold")]
    parts.append(text(right - gap / 2, 52, "colours: the room that does the work", size=12, colour=QUIET))
    parts += [box.svg() for box in (*stem, *train, *expert)]
    for chain in (stem, train, expert):
        parts += [arrow((a.centre, a.y + BOX), (b.centre, b.y)) for a, b in pairwise(chain)]
    last, turn = stem[-1], fork - 16
    parts += [
        arrow((last.centre, last.y + BOX), (last.centre, turn), (branch[0].centre, turn), (branch[0].centre, fork))
        for branch in (train, expert)
    ]
    engine, update, outside = stem[1], train[-1], left - 22
    parts.append(
        arrow(
            (update.x, update.y + BOX / 2),
            (outside, update.y + BOX / 2),
            (outside, engine.y + BOX / 2),
            (engine.x, engine.y + BOX / 2),
            dashed=True,
        )
    )
    parts.append(text(outside + 66, engine.y + BOX / 2 - 6, "new weights", size=12, colour=QUIET))
    return parts


def picture() -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, DejaVu Sans, sans-serif">'
    )
    marker = (
        '<defs><marker id="head" markerWidth="7" markerHeight="7" refX="6" refY="3" orient="auto">'
        f'<path d="M0,0 L6,3 L0,6 z" fill="{QUIET}"/></marker></defs>'
    )
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    return "\n".join([head, marker, paper, *rooms(), *path_of_a_rollout(), "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
