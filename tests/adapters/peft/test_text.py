"""AdapterText: which of a folder's files counts, and which files are refused."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from blora.adapters import AdapterRejected, AdapterText, AddedToken, TargetModule, read_checkpoint
from blora.adapters.peft.text import TextError, read_adapter_text


def read(**files: Any) -> AdapterText:
    """files: name with "__" for "." -> content; a content other than bytes is written as JSON."""
    contents = {
        name.replace("__", "."): content if isinstance(content, bytes) else json.dumps(content).encode()
        for name, content in files.items()
    }
    return read_adapter_text(lambda name, _: contents.get(name))


TOKEN = {"id": 7, "content": "<tool>", "special": False, "normalized": False, "lstrip": True, "rstrip": False}


def test_a_folder_without_these_files_says_nothing() -> None:
    assert read() == AdapterText() and read().is_empty


def test_added_tokens_of_the_tokenizer_file_come_first_and_the_vocabulary_is_skipped() -> None:
    text = read(
        tokenizer__json={"model": {"vocab": {"a": 1}}, "added_tokens": [TOKEN, {"id": 2, "content": "<b>"}]},
        tokenizer_config__json={"added_tokens_decoder": {"9": {"content": "other"}}},
        added_tokens__json={"third": 8},
    )
    assert text.added_tokens == (AddedToken(2, "<b>"), AddedToken(7, "<tool>", lstrip=True, normalized=False))


def test_without_a_tokenizer_file_the_other_two_are_asked() -> None:
    decoder = {"9": {"content": "<x>", "special": True, "single_word": False}}
    text = read(tokenizer_config__json={"added_tokens_decoder": decoder}, added_tokens__json={"third": 8})
    assert text.added_tokens == (AddedToken(9, "<x>", special=True),)
    assert read(added_tokens__json={"third": 8, "second": 3}).added_tokens == (
        AddedToken(3, "second"),
        AddedToken(8, "third"),
    )


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"chat_template": "x"}, "x"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}, "d"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}]}, None),
        ({"chat_template": 5}, None),
        ({}, None),
    ],
)
def test_the_template_of_the_configuration(config: dict[str, Any], template: str | None) -> None:
    assert read(tokenizer_config__json=config).chat_template == template
    assert read(tokenizer_config__json=config, chat_template__jinja=b"mine").chat_template == "mine"


def test_special_tokens_are_texts_or_objects() -> None:
    config = {"eos_token": "<e>", "bos_token": {"content": "<b>"}, "add_bos_token": True, "pad_token": None}
    assert read(tokenizer_config__json=config).special_tokens == (("bos_token", "<b>"), ("eos_token", "<e>"))


def test_older_files_name_special_tokens_where_the_configuration_lists_none() -> None:
    older = {"pad_token": {"content": "[PAD]"}, "eos_token": "<end>", "additional_special_tokens": ["<tool>"]}
    config = {"eos_token": "<e>"}
    text = read(
        tokenizer_config__json=config, special_tokens_map__json=older, added_tokens__json={"[PAD]": 9, "<tool>": 8}
    )
    assert text.special_tokens == (("eos_token", "<end>"), ("pad_token", "[PAD]"))
    assert text.added_tokens == (AddedToken(8, "<tool>"), AddedToken(9, "[PAD]", special=True, normalized=False))
    text = read(tokenizer_config__json=config | {"added_tokens_decoder": {}}, special_tokens_map__json=older)
    assert text.special_tokens == (("eos_token", "<e>"),)


def test_what_the_tokenizer_file_pads_with_is_a_special_token() -> None:
    padded = {"padding": {"pad_token": "[PAD]", "pad_id": 9}}
    assert read(tokenizer__json=padded).special_tokens == (("pad_token", "[PAD]"),)
    named = read(tokenizer__json=padded, tokenizer_config__json={"pad_token": "<pad>"})
    assert named.special_tokens == (("pad_token", "<pad>"),)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"tokenizer__json": b"{"}, "tokenizer.json cannot be used"),
        ({"tokenizer__json": b"[" * 100_000}, "tokenizer.json cannot be used"),
        ({"tokenizer__json": {"added_tokens": [{"id": "7", "content": "x"}]}}, "tokenizer.json cannot be used"),
        ({"tokenizer__json": {"added_tokens": [{"id": -1, "content": "x"}]}}, "no valid id"),
        ({"tokenizer__json": {"added_tokens": [{"id": 1, "content": ""}]}}, "no valid id"),
        ({"tokenizer__json": {"added_tokens": [{"id": 1, "content": "x" * 257}]}}, "no valid id"),
        ({"tokenizer__json": {"added_tokens": [TOKEN, TOKEN]}}, "two added tokens"),
        ({"added_tokens__json": {"a": 1, "b": 1}}, "two added tokens"),
        ({"added_tokens__json": {str(index): index for index in range(5000)}}, "5000 added tokens, at most 4096"),
        ({"added_tokens__json": ["a"]}, "added_tokens.json cannot be used"),
        ({"tokenizer_config__json": []}, "tokenizer_config.json cannot be used"),
        ({"special_tokens_map__json": []}, "special_tokens_map.json cannot be used"),
        ({"tokenizer_config__json": b"\xff"}, "tokenizer_config.json cannot be used"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "added_tokens_decoder"),
        ({"tokenizer_config__json": {"added_tokens_decoder": ["x"]}}, "added_tokens_decoder"),
        ({"chat_template__jinja": b"\xff\xfe"}, "chat_template.jinja is not UTF-8"),
    ],
)
def test_what_is_malformed_is_refused_by_the_name_of_its_file(files: dict[str, Any], problem: str) -> None:
    with pytest.raises(TextError, match=problem):
        read(**files)


def test_text_is_a_part_of_the_identity(folder: Path, targets: Sequence[TargetModule]) -> None:
    plain = read_checkpoint(folder, targets)
    (folder / "README.md").write_text("says nothing")
    assert read_checkpoint(folder, targets).digest == plain.digest
    (folder / "chat_template.jinja").write_text("mine")
    changed = read_checkpoint(folder, targets)
    assert changed.text == AdapterText(chat_template="mine") and changed.digest != plain.digest


def test_the_files_are_read_as_safely_as_the_weights(
    folder: Path, targets: Sequence[TargetModule], tmp_path: Path
) -> None:
    template = folder / "chat_template.jinja"
    outside = tmp_path / "outside"
    outside.write_text("secret")
    template.symlink_to(outside)
    with pytest.raises(AdapterRejected, match="lies outside the allowed folders"):
        read_checkpoint(folder, targets, [folder])
    template.unlink()
    os.mkfifo(template)
    with pytest.raises(AdapterRejected, match="is not a regular file"):
        read_checkpoint(folder, targets)
    template.unlink()
    template.write_bytes(b"x" * (257 << 10))
    with pytest.raises(AdapterRejected, match="at most 262144 are read"):
        read_checkpoint(folder, targets)
    template.unlink()
    template.symlink_to(tmp_path / "nowhere")
    with pytest.raises(AdapterRejected, match="cannot be read"):
        read_checkpoint(folder, targets)
