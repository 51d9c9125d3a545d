"""How all plots of a run look: axes, legend and file."""

from __future__ import annotations

import zlib
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rloop_lightning.system.files import atomic_path

# Okabe and Ito's palette, distinguishable with any kind of colour vision.
BLUE, GREEN, VERMILION, ORANGE, GREY = "#0072B2", "#009E73", "#D55E00", "#E69F00", "#666666"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_LONGEST_LABEL = 60
"""Characters of a label. A set may have the name of a file or a folder."""


def new_figure(panels: int = 1, *, height: float = 4.5) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side.

    Args:
        panels: number of panels.
        height: height, inches.
    """
    figure = Figure(figsize=(9, height), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=11)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, all_axes


def label(text: str) -> str:
    """A label that fits: a long text loses its middle, and no part of it is read as a formula."""
    half = _LONGEST_LABEL // 2
    short = text if len(text) <= _LONGEST_LABEL else f"{text[: half - 1]} … {text[-half + 2 :]}"
    return short.replace("$", r"\$")


def add_legend(figure: Figure, axes: Axes) -> None:
    """A legend below the panels, in as many columns as fit the figure's width."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=11, columnspacing=1.5
        )
        if columns == 1 or legend.get_window_extent(canvas.get_renderer()).width <= figure.bbox.width:
            return
        legend.remove()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically. The same figure gives the same bytes."""
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})  # which would name the version


def is_whole_png(path: Path) -> bool:
    """Whether a file is a PNG image whose chunks have the right checksums, up to its end."""
    content = path.read_bytes() if path.is_file() else b""
    place = len(_PNG_SIGNATURE)
    if not content.startswith(_PNG_SIGNATURE):
        return False
    while place < len(content):
        size = int.from_bytes(content[place : place + 4])
        chunk, checksum = content[place + 4 : place + 8 + size], content[place + 8 + size : place + 12 + size]
        if checksum != zlib.crc32(chunk).to_bytes(4):
            return False
        place += 12 + size
        if chunk[:4] == b"IEND":
            return place == len(content)
    return False
