"""The help of `rloop-eval`, from the sources of the classes whose fields are its options. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rloop_lightning.cli.declared import REQUIRED, Declared, DeclaredClass, declared_class
from rloop_lightning.cli.options import CONFIG, SHOWING
from rloop_lightning.cli.short_help import Shown, layout, option_line

_EVAL = """usage: rloop-eval POLICY... [--data SET...] [--OPTION VALUE ...]
       rloop-eval --resume FOLDER
       rloop-eval compare A B [--OPTION VALUE ...]

Evaluates saved policies on problem sets: pass@k with intervals, and every rollout with its reward as Parquet. A POLICY
is a Hugging Face or adapter folder, a name on the hub, or a run folder. A SET is a file or a data set on the hub,
NAME[@REVISION][:CONFIG[:SPLIT]]; countdown stands for the sets of the built-in problems. Without --config, a run among
the policies brings its settings along: data, reward, engine, eval and seed. Options override them.

Examples:
  rloop-eval runs/NAME --policies all                               every policy of a run, as the run evaluates them
  rloop-eval Qwen/Qwen2.5-0.5B runs/NAME --data math500.jsonl openai/gsm8k:main --eval.samples 64
  rloop-eval --resume evaluations/NAME                              after a kill at any moment
"""

_COMPARE = """usage: rloop-eval compare A B [--OPTION VALUE ...]

Compares two evaluations of the same problems: pass@k of B minus that of A, paired by problem, with its interval, and
the problems that are gained and lost. A and B are folders of rloop-eval with one policy (evaluations/NAME), folders of
one policy in them (evaluations/NAME/00-base), runs (the policy handed over), or Parquet files of evaluations.

Examples:
  rloop-eval compare runs/dapo runs/rloop
  rloop-eval compare evaluations/NAME/00-base evaluations/NAME/01-round-1-explored --k 1,8,32 --out difference.json
"""

_OPTIONS = "rloop_lightning.cli.eval_settings.EvaluationOptions"
_DEVICE = "rloop_lightning.cli.eval_settings.DeviceOptions"
_EVALUATION = "rloop_lightning.evaluation.evaluator.EvaluationConfig"
_POLICY = "rloop_lightning.model.config.PolicyConfig"
_ENGINE = "rloop_lightning.engines.torch_engine.TorchEngine"
_SETS = "rloop_lightning.data.evaluation_sets.EvaluationSets"
_SETS_LINE = Shown("--data", "files, folders, data sets on the hub, or a source of sets such as countdown")
_COMPARE_OPTIONS = "rloop_lightning.cli.eval_compare.CompareOptions"


def eval_help(command: str = "", width: int = 0) -> str:
    """The help of `rloop-eval`, or of `rloop-eval compare`.

    Args:
        command: the first word of the command line.
        width: columns; 0 takes the terminal's.
    """
    if command == "compare":
        return "\n".join([_COMPARE, *layout([("Options", _lines("", _COMPARE_OPTIONS))], width)])
    sections = [
        ("Evaluation", _lines("", _OPTIONS, ("policies", "out", "resume", "seed_everything"))),
        (
            "Sampling",
            _lines("eval.", _EVALUATION, ("samples", "k", "temperature", "top_k", "top_p", "max_new_tokens")),
        ),
        ("Problems", [_SETS_LINE, *_lines("eval.", _EVALUATION, ("sets", "max_problems")), *_lines("data.", _SETS)]),
        (
            "Reward",
            [Shown("--reward", "a reward, or a function of yours, my_module.my_function (default: the data's own)")],
        ),
        (
            "Policy and engine",
            [
                *_lines("policy.", _POLICY, ("dtype", "attn_implementation", "head_dtype")),
                *_lines("engine.", _ENGINE, ("max_new_tokens", "stop", "max_rows", "dtype")),
                *_lines("trainer.", _DEVICE),
            ],
        ),
        (
            "Help and settings",
            [
                Shown("--config", CONFIG),
                Shown("--trust", "import the code that the settings of a run, or of --resume, name"),
                *_lines("", _OPTIONS, ("debug",)),
                Shown("--version", SHOWING["--version"]),
            ],
        ),
    ]
    return "\n".join([_EVAL, *layout(sections, width)])


def _lines(prefix: str, path: str, fields: Sequence[str] | None = None) -> list[Shown]:
    """The lines of a class's fields; None is all."""
    declared: DeclaredClass | None = declared_class(path)
    arguments: dict[str, Declared] = {} if declared is None else dict(declared.arguments)
    hidden = ("eval", "validation_size")  # of problem sets with a training set
    chosen = [name for name in arguments if name not in hidden] if fields is None else fields
    return [
        option_line(f"{prefix}{name}", replace(one, default=None) if one.default is REQUIRED else one)
        for name, one in ((name, arguments[name]) for name in chosen)
    ]
