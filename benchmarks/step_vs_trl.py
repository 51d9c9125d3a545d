"""Compares a DAPO rollout step of ours with the same step of TRL's GRPOTrainer.

Both sides have the same weights, problems, reward, rollouts, token limit, optimizer and number of optimizer steps. Each
side first runs with all of its settings for the device (task.py). Then the fastest settings of both sides take turns,
one rollout step at a time, each in its own process. Their first steps are not counted. Memory is the peak of the
process; on a GPU, the peak of tensors there.

`same_learning` checks that both learn the same.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import Side, StepReport, alternate, ratio_text, seconds_text
from benchmarks.models import SIZES, save_model
from benchmarks.options import Options
from benchmarks.report import Result, Table, size_text
from benchmarks.task import OURS, TRL, Task, trl_request, variants

_TRIED_STEPS = 3  # steps per setting; the first is not counted
_PART_STEPS = 3  # steps whose parts are measured, after the timed ones
_LENGTHS_DIFFER = 0.02
_BARS = {"0.86M": 4.0, "11.5M": 8.0, "30M-32k": 5.0}
"""Required speed-up of a step over TRL on two CPU cores."""
_MEMORY_BAR = 1 / 3
_SPEED_COLUMNS = (
    "model", "ours", "seconds", "TRL", "seconds", "times faster", "mean length, tokens", "peak memory", "ours of TRL's"
)  # fmt: skip
_TRIED_COLUMNS = ("model", "settings", "seconds a step", "peak memory", "before the first step")
_PARTS = ("generate", "reward", "old logprobs", "forward", "backward", "optimizer")


def run(options: Options) -> Result:
    speed, tried, shares, raw = [], [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in options.sizes_or(cpu=tuple(_BARS), cuda=("0.5B",)):
            model = save_model(SIZES[name], work / name)
            task = random_task(str(model), options)
            measured = _compare(task, options, work)
            speed.append(_speed_row(name, measured))
            tried += [[name, *row] for row in measured["tried"]]
            shares.append([name, *_share_cells(measured["parts"])])
            raw[name] = {key: _plain(value) for key, value in measured.items()}
    bars = "; ".join(f"{name} {bar:g}x" for name, bar in _BARS.items())
    about = (
        f"{task.shared_text()}. {options.rounds} turns each; median (least to most). Length and memory: ours / TRL. "
        f"Bars on two CPU cores: {bars}; memory at most {_MEMORY_BAR:.0%} of TRL's."
    )
    bar = "`optimizer` holds the gradient's norm and clipping. Bar: reward and everything else together below 5 %."
    tables = [
        Table("A rollout step: ours against TRL's GRPOTrainer", _SPEED_COLUMNS, speed, [about]),
        Table("All settings tried", _TRIED_COLUMNS, tried, [_settings_text(options.device)]),
        Table("Where our step's time goes", ["model", *_PARTS, "everything else"], shares, [bar]),
    ]
    return Result(tables, raw)


def random_task(model: str, options: Options) -> Task:
    """The task on random prompts, at the size given by the options."""
    prompts: dict[str, Any] = {"data": "benchmarks.models.RandomPrompts", "data_settings": {"count": 512}}
    if options.toy:
        return Task(model, **prompts, problems_per_step=2, rollouts_per_problem=4, max_new_tokens=8)
    return Task(model, **prompts, max_new_tokens=1024 if options.device == "cuda" else 64)


def open_side(which: str, variant: str, task: Task, options: Options, steps: int, work: Path) -> Side:
    """A side that does `steps` rollout steps."""
    out = Path(tempfile.mkdtemp(dir=work))
    if which == "ours":
        flags = task.rloop_flags(options.device, OURS[options.device][variant], steps, out / "run")
        return Side(f"ours, {variant}", "benchmarks.side_rloop", flags, out / "log")
    request = trl_request(task, TRL[options.device][variant], options.device, steps, out / "run")
    return Side(f"TRL, {variant}", "benchmarks.side_trl", [json.dumps(request)], out / "log")


def _compare(task: Task, options: Options, work: Path) -> dict[str, Any]:
    """Try all settings of both sides, then measure the fastest in turns."""
    tried: list[tuple[str, str, StepReport]] = []
    for which, settings in (("ours", OURS), ("TRL", TRL)):
        names = variants(settings, options)
        for variant in names if len(names) > 1 else []:
            with open_side(which, variant, task, options, _TRIED_STEPS, work) as side:
                steps = [side.step() for _ in range(_TRIED_STEPS)]
            tried.append((which, variant, min(steps[1:], key=lambda step: step.seconds)))
    best = {"ours": variants(OURS, options)[0], "TRL": variants(TRL, options)[0]}
    for which, variant, _ in sorted(
        tried, key=lambda entry: entry[2].seconds / entry[2].generated_tokens, reverse=True
    ):
        best[which] = variant
    steps_ours = 1 + options.rounds + _PART_STEPS
    with (
        open_side("ours", best["ours"], task, options, steps_ours, work) as ours,
        open_side("TRL", best["TRL"], task, options, 1 + options.rounds, work) as trl,
    ):
        alternate({"ours": ours.step, "TRL": trl.step}, rounds=1)
        turns = alternate({"ours": ours.step, "TRL": trl.step}, options.rounds)
        parts = [ours.step("parts") for _ in range(_PART_STEPS)]
    rows = [
        [f"{which}, {name}", f"{step.seconds:.3g}", size_text(step.peak_bytes), size_text(step.base_bytes)]
        for which, name, step in tried
    ]
    return {"best": best, "turns": turns, "parts": parts, "tried": rows}


def _speed_row(name: str, measured: Mapping[str, Any]) -> list[str]:
    ours, trl = measured["turns"]["ours"], measured["turns"]["TRL"]
    lengths = [statistics.mean(step.mean_length for step in side) for side in (ours, trl)]
    ratio = ratio_text([step.seconds for step in trl], [step.seconds for step in ours])
    if abs(lengths[0] / lengths[1] - 1) > _LENGTHS_DIFFER:
        per_token = [[step.seconds / step.generated_tokens for step in side] for side in (trl, ours)]
        ratio += f"; a token: {ratio_text(*per_token)}"
    memory = [side[-1].peak_bytes for side in (ours, trl)]
    return [
        name,
        measured["best"]["ours"],
        seconds_text([step.seconds for step in ours]),
        measured["best"]["TRL"],
        seconds_text([step.seconds for step in trl]),
        ratio,
        " / ".join(f"{length:.1f}" for length in lengths),
        " / ".join(map(size_text, memory)),
        f"{memory[0] / memory[1]:.0%}",
    ]


def _share_cells(steps: Sequence[StepReport]) -> list[str]:
    """Each part's share of a step, and the share of the rest, as medians over the steps."""
    shares = [statistics.median(step.parts.get(part, 0.0) / step.seconds for step in steps) for part in _PARTS]
    rest = statistics.median(1 - sum(step.parts.values()) / step.seconds for step in steps)
    return [f"{share:.1%}" for share in [*shares, rest]]


def _settings_text(device: str) -> str:
    def text(settings: Mapping[str, Any], dashes: str) -> str:
        return " ".join(f"{dashes}{name}={value}" for name, value in settings.items())

    ours = "; ".join(f"{name}: `{text(chosen, '--')}`" for name, chosen in OURS[device].items())
    trl = "; ".join(f"{name}: `{text(chosen, '')}`" for name, chosen in TRL[device].items())
    return f"Ours: {ours}. TRL: {trl}; a mini-batch goes through the model in `pieces`."


def _plain(value: Any) -> Any:
    """The value as plain JSON types."""
    if isinstance(value, StepReport):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
