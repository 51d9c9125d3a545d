"""TRL's side: its trainers, from the prompts of a step to the gradient, on what the tables say.

    (computed,) = trl_runs([tables], folder, loss_type="grpo")

Everything is TRL's own code: sampling of prompts, advantages, importance ratios, shuffling, mini-batches, loss,
accumulation. Two methods are replaced, that which asks the engine for completions and that which asks a model for their
logprobs. The model is there, but no loss depends on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from builders import make_model
from datasets import Dataset
from peers.tables import Computed, Tables
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rloop_lightning.data.countdown_policy import make_tokenizer

_STOP, _OTHER = 1, 6  # tokens; the first is the EOS of `make_model`


class _OnTables:
    """Mixed into a trainer: successive generations are successive tables."""

    def attach(self, tables: Sequence[Tables]) -> None:
        self.coming = list(tables)
        self.computed: list[Computed] = []
        self.loss, self.rows = 0.0, []

    def generate(self) -> tuple[list[list[int]], list[list[float]]]:
        """Completions and their sampling logprobs."""
        self.tables = self.coming.pop(0)
        self.computed.append(Computed.nothing_of(self.tables))
        self.logprobs = self.tables.logprobs.clone().requires_grad_()
        lengths = self.tables.lengths.tolist()
        ends = [_OTHER if truncated else _STOP for truncated in self.tables.truncated.tolist()]
        completions = [[_OTHER] * (length - 1) + [end] for length, end in zip(lengths, ends, strict=True)]
        return completions, [self.tables.sampling[row, :length].tolist() for row, length in enumerate(lengths)]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [[row] for row in range(len(prompts))], None, {}  # a prompt is its row's number

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, width: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor, None]:
        if kwargs.get("compute_entropy"):  # which only the loss asks for
            table = self.logprobs
        else:
            table = self.tables.reference if model is self.ref_model else self.tables.old
        rows = input_ids[:, 0]
        return table[rows, :width], torch.zeros(len(rows), width), None

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        rows = inputs["prompt_ids"][:, 0]
        self.rows.extend(rows.tolist())
        self.computed[-1].advantages[rows] = inputs["advantages"].double()
        return super()._compute_loss(model, inputs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.loss += float(loss)
        return loss

    def note_update(self) -> None:
        computed = self.computed[-1]
        computed.losses.append(self.loss)
        computed.gradients.append(self.logprobs.grad)
        computed.rows.append(self.rows)
        self.loss, self.rows, self.logprobs.grad = 0.0, [], None


class _GRPO(_OnTables, GRPOTrainer):
    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], list[list[float]]]:
        return self.generate()


class _RLOO(_OnTables, RLOOTrainer):
    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return self.generate()[0]


class _NoteUpdates(TrainerCallback):
    def __init__(self, trainer: _OnTables) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.note_update()


def trl_runs(
    tables: Sequence[Tables],
    folder: Path,
    *,
    rloo: bool = False,
    engine: bool = False,
    updates: int = 1,
    pieces: int = 1,
    **config: Any,
) -> list[Computed]:
    """One call of `train()` that generates once for each of the tables; those must have equally many rows.

    Args:
        folder: for what TRL writes.
        rloo: RLOOTrainer instead of GRPOTrainer.
        engine: as though vLLM had generated.
        updates: optimizer steps on a generation.
        pieces: micro-batches of an optimizer step.
        config: fields of GRPOConfig or RLOOConfig.
    """
    rows, group = len(tables[0].rewards), tables[0].group
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows // (updates * pieces),
        "gradient_accumulation_steps": pieces,
        "steps_per_generation": updates * pieces,
        "num_generations": group,
        "max_completion_length": tables[0].limit,
        "max_steps": updates * len(tables),
        "report_to": [],
        "max_grad_norm": 0.0,  # the tables are none of the optimizer's parameters
        **dict.fromkeys(("use_cpu", "disable_tqdm"), True),
        **dict.fromkeys(("bf16", "gradient_checkpointing"), False),
        **dict.fromkeys(("save_strategy", "logging_strategy"), "no"),
    }
    model = make_model()
    model.save_pretrained(folder / "model")  # TRL loads its reference model from where the policy came from
    model.config._name_or_path = str(folder / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between TRL and its own dependencies
        kind, config_of = (_RLOO, RLOOConfig) if rloo else (_GRPO, GRPOConfig)
        trainer = kind(
            model=model,
            processing_class=make_tokenizer(),
            reward_funcs=lambda completions, **_: trainer.tables.rewards.tolist(),
            train_dataset=Dataset.from_list([{"prompt": "="}] * (rows // group)),
            args=config_of(**{**settings, **config}),
        )
        trainer.use_vllm = engine  # not in the config, which would want vLLM itself
        trainer.attach(tables)
        trainer.add_callback(_NoteUpdates(trainer))
        trainer.train()
    return trainer.computed
