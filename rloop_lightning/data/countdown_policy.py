"""Trains the built-in countdown policy, which ships in `rloop_lightning/assets/countdown-policy`.

    python -m rloop_lightning.data.countdown_policy --out DIR
    python -m rloop_lightning.data.countdown_policy --out DIR --experts 8     # a mixture of experts, for studies

The policy is a Qwen2-architecture model of 0.86 M parameters with a character tokenizer. It is fine-tuned by maximum
likelihood on random derivations of problems that are in none of the sets of `Countdown`. It has learned the form of a
solution well, but not the search for one: for most problems some of its samples are right, by many derivations. That
makes it a starting point for reinforcement learning.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from torch.nn import functional
from transformers import (
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rloop_lightning.data.countdown import Countdown, Family, Solution, draw_solution, set_of

PAD, EOS, UNK, BOX = "<pad>", "<eos>", "<unk>", r"\boxed{"
_CHARACTERS = "0123456789+-*/()=;: }"
CONTEXT_TOKENS = 256
_WIDE = Family(counts=(4, 5), max_number=20, max_target=200)
_WIDE_EVERY = 5  # one example in five is of the wide family, so that the policy can solve some problems of `ood`


def make_tokenizer() -> Qwen2Tokenizer:
    """One token per character, and one for `\\boxed{`. Decoding restores the encoded text.

    `AutoTokenizer` loads the tokenizer of any Qwen2 model as Qwen's byte-level BPE, whatever its folder declares. This
    tokenizer is therefore a byte-level BPE without merges. Characters outside the vocabulary are dropped.
    """
    vocabulary = {token: i for i, token in enumerate((PAD, EOS, UNK, *_CHARACTERS.replace(" ", "\u0120"), BOX))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )
    tokenizer.add_tokens([AddedToken(BOX, normalized=False, special=False)])
    return tokenizer


def make_model(tokenizer: Qwen2Tokenizer, experts: int = 0) -> PreTrainedModel:
    """The untrained model, float32, weights drawn from torch's global generator.

    Args:
        experts: experts per layer of a Qwen3-MoE model, two of which compute each token; with 8 experts it has 0.6 M
            parameters. 0 makes the dense Qwen2 model.
    """
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    sizes: dict[str, Any]
    model: PreTrainedModel
    if experts:
        sizes = {"hidden_size": 96, "head_dim": 24, "moe_intermediate_size": 64, "num_hidden_layers": 3}
        routing: dict[str, Any] = {"num_experts": experts, "num_experts_per_tok": 2, "norm_topk_prob": True}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **routing, **common)).float()
    else:
        sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, **common)).float()
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, do_sample=True
    )
    return model


def solutions(seed: int, family: Family) -> Iterator[Solution]:
    """An endless stream of solutions of problems that are in no set of `Countdown`."""
    rng = random.Random(f"countdown policy {seed}")
    while True:
        solution = draw_solution(rng, family)
        if solution and set_of(solution.numbers, solution.target) == "policy":
            yield solution


def make_batch(tokenizer: Qwen2Tokenizer, examples: list[Solution]) -> tuple[Tensor, Tensor]:
    """Right-padded inputs and labels [B, L]. Prompt and padding carry no loss (-100); the end token does."""
    prompts = tokenizer([example.problem.prompt for example in examples])["input_ids"]
    completions = tokenizer([example.text for example in examples])["input_ids"]
    lengths = [len(prompt) + len(text) + 1 for prompt, text in zip(prompts, completions, strict=True)]
    input_ids = torch.full((len(examples), max(lengths)), tokenizer.pad_token_id)
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, text) in enumerate(zip(prompts, completions, strict=True)):
        tokens = torch.tensor([*prompt, *text, tokenizer.eos_token_id])
        input_ids[row, : len(tokens)] = tokens
        labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return input_ids, labels


def train(
    model: PreTrainedModel, tokenizer: Qwen2Tokenizer, *, steps: int, batch_size: int, lr: float, seed: int
) -> float:
    """AdamW with a linear warm-up over the first 5 % and a linear decay to 0. Returns the last loss, nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    stream, wide = solutions(seed, Countdown().family), solutions(seed, _WIDE)
    model.train()
    loss = float("nan")
    for step in range(steps):
        # Sorting by length and splitting in two reduces padding. The gradient is that of the whole batch.
        examples = sorted(
            (next(wide if i % _WIDE_EVERY == 0 else stream) for i in range(batch_size)), key=lambda e: len(e.text)
        )
        parts = [make_batch(tokenizer, part) for part in (examples[: batch_size // 2], examples[batch_size // 2 :])]
        tokens = sum(int((labels >= 0).sum()) for _, labels in parts)
        loss = 0.0
        for input_ids, labels in parts:
            logits = model(input_ids=input_ids).logits[:, :-1]
            part_loss = (
                functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / tokens
            )
            part_loss.backward()
            loss += part_loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss:.4f} nats/token", flush=True)
    return loss


def _model_card(arguments: argparse.Namespace, loss: float) -> str:
    command = "python -m rloop_lightning.data.countdown_policy --out DIR" + "".join(
        f" --{name.replace('_', '-')} {value}" for name, value in vars(arguments).items() if name != "out"
    )
    architecture = "Qwen3-MoE" if arguments.experts else "Qwen2"
    return (
        "---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n"
        "# Countdown policy\n\n"
        f"A starting policy of rloop-lightning: a {architecture} model with a character tokenizer that\n"
        "writes solutions of countdown problems. It is a start for reinforcement learning, not a good solver.\n\n"
        "    prompt      3 7 12=33:\n"
        "    completion  7*3=21;21+12=33;\\boxed{7*3+12}\n\n"
        f"Made on one CPU core by\n\n    {command}\n\n"
        f"with a last loss of {loss:.4f} nats per token. No set of `Countdown` holds a problem it was trained on.\n"
    )


def main(argv: list[str] | None = None) -> None:
    """Train the policy and save it as a Hugging Face folder."""
    parser = argparse.ArgumentParser(
        description="Train the built-in countdown policy.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=64, help="solutions per optimizer step, at least 2")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW")
    parser.add_argument("--experts", type=int, default=0, help="experts per layer, at least 2; 0 makes a dense model")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; their number changes the last bits")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1 or arguments.batch_size < 2 or arguments.lr <= 0 or arguments.threads < 1:
        parser.error("--steps and --threads must be >= 1, --batch-size >= 2, --lr > 0")
    if arguments.experts != 0 and arguments.experts < 2:
        parser.error("--experts must be 0 or at least 2")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, arguments.experts)
    loss = train(
        model,
        tokenizer,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        seed=arguments.seed,
    )
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / "README.md").write_text(_model_card(arguments, loss))


if __name__ == "__main__":
    main()
