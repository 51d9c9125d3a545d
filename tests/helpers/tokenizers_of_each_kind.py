"""Small tokenizers of the kinds that models have: byte-level BPE, BPE with byte fallback (SentencePiece), WordPiece."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

_TEXT = [
    "The answer is 12 — so the café's sum is 中文 7, then\n\nAnswer: the other 日本 thing? 😀 Therefore it is the end."
]
_SPECIAL = ["<pad>", "<eos>", "<unk>", "<|turn|>"]


def byte_level() -> Any:
    """A character of several bytes may lie in several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        _TEXT * 4, trainers.BpeTrainer(vocab_size=330, special_tokens=_SPECIAL, initial_alphabet=alphabet)
    )
    return _fast(backend)


def byte_fallback() -> Any:
    """A space belongs to the token after it, and is lost at the start of a text."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend.train_from_iterator(_TEXT * 4, trainers.BpeTrainer(vocab_size=420, special_tokens=[*_SPECIAL, *bytes_]))
    return _fast(_without_specials(backend, bytes_))


def word_piece() -> Any:
    """A token is a word, with a space before it, or goes on with the word before."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.train_from_iterator(_TEXT * 4, trainers.WordPieceTrainer(vocab_size=140, special_tokens=_SPECIAL))
    return _fast(backend)


def _without_specials(backend: Tokenizer, names: list[str]) -> Tokenizer:
    """The trainer takes byte tokens as special ones only; in the vocabulary they are ordinary."""
    settings = json.loads(backend.to_str())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] not in names]
    return Tokenizer.from_str(json.dumps(settings))


def _fast(backend: Tokenizer) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<|turn|>"],
    )


KINDS: Mapping[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte fallback": byte_fallback,
    "WordPiece": word_piece,
}
