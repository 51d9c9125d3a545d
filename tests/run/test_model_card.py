"""The model card: what it says, and that no name in it acts as YAML, Markdown or HTML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.run.model_card import BaseFacts, CardFacts, base_facts, model_card
from rloop_lightning.run.results_table import PolicyResult, results_table
from rloop_lightning.types import SamplingParams

FACTS = CardFacts(
    base=BaseFacts("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", {"license": "apache-2.0"}),
    algorithm="DAPO",
    consolidation="RFT",
    consolidated_by="fine-tuning on the successes of hard problems",
    rloop=True,
    handed_over="round 1 consolidated",
    table=results_table([PolicyResult("base", {"eval/test/pass@1": 0.5})]),
    notes=(),
    spent={"Rollouts": 1200},
    sets={"train": 7473, "test": 100},
    settings={"data": {"name": "hub", "dataset": "openai/gsm8k"}, "out": "/home/me/runs/x"},
    sampling=SamplingParams(512, 0.7, 0, 0.95),
    seed=7,
)
HOSTILE = (
    "a`b``c](javascript:x) <img src=x onerror=y> | **bold** ![i](http://evil.example/i)\n\n# head\n---\n"
    "license: mit\x1b[2J"
)


def front_matter(card: str) -> dict[str, Any]:
    _, metadata, _ = card.split("---\n", 2)
    return yaml.safe_load(metadata)


def rendered(card: str) -> str:
    """The card's text as HTML, by CommonMark with tables, which GitHub and the hub read."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2])


def test_the_front_matter_is_the_hubs() -> None:
    assert front_matter(model_card(FACTS)) == {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "datasets": ["openai/gsm8k"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rloop-lightning", "reinforcement-learning", "rlvr", "rloop", "dapo"],
    }


def test_a_local_base_of_plain_rl_names_no_repository_and_no_licence() -> None:
    card = model_card(replace(FACTS, base=BaseFacts("mine"), consolidation="", rloop=False, settings={}))
    assert front_matter(card).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "rloop" not in front_matter(card)["tags"]
    assert "Look it up before you publish" in card
    assert "## Settings" not in card


def test_the_text_tells_method_results_sampling_and_cost() -> None:
    card = model_card(replace(FACTS, notes=("round 1: the expert set is empty",)))
    for told in (
        "# `Qwen/Qwen2.5-0.5B`, trained with rloop-lightning",
        "arXiv 2511.04285",
        FACTS.table,
        "- round 1: the expert set is empty",
        "temperature 0.7, top-p 0.95, top-k off, at most 512 tokens",
        "- Problem set `train`: 7,473 problems",
        "- Rollouts: 1,200",
        "- Seed: 7",
        "transformers ",
        "dataset: openai/gsm8k",
    ):
        assert told in card
    assert "<table>" in rendered(card)


@pytest.mark.parametrize(
    "facts",
    [
        replace(FACTS, base=BaseFacts(HOSTILE, "", {"license": "mit", "license_name": HOSTILE})),
        replace(FACTS, algorithm=HOSTILE, consolidation=HOSTILE),
        replace(FACTS, sets={HOSTILE: 1}),
        replace(FACTS, notes=(HOSTILE,)),
        replace(FACTS, settings={"data": {"name": "hub", "dataset": HOSTILE, HOSTILE: ["``````", HOSTILE]}}),
        replace(FACTS, table=results_table([PolicyResult("base", {f"eval/{HOSTILE.replace('/', '')}/pass@1": 0.5})])),
    ],
)
def test_hostile_names_stay_text(facts: CardFacts) -> None:
    plain, card = rendered(model_card(FACTS)), model_card(facts)
    page = rendered(card)
    for tag in ("<img", "<h1", "<h2", "<hr", "<a ", "<table", "<pre", "<strong>bold"):
        assert page.count(tag) == plain.count(tag), tag
    assert page.count("<td") == plain.count("<td")
    assert "\x1b" not in card
    assert front_matter(card).get("license") == facts.base.licence["license"]
    assert front_matter(card)["tags"][:3] == ["rloop-lightning", "reinforcement-learning", "rlvr"]


def test_paths_of_the_machine_are_reduced_to_their_last_part(tmp_path: Path) -> None:
    (tmp_path / "with space.jsonl").touch()
    settings = {
        "data": {"path": str(tmp_path / "with space.jsonl"), "eval": {"own": "{run}/data/own.jsonl"}},
        "policy": {"model": str(tmp_path)},
        "reward": {"function": "mine.reward"},
        "filter": {"text": "x" * 5000, "instruction": "/think step by step in /tmp"},
        "out": str(tmp_path / "run"),
        "trainer": {"precision": "32-true", "default_root_dir": str(tmp_path)},
    }
    card = model_card(replace(FACTS, base=BaseFacts("mine"), settings=settings))
    assert str(tmp_path) not in card
    shown = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert shown["data"] == {"path": "with space.jsonl", "eval": {"own": "own.jsonl"}}
    assert shown["policy"] == {"model": "mine"}
    assert shown["reward"] == settings["reward"]
    assert shown["filter"] == settings["filter"]
    assert shown["trainer"] == {"precision": "32-true"}
    assert "out" not in shown


def test_where_and_how_the_engine_runs_is_left_out() -> None:
    """Addresses, and options that may hold keys. A class of one's own may have any field."""
    sampled = {"name": "vllm", "max_new_tokens": 64, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "stop": ["</a>"]}
    machine = {"url": "http://gen-7.lan:8000", "python": "~/vllm/bin/python", "devices": "3", "memory_share": 0.4}
    machine |= {"options": ["--api-key=sesame"], "token": "sesame", "dict_kwargs": {"x": "sesame"}}
    card = model_card(replace(FACTS, settings={"engine": {**sampled, "dtype": "auto", **machine}}))
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["engine"] == {**sampled, "dtype": "auto"}
    assert not [word for word in ("sesame", "gen-7", "bin/python") if word in card]


def base_with_card(folder: Path, text: str) -> BaseFacts:
    (folder / "README.md").write_text(text)
    return base_facts(str(folder))


def test_the_bases_own_card_gives_licence_and_origin(tmp_path: Path) -> None:
    licence = "license: other\nlicense_name: qwen-research\nlicense_link: https://example.org/LICENSE"
    facts = base_with_card(tmp_path, f"---\n{licence}\nbase_model: [Qwen/Qwen2.5-3B]\n---\n# Card\n---\n")
    assert facts == BaseFacts(tmp_path.name, "Qwen/Qwen2.5-3B", yaml.safe_load(licence))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no front matter",
        "---\nlicense: [mit\n---\n",
        "---\n- a list\n---\n",
        "---\nlicense: {a: b}\nbase_model: 3\n---\n",
        "---\nlicense: 'MIT; see below'\nbase_model: /etc/passwd\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['true']\n---\n",
        "---\nlicense: &a [*a]\n---\n",
        "---\n" + "[" * 20000 + "\n---\n",
    ],
)
def test_a_card_that_says_nothing_usable_is_none(tmp_path: Path, text: str) -> None:
    assert base_with_card(tmp_path, text) == BaseFacts(tmp_path.name)


def test_the_embedded_policy_is_named_as_on_the_command_line() -> None:
    assert base_facts(str(embedded_model_path())) == BaseFacts("countdown", "", {"license": "apache-2.0"})
