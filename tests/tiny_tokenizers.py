"""Tiny tokenizers, one of each kind that models have: they differ in how they write spaces and unknown characters."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CORPUS = ["Hello world, the cat sat on the mat. It's a tool; a tool is 12345 times better!", "the world of the cat"]
SPECIAL = ["<unk>", "<s>", "</s>"]
CHARACTERS = sorted(set("".join(CORPUS)) - {" "})
PIECES = ["th", "the", "▁th", "▁the", "▁c", "ca", "▁ca", "▁cat", "▁w", "or", "▁wor", "ld", "▁world", "el", "He", "▁He"]
MERGES = [("t", "h"), ("th", "e"), ("▁", "th"), ("▁", "the"), ("▁", "c"), ("c", "a"), ("▁c", "a"), ("▁ca", "t")]
MERGES += [("▁", "w"), ("o", "r"), ("▁w", "or"), ("l", "d"), ("▁wor", "ld"), ("e", "l"), ("H", "e"), ("▁", "He")]


def byte_level() -> Tokenizer:
    """GPT-2's kind, with a few merges: every text is made of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t"), ("æ", "Ĺ")]
    vocabulary = [*SPECIAL, *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL[1:])
    return tokenizer


def _sentencepiece(*unknown: str, **options: Any) -> Tokenizer:
    vocabulary = [*SPECIAL, *unknown, "▁", *CHARACTERS, *PIECES]
    ids = {text: index for index, text in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(ids, MERGES, unk_token="<unk>", fuse_unk=True, **options))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama 2's kind: a character that has no token is written in bytes."""
    tokenizer = _sentencepiece(*(f"<0x{value:02X}>" for value in range(256)), byte_fallback=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def metaspace() -> Tokenizer:
    """T5's kind: a space is a part of the word behind it, and a character that has no token is lost."""
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT's kind: words stand apart, and a word's later pieces begin with ##."""
    words = ["[UNK]", *SPECIAL, "the", "cat", "sat", "##s", "it", "'", "s", ",", ".", "!", "do", "n", "t"]
    tokenizer = Tokenizer(models.WordPiece({text: index for index, text in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "metaspace": metaspace,
    "word piece": word_piece,
}


def save_tokenizer(folder: Path, kind: str, **files: Any) -> Path:
    """Saves a tokenizer and further files of its folder; `__` in a name stands for a dot, content is JSON."""
    KINDS[kind]().save(str(folder / "tokenizer.json"))
    for name, content in ({"config__json": {"model_type": "llama"}} | files).items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))
    return folder
