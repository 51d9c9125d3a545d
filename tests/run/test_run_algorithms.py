"""Every registered algorithm and consolidation through `rloop-fit`: its run, its help, and what it refuses."""

from __future__ import annotations

import inspect
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from cli.test_fit import parse, usage_error
from killing import Kill, run_fit
from safetensors.torch import load_file
from same_run import assert_same_run
from tiny_run import TinyRun

from rloop_lightning.algorithms import ALGORITHMS, CONSOLIDATIONS
from rloop_lightning.algorithms.consolidation import Consolidation
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.cli.main import main
from rloop_lightning.cli.registry import find_class
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.run.metrics_csv import read_metrics

# Every option that all algorithms have.
OPTIONS = [
    *("--algo.dynamic_sampling=true", "--algo.max_generation_batches=20", "--algo.passes=2"),
    *("--algo.mask_truncated=true", "--algo.overlong_buffer_tokens=8"),
    *("--algo.kl_beta=0.1", "--algo.kl_target=0.01", "--algo.kl_adaptation=0.5", "--algo.entropy_coef=0.01"),
    *("--algo.importance_correction=truncate", "--algo.importance_cap=1.5"),
    *("--algo.lr_schedule=cosine", "--algo.min_lr=2e-5", "--algo.optimizer_options={'amsgrad': true}"),
]
# What the tiny run needs of an algorithm to show all that it does.
SETTINGS = {
    "minirl": ["--algo.importance_weight=false"],
    "replay": ["--algo.replay_successes_only=false"],
    "distil": [
        *("--consolidate.steps=3", "--consolidate.rollouts_per_update=6", "--consolidate.lr=1e-4"),
        "--consolidate.lr_schedule=linear",
    ],
    "rft": ["--consolidate.kl_beta=0.1", "--consolidate.weight=exp", "--consolidate.lr_schedule=linear"],
}
REPLAY = ["--algo=replay", "--algo.dynamic_sampling=false", "--algo.replay_successes_only=false"]
METRICS = {
    "replay": {"replay/share", "replay/stored"},
    "distil": {"policy/teacher_kl_nats", "rollout/reward_mean", "time/generate_s"},
    "rft": {"policy/kl_nats"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = TinyRun.written(
        tmp_path_factory.mktemp("config"),
        data={"name": "countdown", "train_size": 4},
        engine={"max_new_tokens": 32},
        algo={"name": "dapo", "lr": 1e-4, "warmup_steps": 0, "updates_per_step": 2},
        consolidate={"name": "rft", "lr": 1e-4, "warmup_steps": 0, "epochs": 1, "rollouts_per_update": 8},
        loop={"explore_steps": 2, "rollouts_per_problem": 8, "checkpoint_every_n_steps": 2},
        eval={"k": [1], "max_problems": 1, "sets": [], "sets_inside": []},
    )
    return tiny.config


def fit(config: Path, out: Path, *arguments: str) -> int:
    return main(["--config", str(config), "--out", str(out), *arguments])


def rows_of(out: Path, phase: str) -> list[dict[str, float]]:
    return [row for row in read_metrics(out / "metrics.csv") if row["phase"] == phase]


def moved(out: Path) -> bool:
    """Whether the run's policy is another one than it began with, all of it finite."""
    ours, base = (load_file(folder / "model.safetensors") for folder in (out / "final", embedded_model_path()))
    assert all(weight.isfinite().all() for weight in ours.values())
    return any(not torch.equal(ours[name], base[name]) for name in base)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_runs_by_its_short_name_with_every_option(name: str, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rest = ["--data.train_size=100", "--consolidate=none", "--debug"]  # no problem comes twice in a step
    assert fit(config, out, "--algo", name, *OPTIONS, *SETTINGS.get(name, []), *rest) == 0
    rows, beta = rows_of(out, "explore"), 0.1
    assert len(rows) == 2
    for step, row in enumerate(rows):
        assert {"train/loss", "policy/engine_gap_nats_max"} | METRICS.get(name, set()) <= set(row)
        assert row["grad/norm_preclip_max"] > 0
        assert row["grad/skipped_updates"] == 0
        assert 0 < row["policy/importance_weight"] <= 1.5
        beta *= 1 + 0.5 * min(max(row["policy/kl_nats"] / 0.01 - 1, -0.2), 0.2)
        assert row["train/kl_beta"] == pytest.approx(beta)
        generated = pq.read_table(out / "round-0" / "pool" / f"step-{step + 1:06d}.parquet").to_pylist()
        mixed, all_groups = count_groups(generated)
        assert row["rollout/kept_rate"] == pytest.approx(mixed / all_groups)
        assert mixed >= 4
    assert [row["train/lr"] for row in rows] == pytest.approx([1e-4, 6e-5])
    budget = json.loads((out / "state.json").read_text())["budget"]
    assert budget["optimizer_steps"] == 2 * 2 * 2  # steps, passes, mini-batches
    assert moved(out)


def count_groups(generated: list[dict[str, Any]]) -> tuple[int, int]:
    """How many groups of a shard hold both right and wrong rollouts, and how many there are."""
    successes: dict[str, list[bool]] = defaultdict(list)
    for rollout in generated:
        successes[rollout["problem_id"]].append(rollout["success"])
    assert {len(group) for group in successes.values()} == {8}
    return sum(0 < sum(group) < 8 for group in successes.values()), len(successes)


@pytest.mark.parametrize("name", CONSOLIDATIONS)
def test_every_consolidation_runs_by_its_short_name(name: str, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    still = ["--algo=dapo", "--algo.dynamic_sampling=false", "--loop.explore_steps=1"]
    assert fit(config, out, *still, "--consolidate", name, *SETTINGS.get(name, []), "--debug") == 0
    rows = rows_of(out, "consolidate")
    assert (rows == []) == (name == "average")
    lrs = [row["train/lr"] for row in rows]
    assert lrs == pytest.approx([1e-4 * (1 - step / len(rows)) for step in range(len(rows))])
    assert all({"train/loss"} | METRICS.get(name, set()) <= set(row) for row in rows)
    assert moved(out)


def test_replay_trains_on_what_it_generated_before(config: Path, tmp_path: Path) -> None:
    """Four problems, each in every step: from the second one on all have stored rollouts. The pool holds new ones."""
    out = tmp_path / "run"
    sizes = ["--loop.explore_steps=3", "--consolidate=none", "--algo.replay_share=0.5"]
    assert fit(config, out, *REPLAY, *sizes, "--debug") == 0
    shares = [row["replay/share"] for row in rows_of(out, "explore")]
    assert shares == [0.0, pytest.approx(4 / 36), pytest.approx(4 / 36)]  # of two problems two rollouts each
    stored = [row["replay/stored"] for row in rows_of(out, "explore")]
    assert stored[0] == 0 < stored[1] <= 32
    assert [len(pq.read_table(shard)) for shard in sorted((out / "round-0" / "pool").glob("*.parquet"))] == [32] * 3


# --- a run that is killed ---------------------------------------------------------------------------------------------

RESUMED = {
    "replay": [*REPLAY, "--algo.replay_share=0.5", "--algo.replay_stored_per_problem=6"],
    "minirl, top-p": ["--algo=minirl", "--engine.top_p=0.8", "--engine.temperature=1.2"],
    "gspo": [
        *("--algo=gspo", "--algo.kl_beta=0.04", "--algo.kl_target=0.01", "--algo.reference_reset_steps=3"),
        *("--algo.entropy_coef=0.01", "--algo.lr_schedule=cosine", "--algo.warmup_steps=2"),
    ],
}


@pytest.fixture(scope="module", params=RESUMED)
def uninterrupted(request: pytest.FixtureRequest, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps, with a checkpoint after the second and the fourth, then a consolidation."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    log = out.with_suffix(".log")
    more = ["--loop.explore_steps=5", "--capture.every_n_steps=2", "--capture.extra_rollouts=2", "--out", str(out)]
    assert run_fit(["--config", str(config), *RESUMED[request.param], *more], log) == 0, log.read_text()
    return out


def test_a_killed_run_resumes_to_the_same_bits(uninterrupted: Path, tmp_path: Path) -> None:
    """In the second update of the fifth step: behind it lie a reset, an adapted beta, two extra captures."""
    out, log = tmp_path / "run", tmp_path / "log"
    config, seen = uninterrupted / "config.yaml", rows_of(uninterrupted, "explore")
    if "replay/share" in seen[0]:
        assert min(row["replay/share"] for row in seen[1:]) > 0
    elif "train/kl_beta" in seen[0]:
        assert len({row["train/kl_beta"] for row in seen}) == 5
    kill = Kill("torch.optim:AdamW.step", 10)
    assert run_fit(["--config", str(config), "--out", str(out)], log, kill) == -9, log.read_text()
    assert [path.name for path in (out / "round-0" / "explore" / "checkpoints").iterdir()] != []
    assert run_fit(["--resume", str(out)], log) == 0, log.read_text()
    assert_same_run(out, uninterrupted)


# --- another run's pool -----------------------------------------------------------------------------------------------


def test_another_runs_pool_is_replayed_from_the_first_step_unless_it_is_damaged(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, out = tmp_path / "other", tmp_path / "run"
    dapo = ["--algo=dapo", "--algo.dynamic_sampling=false", "--consolidate=none"]
    assert fit(config, other, *dapo, "--loop.explore_steps=1", "--debug") == 0
    replay = [*REPLAY, "--consolidate=none", f"--algo.replay_pool={other}"]
    assert fit(config, out, *replay, "--loop.explore_steps=1", "--debug") == 0
    assert rows_of(out, "explore")[0]["replay/share"] == pytest.approx(8 / 40)
    capsys.readouterr()
    shard = other / "round-0" / "pool" / "step-000001.parquet"
    whole = shard.read_bytes()
    # Its content changed, its footer is whole: seen when it is read.
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert fit(config, tmp_path / "changed", *replay) == 1
    said = capsys.readouterr().err
    assert f"rloop-fit: error: {shard} is damaged" in said
    assert "Traceback" not in said
    # Without its footer: seen before any model loads.
    shard.write_bytes(whole[:-30])
    monkeypatch.setattr("rloop_lightning.model.source.load_model", None)
    assert fit(config, tmp_path / "cut", *replay) == 2
    said = capsys.readouterr().err
    assert f"rloop-fit: error: --algo.replay_pool can't be replayed: {shard}: not a Parquet file, or damaged" in said
    assert not (tmp_path / "cut").exists()


# --- the command line -------------------------------------------------------------------------------------------------

GROUPS = [("algo", "algorithms", name) for name in ALGORITHMS] + [
    ("consolidate", "consolidations", name) for name in CONSOLIDATIONS
]


DECIDED = {"MiniRL": {"aggregation"}}
"""Fields of all that an algorithm sets itself: MiniRL's follows from `length_normalised`."""


def fields_of(cls: type) -> dict[str, object]:
    """The keyword arguments of a class and of those that it extends, with its own defaults."""
    fields: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, PolicyModule | Consolidation) and "__init__" in vars(base):
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    fields[name] = parameter.default
    return {name: default for name, default in fields.items() if name not in DECIDED.get(cls.__name__, set())}


@pytest.mark.parametrize(("group", "registry", "name"), GROUPS)
def test_every_field_is_an_option_with_its_default_and_a_help_text(group: str, registry: str, name: str) -> None:
    cli = parse(f"--{group}", name, "--policy.model", "elsewhere")  # a model without a preset
    expected = fields_of(find_class(registry, name, object))
    options = {
        action.option_strings[0].removeprefix(f"--{group}."): (action.default, action.help)
        for action in cli.parser._actions
        if action.option_strings and action.option_strings[0].startswith(f"--{group}.")
    }
    options.pop("name")
    assert set(options) == set(expected)
    assert {field: default for field, (default, _) in options.items()} == expected
    for field, (_, text) in options.items():
        assert len(text.split()) >= 3, field


@pytest.mark.parametrize(("group", "registry", "name"), GROUPS)
def test_help_shows_every_field(group: str, registry: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(f"--{group}", name, "--help_all")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for field in fields_of(find_class(registry, name, object)):
        assert f"--{group}.{field} " in shown, field


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "--algo grpo --algo.kl_beta -1 --algo.kl_estimator k1 --algo.clip_eps_high 0 --algo.updates_per_step 0",
            (
                "--algo.kl_beta: expected a number >= 0, got -1",
                "--algo.kl_estimator must be k2 or k3 in the loss",
                "--algo.clip_eps_high: expected a number > 0, got 0",
                "--algo.updates_per_step: expected an integer > 0, got 0",
            ),
        ),
        (
            "--algo dr-grpo --algo.dual_clip 0.5 --algo.importance_cap 0.5",
            (
                "--algo.dual_clip: expected a number > 1 or null, got 0.5",
                "--algo.importance_cap: expected a number >= 1, got 0.5",
            ),
        ),
        (
            "--algo maxrl --algo.clip_eps_low 1.5 --algo.dual_clip 1",
            (
                "--algo.clip_eps_low: expected a number > 0 and < 1, got 1.5",
                "--algo.dual_clip: expected a number > 1 or null, got 1",
            ),
        ),
        ("--algo cispo --algo.clip_eps_high 0", ("--algo.clip_eps_high: expected a number > 0, got 0",)),
        ("--algo gspo --algo.clip_eps_low 1.5", ("--algo.clip_eps_low: expected a number > 0 and < 1, got 1.5",)),
        (
            "--algo kl --algo.kl_beta 0 --algo.kl_target 0.1 --algo.reference_reset_steps 4 --algo.kl_adaptation 0",
            (
                "--algo.kl_beta must be > 0 with --algo.kl_target: 0 stays 0, got 0",
                "--algo.reference_reset_steps must be 0 with --algo.kl_beta 0",
                "--algo.kl_adaptation: expected a number > 0, got 0",
            ),
        ),
        (
            "--algo minirl --algo.clip_eps_low 0 --algo.importance_correction truncate",
            (
                "--algo.clip_eps_low: expected a number > 0 and < 1, got 0",
                "--algo.importance_correction weights tokens twice with --algo.importance_weight true",
            ),
        ),
        (
            "--algo replay --algo.replay_share 2 --algo.replay_pool /nowhere --algo.replay_selection max-variance",
            (
                "--algo.replay_share: expected a number > 0 and <= 1, got 2",
                "--algo.replay_pool must be a run or a pool with shards, got /nowhere",
                "--algo.replay_selection has no variance where only successes are stored",
            ),
        ),
        (
            "--consolidate rft --consolidate.weight_temperature 0 --consolidate.kl_beta -1 --algo.lr 0",
            (
                "--consolidate.weight_temperature: expected a number > 0, got 0",
                "--consolidate.kl_beta: expected a number >= 0, got -1",
                "--algo.lr: expected a number > 0, got 0",
            ),
        ),
        (
            "--algo grpo --algo.lr_schedule linear --algo.lr 1e-3 --algo.min_lr 0.1 --algo.optimizer torch.Tensor "
            "--consolidate rft --consolidate.min_lr 1e-7 --consolidate.optimizer_options {'momentum':0.9}",
            (
                "--algo.min_lr must be at most --algo.lr 0.001, got 0.1",
                "--algo.optimizer is not a subclass of torch.optim.Optimizer, got torch.Tensor",
                "--consolidate.min_lr needs --consolidate.lr_schedule linear or cosine, got 1e-07",
                "--consolidate.optimizer_options must hold arguments of adamw, which has no momentum",
            ),
        ),
        (
            "--consolidate average --consolidate.alpha 0 --consolidate.start explored",
            (
                "--consolidate.alpha: expected a number > 0 and <= 1, got 0",
                "--consolidate.start: expected initial or base, got 'explored'",
            ),
        ),
        ("--consolidate average --consolidate.lr 1", ("--consolidate.lr",)),
        (
            "--consolidate distil --consolidate.steps 0 --consolidate.start phi --consolidate.lr -1",
            (
                "--consolidate.start: expected initial or base, got 'phi'",
                "--consolidate.steps: expected an integer > 0, got 0",
                "--consolidate.lr: expected a number > 0, got -1",
            ),
        ),
        (
            "--consolidate rft --consolidate.start phi",
            ("--consolidate.start: expected initial, explored or base, got 'phi'",),
        ),
        ("--algo kl --algo.kl_estimator k4", ("--algo.kl_estimator: expected k1, k2 or k3, got 'k4'",)),
        (
            "--consolidate rft --consolidate.kl_estimator k1",
            ("--consolidate.kl_estimator: expected k2 or k3, got 'k1'",),
        ),
        (
            "--algo replay --algo.replay_selection newest",
            ("--algo.replay_selection: expected recent, random, low-entropy or max-variance, got 'newest'",),
        ),
    ],
)
def test_wrong_settings_are_named_at_once(arguments: str, said: tuple[str, ...]) -> None:
    message = usage_error(*arguments.split())
    for text in said:
        assert text in message
    assert len(message.splitlines()) == len(said)


def test_modules_made_in_python_are_refused_before_a_run() -> None:
    parts = parse("--algo", "grpo").parts
    assert parts.validate() == []
    wrong = replace(parts, algorithm=GRPO(entropy_coef=-1.0, overlong_buffer_tokens=64), consolidation=RFT(epochs=0))
    assert wrong.validate() == [
        "--algo.entropy_coef: expected a number >= 0, got -1.0",
        "--consolidate.epochs: expected an integer > 0, got 0",
        "--algo.overlong_buffer_tokens 64 must be below --engine.max_new_tokens 64",
    ]
