"""An export is a data set that TRL's SFTTrainer trains on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bad_models import make_good_model
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from rloop_lightning.cli.data import main


def exported(run: Path, out: Path, *options: str) -> Dataset:
    assert main(["export", str(run), "--what=successes", "--out", str(out), *options]) == 0
    kind = {"jsonl": "json"}.get(out.suffix[1:], "parquet")
    return load_dataset(kind, data_files=str(out), split="train", cache_dir=str(out.parent / "cache"))


def one_step(model: Path, dataset: Dataset, folder: Path) -> SFTTrainer:
    settings = SFTConfig(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args=settings,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    before = next(trainer.model.parameters()).detach().clone()
    trainer.train()
    assert not torch.equal(before, next(trainer.model.parameters()))
    return trainer


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_prompts_and_completions_train_the_tokens_that_the_policy_sampled(
    finished: Path, tmp_path: Path, name: str
) -> None:
    dataset = exported(finished, tmp_path / name, "--format=prompt-completion", "--finish_reason=stop")
    trainer = one_step(finished / "final", dataset, tmp_path / "sft")
    for row, told in zip(trainer.train_dataset, dataset, strict=True):
        trained = [label for label in row["labels"] if label != -100]
        assert len(trained) == told["length"]  # no token is added: the completion ends in the EOS token already


def test_messages_train_with_a_chat_template(finished: Path, tmp_path: Path) -> None:
    make_good_model(tmp_path / "model")
    dataset = exported(finished, tmp_path / "out.parquet", "--format=messages", "--finish_reason=stop")
    trainer = one_step(tmp_path / "model", dataset, tmp_path / "sft")
    shown = trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"])
    assert shown.startswith(f"<|im_start|>user\n{dataset[0]['messages'][0]['content']}<|im_end|>")
    assert f"<|im_start|>assistant\n{dataset[0]['messages'][1]['content']}<|im_end|>" in shown


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_verl_columns_load_with_datasets(finished: Path, tmp_path: Path, name: str) -> None:
    dataset = exported(finished, tmp_path / name, "--format=verl")
    assert dataset.column_names == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert dataset[0]["prompt"][0].keys() == {"role", "content"}
    assert dataset[0]["reward_model"].keys() == {"style", "ground_truth"}
