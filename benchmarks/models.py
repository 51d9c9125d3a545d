"""Random Qwen2 and Qwen3 models of named sizes, as Hugging Face folders, with prompts and a reward for random text.

    folder = save_model(SIZES["11.5M"], Path("somewhere"))
    problems = RandomPrompts(count=256).train()
    reward = EvenLetters()

The weights are random but seeded, so that all sides of a comparison have the same weights. A random model samples all
tokens with about the same probability. The share of stop tokens in the vocabulary therefore decides the lengths of its
completions.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import Problem

CONTEXT_TOKENS = 4096
PAD, EOS = "<pad>", "<eos>"


@dataclass(frozen=True)
class Size:
    """The shape of a Qwen2 model with tied embeddings; `vocabulary` includes the padding and stop tokens.

    With `head_dim`, the width of a head, it is a Qwen3 model.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    head_dim: int = 0

    @property
    def query_width(self) -> int:
        """The width of a layer's queries."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def layer_weights(self) -> int:
        """Weights that every token is multiplied with: the model without its embeddings."""
        kv_width = self.query_width // self.heads * self.kv_heads
        return self.layers * (2 * self.hidden * (self.query_width + kv_width) + 3 * self.hidden * self.mlp)

    @property
    def head_weights(self) -> int:
        """Weights of the projection onto the vocabulary."""
        return self.hidden * self.vocabulary

    def forward_flop(self, tokens: float, projected: float, attended: float) -> float:
        """Floating point operations of a forward pass; a multiply-add counts as two.

        Args:
            tokens: tokens that pass through the layers.
            projected: tokens that are projected onto the vocabulary.
            attended: pairs of a token and a token that it attends to, including itself.
        """
        attention = 4 * self.layers * self.query_width * attended  # the scores, and the weighted sum of the values
        return 2 * (tokens * self.layer_weights + projected * self.head_weights) + attention


SIZES = {
    "toy": Size(hidden=32, layers=1, heads=2, kv_heads=2, mlp=48, vocabulary=55),
    "0.86M": Size(hidden=128, layers=4, heads=4, kv_heads=4, mlp=384, vocabulary=55),
    "11.5M": Size(hidden=384, layers=6, heads=6, kv_heads=6, mlp=1152, vocabulary=55),
    "30M-32k": Size(hidden=512, layers=4, heads=8, kv_heads=8, mlp=1536, vocabulary=32_000),
    "toy-qwen3": Size(hidden=32, layers=2, heads=4, kv_heads=2, mlp=48, vocabulary=55, head_dim=16),
    "0.5B": Size(hidden=896, layers=24, heads=14, kv_heads=2, mlp=4864, vocabulary=151_936),
    "1.5B": Size(hidden=1536, layers=28, heads=12, kv_heads=2, mlp=8960, vocabulary=151_936),
    "qwen3-0.6B": Size(hidden=1024, layers=28, heads=16, kv_heads=8, mlp=3072, vocabulary=151_936, head_dim=128),
    "qwen3-1.7B": Size(hidden=2048, layers=28, heads=16, kv_heads=8, mlp=6144, vocabulary=151_936, head_dim=128),
}


def save_model(size: Size, folder: Path, *, stop_rate: float | None = None, seed: int = 0) -> Path:
    """Save a random model and its tokenizer as a plain Hugging Face folder in float32.

    Args:
        size: shape of the model.
        folder: output folder, created if missing.
        stop_rate: share of stop tokens in the vocabulary, which is about the probability that a token ends its
            completion. 0 sets a stop token outside the vocabulary, so that every completion reaches the limit. None
            sets one stop token, the tokenizer's EOS.
        seed: seed of the weights.
    """
    endless = stop_rate == 0
    stop_tokens = 1 if not stop_rate else max(1, round(stop_rate * size.vocabulary))
    stops = [size.vocabulary] if endless else list(range(size.vocabulary - stop_tokens, size.vocabulary))
    model = make_model(size, stops, seed=seed)
    model.save_pretrained(folder)
    make_tokenizer(size.vocabulary, None if endless else EOS).save_pretrained(folder)
    return folder


def make_model(
    size: Size, stops: Sequence[int], *, context_tokens: int = CONTEXT_TOKENS, device: str = "cpu", seed: int = 0
) -> Any:
    """A random model in float32.

    Args:
        size: shape of the model.
        stops: the tokens that end a completion; the last one is the config's EOS.
        context_tokens: the longest sequence.
        device: where it is made.
        seed: seed of the weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

    config = (Qwen3Config if size.head_dim else Qwen2Config)(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=stops[-1],
        bos_token_id=None,
        **({"head_dim": size.head_dim} if size.head_dim else {}),
    )
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.update(eos_token_id=list(stops), pad_token_id=0, bos_token_id=None, do_sample=True)
    return model


def make_tokenizer(vocabulary: int, eos: str | None) -> object:
    """One token per letter or space. A model can also sample the other tokens, strings of letters."""
    from transformers import Qwen2Tokenizer

    letters = string.ascii_letters
    strings = (
        "".join(some) for some in itertools.chain.from_iterable(itertools.product(letters, repeat=n) for n in (1, 3, 4))
    )
    tokens = [PAD, "\u0120", *itertools.islice(strings, vocabulary - 3), EOS]  # \u0120 is the space of byte-level BPE
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        pad_token=PAD,
        eos_token=eos,
        unk_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )


class RandomPrompts(ProblemSource):
    """Prompts of random letters, one token per letter, without a task.

    Args:
        count: number of problems.
        min_letters: length of the shortest prompt, tokens.
        max_letters: length of the longest prompt, tokens.
        seed: seed of the prompts.
    """

    reward = "benchmarks.models.EvenLetters"

    def __init__(self, *, count: int = 256, min_letters: int = 12, max_letters: int = 20, seed: int = 0) -> None:
        rng = random.Random(seed)
        lengths = [rng.randint(min_letters, max_letters) for _ in range(count)]
        self._problems = [
            Problem(id=f"random-{i}", prompt="".join(rng.choices(string.ascii_letters, k=length)), answer="even")
            for i, length in enumerate(lengths)
        ]

    def train(self) -> Sequence[Problem]:
        return self._problems

    def evaluation(self) -> Mapping[str, Sequence[Problem]]:
        return {}


class EvenLetters(Reward):
    """1.0 if a completion contains an even number of lower-case letters, else 0.0.

    Random text earns it half of the time, so nearly every group of rollouts is mixed.
    """

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [1.0 - sum(map(str.islower, text)) % 2 for text in texts]
