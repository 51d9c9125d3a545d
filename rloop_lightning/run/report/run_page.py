"""The page of one run: report.html in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from rloop_lightning.errors import DamagedError
from rloop_lightning.run.report import pool_pictures, training
from rloop_lightning.run.report.explorer import explorer
from rloop_lightning.run.report.facts import origin_table, progress, sentence, settings_table, time_table
from rloop_lightning.run.report.failure_signs import Sign, failure_signs
from rloop_lightning.run.report.page import Page, Section, write_page
from rloop_lightning.run.report.pictures import Picture
from rloop_lightning.run.report.policies import forgetting
from rloop_lightning.run.report.policy_tables import INTERVALS, policy_tables
from rloop_lightning.run.report.pool_totals import PoolTotals
from rloop_lightning.run.report.pools import Pools, read_pools
from rloop_lightning.run.report.stored import ReportedRun
from rloop_lightning.run.report.tables import Cell, Line, Table
from rloop_lightning.system.terminal import printable

Found = TypeVar("Found")

_VERDICTS = {True: Cell("⚠ found", kind="bad"), False: Cell("✓ not found", kind="ok"), None: Cell("no data")}
_FOOTER = "Written by rloop-lightning from what the run stores. The page needs no network and sends nothing."


def write_report(run: ReportedRun, path: Path) -> None:
    """Write the page of a run, atomically.

    Args:
        run: the run, as far as it has come.
        path: the HTML file.

    Raises:
        OSError: it can't be written.
    """
    write_page(path, report_page(run))


def report_page(run: ReportedRun) -> Page:
    """The page of a run. A part that can't be read is told on it."""
    faults: list[str] = [f"metrics.csv: {run.metrics.fault}"] if run.metrics.fault else []
    pools = _tried(lambda: read_pools(run), faults) or Pools(PoolTotals(), None)
    signs = failure_signs(run)
    sections = [section for section in _sections(run, pools, signs, faults) if section is not None]
    found = None
    if pools.samples:
        visits = pools.samples.visits
        prompts = _tried(lambda: run.read_problems(visits) if run.read_problems else {}, faults) or {}
        found = explorer(pools.totals, pools.samples, prompts)
    notes = [progress(run), *map(printable, run.state.notes), *map(printable, faults)]
    return Page(
        title=printable(run.title),
        sentence=sentence(run),
        sections=sections,
        notes=[note for note in notes if note],
        warnings=[(sign.name, printable(sign.seen.partition("\n")[0])) for sign in signs if sign.found],
        explorer=found.problems if found else (),
        explorer_note=found.note if found else "",
        footer=_FOOTER,
        scripts=("pictures.js", "explorer.js") if found and found.problems else ("pictures.js",),
    )


def _sections(run: ReportedRun, pools: Pools, signs: Sequence[Sign], faults: list[str]) -> list[Section | None]:
    """The sections from top to bottom. What can't be read is told among `faults`."""
    totals, samples = pools.totals, pools.samples
    forgot = _tried(lambda: list(forgetting(run)), faults) or []
    origins = _tried(lambda: list(pool_pictures.expert_origins(run, totals)), faults) or []
    right, wrong = totals.length_curves(True), totals.length_curves(False)
    stability = [training.gradient_norm(run), training.entropy(run)]
    completions = [training.lengths(run, right, wrong), training.truncation(run)]
    return [
        _section("policies", "Policies", tables=policy_tables(run), notes=[INTERVALS]),
        _section("rewards", "Reward and pass@k", pictures=[training.reward_and_pass(run)]),
        _section("stability", "Gradient norm and entropy", pictures=stability),
        _section("diversity", "Similarity", pictures=[pool_pictures.similarity(samples) if samples else None]),
        _section("forgetting", "Forgetting", pictures=forgot),
        _section("solved", "Coverage", pictures=[pool_pictures.coverage(run, totals)]),
        _section("expert", "Expert sets and pools", pictures=_pool_pictures(run, totals, origins)),
        _section("completions", "Lengths and truncation", pictures=completions),
        Section("problems", "Problems and rollouts") if samples and samples.visits else None,
        _section("cost", "Time and tokens", tables=[time_table(run)]),
        Section("setup", "Settings and versions", tables=[origin_table(run), settings_table(run)]),
        Section("warnings", "Warnings", tables=[_signs_table(signs)]),
    ]


def _pool_pictures(run: ReportedRun, totals: PoolTotals, origins: Sequence[Picture]) -> list[Picture | None]:
    return [*origins, pool_pictures.rollouts_a_problem(totals), pool_pictures.success_rates(run, totals)]


def _section(
    id: str,
    title: str,
    tables: Iterable[Table | None] = (),
    pictures: Iterable[Picture | None] = (),
    notes: Sequence[str] = (),
) -> Section | None:
    """A section of what there is; None if there is nothing."""
    kept = [one for one in tables if one is not None]
    drawn = [one for one in pictures if one is not None]
    return Section(id, title, notes, tables=kept, pictures=drawn) if kept or drawn else None


def _signs_table(signs: Sequence[Sign]) -> Table:
    lines = [Line(sign.name, [_VERDICTS[sign.found], Cell(printable(sign.seen)), Cell(sign.advice)]) for sign in signs]
    caption = "Failure signatures of RL with verifiable rewards (RLoop, arXiv 2511.04285), and what to do about them."
    return Table("signs", caption, ["signature", "verdict", "what the run shows", "what to do"], lines, text=True)


def _tried(make: Callable[[], Found], faults: list[str]) -> Found | None:
    """What `make` returns; None if something of the run is damaged, which is then told among `faults`."""
    try:
        return make()
    except (DamagedError, ValueError, OSError) as error:
        faults.append(str(error))
        return None
