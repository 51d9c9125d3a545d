"""Writes results.json, to which each part adds its result, and results.md, which is generated from it.

    save(folder, "limit", "cpu", Result([Table(...)], raw={...}))

A part that is measured again on a device replaces its earlier result for that device. Other results stay.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rloop_lightning.system.files import write_text

_PACKAGES = ("rloop-lightning", "torch", "transformers", "lightning", "trl", "accelerate", "pyarrow")


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Args:
        title: heading of the table.
        columns: headings of the columns; the first column names the row.
        rows: cells as shown.
        notes: notes for the reader, one paragraph each.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        lines = [
            f"### {self.title}",
            "",
            f"| {' | '.join(self.columns)} |",
            f"| --- |{' ---: |' * (len(self.columns) - 1)}",
            *(f"| {' | '.join(row)} |" for row in self.rows),
            *(line for note in self.notes for line in ("", note)),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Result:
    """The result of a part: its tables, and the figures behind them."""

    tables: Sequence[Table]
    raw: Mapping[str, Any] = field(default_factory=dict)


def save(folder: Path, part: str, device: str, result: Result) -> None:
    """Add a part's result to results.json, and rewrite results.md."""
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[f"{part} on {device}"] = {
        "measured": time.strftime("%Y-%m-%d"),
        "machine": machine(device),
        "tables": [asdict(table) for table in result.tables],
        "raw": result.raw,
    }
    write_text(path, json.dumps(results, indent=1) + "\n")
    write_text(folder / "results.md", render(results))


def render(results: Mapping[str, Any]) -> str:
    """The report, part by part."""
    sections = []
    for name, entry in sorted(results.items()):
        tables = [Table(**table).markdown() for table in entry["tables"]]
        sections.append("\n\n".join([f"## {name}", f"{entry['measured']}: {entry['machine']}", *tables]))
    intro = "Written by `make bench`; [performance.md](../docs/performance.md) says what each table means."
    return "\n\n".join(["# Measurements", intro, *sections]) + "\n"


def machine(device: str) -> str:
    """The machine and the versions, as text."""
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", str(cores))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    hardware = f"{_processor()}, {cores} cores, {threads} threads, {size_text(memory)}"
    return f"{_gpu() if device == 'cuda' else hardware}; Python {platform.python_version()}, {versions}"


def size_text(size: float) -> str:
    """A number of bytes as text."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}, {size_text(torch.cuda.get_device_properties(0).total_memory)}"
