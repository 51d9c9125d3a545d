"""What a run is and what it cost, in words and tables: its sentence, settings, versions, time and tokens by part."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rloop_lightning.run.report.stored import ReportedRun
from rloop_lightning.run.report.tables import Cell, Line, Table, amount, duration
from rloop_lightning.run.settings import flat
from rloop_lightning.system.markdown import MISSING
from rloop_lightning.system.terminal import one_line

_TEXT = 300  # characters of a value
_TIME = re.compile(r"time/.+_s", re.DOTALL)
_PARTS: Mapping[str, str] = {
    "time/generate_s": "generate rollouts",
    "time/reward_s": "score rollouts",
    "time/update_s": "update the policy",
    "time/evaluate_s": "evaluate",
    "time/capture_s": "extra captures",
}
_PHASES = ("explore", "consolidate", "evaluate")


def sentence(run: ReportedRun) -> str:
    """The run in one sentence: what was trained, on what, how long, and what came out."""
    algo, consolidation = method(run)
    how = f"{algo} with {consolidation} consolidation" if run.consolidates else algo
    loop = run.group("loop")
    rounds, steps = (one_line(str(loop.get(name, default))) for name, default in (("rounds", 1), ("explore_steps", 0)))
    if not run.consolidates and rounds.isdecimal() and steps.isdecimal():  # one exploration
        length = f"{int(rounds) * int(steps):,} rollout steps"
    else:
        length = f"{rounds} round{'' if rounds == '1' else 's'} of {steps} rollout steps"
    where = f"{data_name(run)} problems" if data_name(run) else "its problems"
    parts = [f"{how} trained {model_name(run)} on {where} for {length} (seed {seed(run)})"]
    if outcome := _outcome(run):
        parts.append(outcome)
    budget = run.state.budget
    if budget.rollout_steps:
        parts.append(f"it took {duration(budget.seconds)} and {amount(budget.tokens)} training tokens")
    return "; ".join(parts) + "."


def method(run: ReportedRun) -> tuple[str, str]:
    """The names of algorithm and consolidation, in short."""
    return _last_word(run.setting("algo", "name", "none")), _last_word(run.setting("consolidate", "name", "none"))


def model_name(run: ReportedRun) -> str:
    """The base policy; of a path, its last part."""
    return _last_part(str(run.setting("policy", "model", "a policy")))


def data_name(run: ReportedRun) -> str:
    """The problem set; of a path, its last part."""
    data = run.group("data")
    return _last_part(str(data.get("dataset") or data.get("path") or data.get("name") or ""))


def seed(run: ReportedRun) -> str:
    """The seed of the run."""
    return one_line(str(run.settings.get("seed_everything", 0)))


def progress(run: ReportedRun) -> str:
    """How far the run has come; empty if it is complete."""
    done, planned = run.state.stages_done, len(run.stages)
    if run.state.stopped:
        return f"The run stopped after {done} of {planned} phases."
    if done < planned:
        return f"In progress: {done} of {planned} phases are complete."
    return "" if run.state.selected else "All phases are complete; the final policy is not yet handed over."


def settings_table(run: ReportedRun) -> Table:
    """All settings with dotted names."""
    lines = [
        Line(one_line(name, limit=_TEXT), [Cell(one_line(_value(value), limit=_TEXT))])
        for name, value in flat(run.settings)
    ]
    return Table(
        "settings", "Every setting of the run, as in config.yaml", ["setting", "value"], lines, text=True, folded=True
    )


def origin_table(run: ReportedRun) -> Table:
    """Versions, machine, seed and commit."""
    state = run.state
    known = {
        "run id": state.run_id,
        "began": state.began,
        "seed": seed(run),
        **{name: str(value) for name, value in state.versions.items()},
        **{name: str(value) for name, value in state.machine.items()},
    }
    lines = [Line(one_line(name), [Cell(one_line(value, limit=_TEXT))]) for name, value in known.items() if value]
    return Table("origin", "Where the numbers of this page come from", ["what", "value"], lines, text=True, folded=True)


def time_table(run: ReportedRun) -> Table | None:
    """Seconds by part and phase, and tokens."""
    times: dict[str, dict[str, float]] = {}
    tokens = dict.fromkeys(_PHASES, 0.0)
    for row in run.rows:
        for metric in filter(_TIME.fullmatch, row):
            part = _PARTS.get(metric) or one_line(metric.removeprefix("time/").removesuffix("_s").replace("_", " "))
            of_part = times.setdefault(part, dict.fromkeys(_PHASES, 0.0))
            of_part[row["phase"]] += row[metric]
        tokens[row["phase"]] += row.get("rollout/generated_tokens", 0)
    if not times:
        return None
    total = sum(sum(of_part.values()) for of_part in times.values())
    lines = [
        Line(part, [*(_seconds(of_part[phase]) for phase in _PHASES), Cell(f"{sum(of_part.values()) / total:.0%}")])
        for part, of_part in times.items()
        if sum(of_part.values())
    ]
    generated = [Cell(f"{count:,.0f}" if count else MISSING) for count in tokens.values()]
    lines.append(Line("completion tokens generated", [*generated, Cell("")]))
    spent = run.state.budget
    caption = (
        f"The measured parts took {duration(total)}, the whole run {duration(spent.seconds)}. It generated "
        f"{spent.rollouts:,} rollouts to train on and made {spent.optimizer_steps:,} optimizer steps."
    )
    return Table("time", caption, ["part", "exploration", "consolidation", "evaluation", "share"], lines)


def _outcome(run: ReportedRun) -> str:
    """What became of pass@1 and pass@k between the base policy and the last one."""
    last, sets = run.last_policy, run.sets
    if not sets or not last:
        return ""
    ks = run.ks(sets[0])
    told = []
    base, end = run.state.results.get("base", {}), run.state.results.get(last, {})
    for k in dict.fromkeys((ks[0], ks[-1])):
        metric = f"eval/{sets[0]}/pass@{k}"
        if metric in end and (metric not in base or last == "base"):
            told.append(f"pass@{k} is {end[metric]:.3f}")
        elif metric in end:
            told.append(f"pass@{k} goes from {base[metric]:.3f} to {end[metric]:.3f}")
    name = f"{one_line(last)}, which is handed over" if last == run.state.selected else one_line(last)
    return f"on {one_line(sets[0])}, {' and '.join(told)} ({name})" if told else ""


def _seconds(value: float) -> Cell:
    return Cell(duration(value) if value else MISSING)


def _value(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _last_part(path: str) -> str:
    return one_line(path.rstrip("/").rpartition("/")[2] if path.startswith(("/", ".", "~")) else path)


def _last_word(name: object) -> str:
    return one_line(str(name).rpartition(".")[2])
