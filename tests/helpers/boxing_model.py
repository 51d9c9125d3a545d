r"""A tiny model of a given architecture that has something to learn: it boxes answers, the right one now and then.

After any context, it draws one of five tokens: `\boxed{1}`, `\boxed{2}`, the rare `\boxed{3}`, a letter, the end of its
turn. So completions are short and end, problems with the answers 1 and 2 are solved often, those with the answer 3
seldom.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from builders import make_model
from problem_files import byte_tokenizer

END, DOCUMENT_END = "<|im_end|>", "<|endoftext|>"
DRAWN = {r"\boxed{1}": 0.25, r"\boxed{2}": 0.25, r"\boxed{3}": 0.06, "x": 0.14, END: 0.3}
"""Tokens by their probability."""

SYSTEM_MESSAGE = "You solve problems."
"""Of the chat template, where the messages have none, as Qwen2.5's."""

CHAT_TEMPLATE = (
    f"{{%- if messages[0]['role'] != 'system' %}}<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|>\n{{% endif %}}"
    "{%- for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WIDTH = 64
_HEIGHT = 2.0  # of the drawn tokens over all others, in units of the first coordinate, which is sqrt(_WIDTH) nats


def save_boxing_model(folder: Path, architecture: str, **changes: Any) -> Path:
    """Write the model and its tokenizer, a base model's: its EOS token ends documents, its chat template ends turns.

    Args:
        changes: of the architecture's config.
    """
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": DOCUMENT_END, "additional_special_tokens": ["<|im_start|>", END]})
    tokenizer.add_tokens([text for text in DRAWN if len(text) > 1 and text != END])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    model = make_model(
        architecture,
        dtype=torch.bfloat16,
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": _WIDTH,
            "intermediate_size": 128,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "initializer_range": 0.05,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **changes,
        },
    )
    _draw_only(model, tokenizer)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _draw_only(model: transformers.PreTrainedModel, tokenizer: Any) -> None:
    """Make the first coordinate of every embedding large, so that it is constant after the last norm.

    The head's first coordinate is then the logit of a token, up to a little that depends on the context.
    """
    embedding, head = (layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings()))
    embedding[:, 0] = 1.0
    head[:, 0] = 1.0
    for text, probability in DRAWN.items():
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        head[token, 0] += _HEIGHT + math.log(probability) / math.sqrt(_WIDTH)
