"""The tokens that end a completion whatever the settings: EOS tokens, and the chat template's end of a turn."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_model
from problem_files import byte_tokenizer

from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.stop_tokens import end_of_turn_id, stop_token_ids

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|sep|>\n\n{{ m['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|sep|>\n\n{% endif %}"
)
# Its last message ends with another token than those before it.
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|sep|>{{ m['content'] }}"
    "{% if loop.last and m['role'] == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
)
# The end of a turn is the start of the next.
PLAIN_TURNS = "{% for m in messages %}<|start|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
# It thinks before it speaks, and wants a user's message first.
THINKING = (
    "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'].split('</think>')[-1].lstrip('\n') }}\n <|end|>\n{% endfor %}"
)


def base_tokenizer(template: str | None, *, special: bool = True) -> Any:
    """Its EOS token ends a document, as a base model's does."""
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.add_tokens(["<|start|>", "<|sep|>", "<|end|>", "<|return|>", "<|end"], special_tokens=special)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("template", "end"),
    [
        (LLAMA3, "<|end|>"),
        (HARMONY, "<|return|>"),
        (THINKING, "<|end|>"),
        (PLAIN_TURNS, None),
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}", "<|endoftext|>"),
        ("{{ raise_exception('not now') }}", None),
        ("{{ 1 + 'a' }}", None),
        ("{% broken", None),
        ("no messages at all<|end|>", None),
        ("", None),
        (None, None),
    ],
)
def test_the_token_after_an_assistants_message_is_its_end(template: str | None, end: str | None, special: bool) -> None:
    tokenizer = base_tokenizer(template, special=special)
    assert end_of_turn_id(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))


def test_all_ends_count() -> None:
    tokenizer = base_tokenizer(LLAMA3)
    eos, end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|end|>"])
    assert stop_token_ids(None, tokenizer) == {eos, end}
    assert stop_token_ids(7, tokenizer) == {7, eos, end}
    assert stop_token_ids([7, 8], base_tokenizer(None)) == {7, 8, eos}


def save_base_model(folder: Path, **config: Any) -> Any:
    """A base model with a chat template, as Qwen2.5's is: no EOS token of its folder ends a turn."""
    tokenizer = base_tokenizer(LLAMA3)
    model = make_model(vocab_size=len(tokenizer) + 1, dtype=torch.float32, eos_token_id=tokenizer.eos_token_id)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_a_base_model_ends_turns_and_is_saved_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = save_base_model(tmp_path / "base")
    ends = sorted(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|end|>"]))
    with caplog.at_level(logging.INFO, "rloop_lightning"):
        policy = Policy.load(PolicyConfig(model=str(tmp_path / "base")))
    assert sorted(policy.stop_token_ids) == ends
    assert "completions also end at <|end|>, as the chat template's turns do" in caplog.text
    policy.save(tmp_path / "policy")
    assert json.loads((tmp_path / "policy" / "generation_config.json").read_text())["eos_token_id"] == ends
    caplog.clear()
    again = Policy.load(PolicyConfig(model=str(tmp_path / "policy")))
    assert sorted(again.stop_token_ids) == ends
    assert "also end" not in caplog.text


def test_a_generation_config_that_names_the_end_is_kept(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = make_model(vocab_size=len(tokenizer) + 1, eos_token_id=tokenizer.eos_token_id)
    Policy(model, tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
