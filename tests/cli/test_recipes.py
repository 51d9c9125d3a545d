"""Every recipe runs through the command line, on a tiny model of its architecture and ten problems.

What is replaced is the model, the problems, the device, and the length of the run. All else is as the recipe has it:
rollouts of a problem, updates, optimizer, adapter, quantisation, dtype, layouts, prompts, filter, evaluations.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from boxing_model import SYSTEM_MESSAGE, save_boxing_model
from problem_files import write_rows
from safetensors.torch import load_file

from rloop_lightning.cli.main import main
from rloop_lightning.cli.presets import preset_folder, preset_names
from rloop_lightning.data import hub_rows
from rloop_lightning.data.presets import PRESETS
from rloop_lightning.data.render import BOXED
from rloop_lightning.model import folder as folder_checks
from rloop_lightning.model import loading
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.system import hub


@dataclass(frozen=True)
class Tiny:
    """What stands for a recipe's model and problems.

    Args:
        architecture: of the model.
        train: layout of the training set.
        eval: layouts of the evaluation sets.
        changes: of the architecture's config.
    """

    architecture: str
    train: str
    eval: Mapping[str, str]
    changes: Mapping[str, Any] = field(default_factory=dict)


RECIPES = {
    "qwen2.5-0.5b-gsm8k": Tiny("Qwen2", "gsm8k", {"test": "gsm8k"}, {"tie_word_embeddings": True}),
    "qwen2.5-math-7b-dapo17k": Tiny(
        "Qwen2", "dapo-math", {"aime24": "aime", "math500": "math", "minerva": "minerva-math", "omni": "omni-math"}
    ),
    "qwen2.5-math-7b-dapo17k-qlora": Tiny("Qwen2", "dapo-math", {"aime24": "aime", "math500": "math"}),
    "qwen3-30b-a3b-minirl-r3": Tiny(
        "Qwen3Moe",
        "dapo-math",
        {"aime24": "aime", "aime25": "aime"},
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
}
SMALLER = {
    "trainer.accelerator": "cpu",
    "loop.rounds": 1,
    "loop.explore_steps": 2,
    "loop.problems_per_step": 4,
    "eval.every_n_steps": 1,
}
PROBLEMS = {"data.name", "data.dataset", "data.config", "data.eval"}


def rows(layout: str, count: int) -> list[dict[str, Any]]:
    """Problems in the layout in which a set is published. Every second answer is one that the model rarely gives."""
    made = []
    for number in range(count):
        answer = "3" if number % 2 else str(number % 4 // 2 + 1)
        text = f"What is {number} - {number - int(answer)}?"
        made.append(
            {
                "gsm8k": {"question": text, "answer": f"It is <<{answer}={answer}>>{answer}.\n#### {answer}"},
                "dapo-math": {
                    "prompt": text,
                    "solution": answer,
                    "data_source": "math_dapo",
                    "source_prompt": [{"role": "user", "content": f"Solve the following math problem. {text}"}],
                    "ability": "MATH",
                    "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
                    "extra_info": {"index": f"index-{number}"},
                },
                "aime": {"id": 60 + number, "problem": text, "solution": "Clear.", "answer": answer},
                "math": {
                    "problem": text,
                    "solution": rf"It is $\boxed{{{answer}}}$.",
                    "answer": answer,
                    "unique_id": f"test/{number}.json",
                },
                "minerva-math": {"question": text, "answer": answer},
                "omni-math": {"problem": text, "solution": "Clear.", "answer": f"${answer}$"},
            }[layout]
        )
    return made


def settings_of(name: str) -> Any:
    return yaml.safe_load((preset_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings by their names in the command line."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in ("data.eval", "data.eval_presets"):
            yield from leaves(value, f"{name}.")
        elif name == "consolidate":
            yield f"{name}.name", value
        else:
            yield name, value


def fit(name: str, folder: Path) -> int:
    """Exit code of the recipe on the tiny model, with its run in `folder/run`."""
    tiny, recipe = RECIPES[name], dict(leaves(settings_of(name)))
    model = save_boxing_model(folder / "model", tiny.architecture, **tiny.changes)
    train = write_rows(folder / "train.jsonl", rows(tiny.train, 10))
    sets = {key: str(write_rows(folder / f"{key}.jsonl", rows(layout, 4))) for key, layout in tiny.eval.items()}
    smaller = [f"--{key}={value}" for key, value in SMALLER.items() if key in recipe]
    data = ["--data", str(train), "--data.eval", json.dumps(sets)]
    return main(["--config", name, "--out", str(folder / "run"), "--policy.model", str(model), *data, *smaller])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_to_the_files_on_disk(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="rloop_lightning")
    assert fit(name, tmp_path) == 0
    out, recipe = tmp_path / "run", dict(leaves(settings_of(name)))
    check_settings(out, recipe)
    check_prompt(caplog.messages, recipe)
    state = json.loads((out / "state.json").read_text())
    assert state["phase"] == "done"
    rows = read_metrics(out / "metrics.csv")
    explored = [row for row in rows if "rollout/reward_mean" in row]
    assert len(explored) == SMALLER["loop.explore_steps"]
    assert all(0 < float(row["rollout/reward_mean"]) < 1 and float(row["grad/norm_preclip"]) > 0 for row in explored)
    replays = recipe.get("policy.routing_replay") == "r3"
    assert all(("routing/engine_old_mismatch" in row) == replays for row in explored)
    largest = f"pass@{max(recipe['eval.k'])}"
    for evaluated in RECIPES[name].eval:
        assert all(f"eval/{evaluated}/{largest}" in results for results in state["results"].values())
        inside = [row for row in explored if f"eval/{evaluated}/pass@1" in row]
        expected = evaluated in (recipe.get("eval.sets_inside") or RECIPES[name].eval)
        assert bool(inside) == (expected and "eval.every_n_steps" in recipe)
    check_pool(out, recipe)
    if recipe["consolidate.name"] == "rft":
        assert pq.read_metadata(out / "round-0" / "expert.parquet").num_rows > 0
        assert [row for row in rows if row["phase"] == "consolidate"]
    check_final(out, recipe)


def check_settings(out: Path, recipe: Mapping[str, Any]) -> None:
    """All settings of the recipe were those of the run, but for the few that a small run replaces."""
    ran = dict(leaves(yaml.safe_load((out / "config.yaml").read_text())))
    for name, value in recipe.items():
        if name not in {"policy.model", *PROBLEMS, *SMALLER}:
            assert ran[name] == (float(value) if name.endswith(".lr") else value), name
    assert {name: ran[name] for name in SMALLER if name in recipe} == {
        name: value for name, value in SMALLER.items() if name in recipe
    }


def check_prompt(messages: Sequence[str], recipe: Mapping[str, Any]) -> None:
    """The instruction to box the answer is in the prompt once, and where the recipe wants it."""
    (prompt,) = [message for message in messages if message.startswith("first prompt: ")]
    assert prompt.count(BOXED) == 1
    system = recipe.get("data.system_prompt", SYSTEM_MESSAGE)
    assert prompt.startswith(f"first prompt: <|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWhat is ")


def check_pool(out: Path, recipe: Mapping[str, Any]) -> None:
    """Groups have the recipe's size, and completions end with their turn, which is not the model's EOS token."""
    shards = [pq.read_table(file) for file in sorted((out / "round-0" / "pool").glob("*.parquet"))]
    for shard in shards:
        groups = shard.group_by("problem_id").aggregate([("reward", "count")])["reward_count"].to_pylist()
        assert all(size % recipe["loop.rollouts_per_problem"] == 0 for size in groups)
        assert set(shard["finish_reason"].to_pylist()) == {"stop"}


def check_final(out: Path, recipe: Mapping[str, Any]) -> None:
    """What the run hands over has the recipe's form and dtype."""
    dtype = getattr(torch, recipe.get("policy.dtype", "float32"))
    if "policy.lora.rank" not in recipe:
        weights = load_file(out / "final" / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {dtype}
        base = load_file(out.parent / "model" / "model.safetensors")
        assert any((weight != base[name].to(dtype)).any() for name, weight in weights.items())
        return
    adapter = load_file(out / "final" / "adapter_model.safetensors")
    config = json.loads((out / "final" / "adapter_config.json").read_text())
    assert config["r"] == recipe["policy.lora.rank"]
    assert any(float(weight.abs().max()) > 0 for name, weight in adapter.items() if ".lora_B." in name)
    targets = recipe.get("policy.lora.targets", ["gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj"])
    assert all(any(f".{target}." in name for name in adapter) for target in targets)
    assert not any("experts" in name or "mlp.gate." in name for name in adapter)
    if recipe.get("policy.lora.merge"):
        merged = load_file(out / "final-merged" / "model.safetensors")
        assert {weight.dtype for weight in merged.values()} == {dtype}
        assert "quantization_config" not in json.loads((out / "final-merged" / "config.json").read_text())


def test_every_preset_but_the_embedded_one_is_a_recipe_that_runs_here() -> None:
    assert set(preset_names()) == {"countdown", *RECIPES}


def test_the_help_names_every_preset(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert f"settings file, or preset: {', '.join(sorted(['countdown', *RECIPES]))}; may be repeated" in shown


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_replays_experts_and_quantises_as_its_name_says(name: str) -> None:
    recipe = dict(leaves(settings_of(name)))
    assert recipe.get("policy.routing_replay") == ("r3" if name.endswith("-r3") else None)
    assert recipe.get("policy.quantization") == ("nf4" if name.endswith("-qlora") else None)
    assert ("policy.lora.rank" in recipe) == name.endswith(("-r3", "-qlora"))


@pytest.mark.parametrize("name", RECIPES)
def test_the_filter_of_a_recipe_reaches_a_problem_in_one_visit(name: str) -> None:
    recipe = dict(leaves(settings_of(name)))
    assert 1 / recipe["loop.rollouts_per_problem"] < recipe.get("filter.max_success_rate", 0.10)


@pytest.mark.parametrize("name", RECIPES)
def test_the_tiny_sets_have_the_layouts_of_the_recipe(name: str) -> None:
    tiny, data = RECIPES[name], settings_of(name)["data"]
    presets = dict.fromkeys(data["eval"], data["preset"]) | data.get("eval_presets", {})
    assert (data["preset"], presets) == (tiny.train, dict(tiny.eval))
    assert {tiny.train, *tiny.eval.values()} <= PRESETS.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_without_gpu_and_hub_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one report, and before anything is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for module in (hub, folder_checks, loading, hub_rows):
        monkeypatch.setattr(module, "hub_answers", lambda: False)
    assert main(["--config", name, "--dry_run"]) == 2
    error, recipe = capfd.readouterr().err, dict(leaves(settings_of(name)))
    model, data = recipe["policy.model"], recipe["data.dataset"]
    assert "--trainer.accelerator gpu: PyTorch " in error
    assert f"--policy.model {model}: no folder of that name, and not fetched from the hub yet: " in error
    assert f"`hf download {model} --local-dir FOLDER`, and give the folder" in error
    assert f"`hf download {data} --repo-type dataset --local-dir FOLDER`, and give the file that holds the" in error
    assert all(f"--data.eval {evaluated}: " in error for evaluated in recipe["data.eval"])
    assert not list(tmp_path.iterdir())
