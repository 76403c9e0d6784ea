"""Tokens that a model's folder names beside its tokenizer.json: read as transformers' AutoTokenizer reads them."""

from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import KINDS, save_tokenizer
from transformers import AutoTokenizer

from blora.engine.errors import InvalidRequest
from blora.engine.facts import Facts
from blora.engine.front_end.prompts import check_has_rows
from blora.engine.model_files.config import UnsupportedModel
from blora.engine.text.tokenizer import load_tokenizer


def token(content: str, **flags: Any) -> dict[str, Any]:
    return {"content": content, **flags}


def typed(content: str, **flags: Any) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": content, **flags}


def decoder(*tokens: dict[str, Any], first: int = 400) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(first + index): token for index, token in enumerate(tokens)}}


# What the folder says beside tokenizer.json: of its files the names, with "__" for a dot.
FOLDERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "empty": {"tokenizer_config__json": {}},
    "decoder": {"tokenizer_config__json": decoder(token("<tool>"), token("<end>", special=True))},
    "decoder, unordered": {
        "tokenizer_config__json": {"added_tokens_decoder": {"410": token("<tool>"), "401": token("<end>")}}
    },
    "decoder, strips": {"tokenizer_config__json": decoder(token("<tool>", lstrip=True, rstrip=True, special=True))},
    "decoder, single word": {"tokenizer_config__json": decoder(token("cat", single_word=True))},
    "decoder, normalized": {"tokenizer_config__json": decoder(token("the cat", normalized=True), token("tool"))},
    "decoder, not normalized": {
        "tokenizer_config__json": decoder(token("the cat", normalized=False), token("  ", normalized=False))
    },
    "decoder changes flags": {
        "tokenizer_config__json": {"added_tokens_decoder": {"2": token("</s>", special=False, lstrip=True)}}
    },
    "decoder, eos becomes special": {
        "tokenizer_config__json": {"eos_token": "<end>", **decoder(token("<end>", special=False))}
    },
    "empty decoder": {
        "tokenizer_config__json": {"added_tokens_decoder": {}, "eos_token": "<end>"},
        "special_tokens_map__json": {"eos_token": "</s>", "pad_token": "<pad>"},
        "added_tokens__json": {"<tool>": 400},
    },
    "eos": {"tokenizer_config__json": {"eos_token": "<end>"}},
    "eos, typed": {"tokenizer_config__json": {"eos_token": typed("<end>", lstrip=True, normalized=False)}},
    "eos in the vocabulary": {"tokenizer_config__json": {"eos_token": "the"}},
    "names": {
        "tokenizer_config__json": {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "cls_token": None,
            "mask_token": "<mask>",
        }
    },
    "additional": {"tokenizer_config__json": {"additional_special_tokens": ["<tool>", typed("<end>", rstrip=True)]}},
    "extra": {"tokenizer_config__json": {"extra_special_tokens": ["<tool>", "<end>"]}},
    "extra by name": {"tokenizer_config__json": {"extra_special_tokens": {"image_token": "<tool>"}}},
    "extra beside additional": {
        "tokenizer_config__json": {"extra_special_tokens": ["<tool>"], "additional_special_tokens": ["<end>"]}
    },
    "no extra beside additional": {
        "tokenizer_config__json": {"extra_special_tokens": [], "additional_special_tokens": ["<end>"]}
    },
    "additional in the vocabulary": {"tokenizer_config__json": {"additional_special_tokens": ["the", "</s>"]}},
    "own names": {"tokenizer_config__json": {"tool_token": "<tool>", "end_token": typed("<end>")}},
    "map": {"special_tokens_map__json": {"eos_token": "<end>", "pad_token": token("<pad>", lstrip=True)}},
    "map over config": {
        "tokenizer_config__json": {"eos_token": "</s>"},
        "special_tokens_map__json": {"eos_token": token("<end>", single_word=False, normalized=True)},
    },
    "map, additional": {"special_tokens_map__json": {"additional_special_tokens": ["<tool>", "<end>"]}},
    "map, additional beside config's": {
        "tokenizer_config__json": {"additional_special_tokens": ["<tool>"]},
        "special_tokens_map__json": {"additional_special_tokens": ["<end>"]},
    },
    "map, extra": {
        "tokenizer_config__json": {"extra_special_tokens": ["<tool>"]},
        "special_tokens_map__json": {"extra_special_tokens": [token("<end>", lstrip=True), "<tool>"]},
    },
    "map, extra by name": {"special_tokens_map__json": {"extra_special_tokens": {"image_token": "<tool>"}}},
    "added": {"added_tokens__json": {"<tool>": 400, "<end>": 401}},
    "added, special": {
        "tokenizer_config__json": {"eos_token": "<end>", "extra_special_tokens": ["<tool>"]},
        "added_tokens__json": {"<tool>": 401, "<end>": 400, "<more>": 402},
    },
    "added, special by the map": {
        "special_tokens_map__json": {"additional_special_tokens": ["<tool>"], "pad_token": "<pad>"},
        "added_tokens__json": {"<tool>": 400, "<pad>": 401},
    },
    "added and decoder": {
        "tokenizer_config__json": decoder(token("<tool>")),
        "added_tokens__json": {"<end>": 401},
    },
    "bos and eos": {
        "tokenizer_config__json": {
            "add_bos_token": True,
            "add_eos_token": True,
            "bos_token": "<s>",
            "eos_token": "</s>",
        }
    },
    "no bos": {"tokenizer_config__json": {"add_bos_token": False, "bos_token": "<s>", "legacy": True}},
    "cleaned": {"tokenizer_config__json": {"clean_up_tokenization_spaces": True}},
    "split": {"tokenizer_config__json": {"split_special_tokens": True, "eos_token": "<end>"}},
    "spaces": {"tokenizer_config__json": {"additional_special_tokens": [" <tool>", "\n", "<end>\n"]}},
    "foreign": {
        "tokenizer_config__json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 10**30,
            "sp_model_kwargs": {},
            "padding_side": "left",
            "eos_token": "<end>",
            "chat_template": "{{ eos_token }}",
        }
    },
}

TEXTS = [
    "",
    "the cat",
    "Hello world, it's <tool> a cat.<end>",
    "a  <tool>  b <end>\n<pad><mask>",
    "<tool><end></s><s>x",
    " the cat sat on the mat the cats, concatenate cat",
    "</s> don't ! , do n't it 's",
    "日本語 <tool>日本語<end> é 👍",
    "<end>\n\n <tool>",
    "[UNK] <unk> <more>",
]


# Folders in which the kind of the tokenizer makes a difference; the others are read the same way for each kind.
FOR_EVERY_KIND = [name for name in FOLDERS if name.startswith(("decoder", "names", "cleaned", "split", "spaces"))]
CASES = [(name, "byte fallback") for name in FOLDERS]
CASES += [(name, kind) for name in FOR_EVERY_KIND for kind in KINDS if kind != "byte fallback"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_folder_is_read_as_transformers_reads_it(name: str, kind: str, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, kind, **FOLDERS[name])
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.eos_token_id == theirs.eos_token_id


def test_what_tokenizer_json_pads_with_is_a_name_too(tmp_path: Path) -> None:
    backend = KINDS["byte level"]()
    backend.enable_padding(pad_token="<pad>", pad_id=266)
    save_tokenizer(tmp_path, "byte level")
    backend.save(str(tmp_path / "tokenizer.json"))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map == {"pad_token": "<pad>"}
    assert ours.encode("a<pad>") == theirs.encode("a<pad>") == [67, 266]


# transformers cannot load these folders any more. Older versions wrote them.
OLDER: dict[str, dict[str, Any]] = {
    "objects without a type": {"tokenizer_config__json": {"eos_token": token("<end>"), "pad_token": token("<tool>")}},
    "a list of objects": {
        "special_tokens_map__json": {
            "additional_special_tokens": [token("<tool>", lstrip=False), token("<end>", lstrip=False)]
        }
    },
}


@pytest.mark.parametrize("name", OLDER)
def test_an_object_without_a_type_is_a_special_token(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, "byte level", **OLDER[name]))
    ids = [tokenizer.token_id("<tool>"), tokenizer.token_id("<end>")]
    assert tokenizer.encode("<tool><end>") == ids
    assert tokenizer.decode(tokenizer.encode("a<tool>b<end>")) == "ab"


def test_a_flag_is_no_token(tmp_path: Path) -> None:
    config = {"add_bos_token": True, "eos_token": None, "pad_token": 0}
    assert load_tokenizer(save_tokenizer(tmp_path, "byte level", tokenizer_config__json=config)).special_tokens == {}


def test_a_token_that_cannot_have_the_id_of_its_file_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_tokenizer(save_tokenizer(tmp_path, "byte level", tokenizer_config__json=decoder(token("<tool>"))))
    assert "'<tool>' the id 400, but the next one is 266" in caplog.text


PADDED: list[dict[str, Any]] = [
    {"tokenizer_config__json": {"pad_token": "[PAD]"}},
    {"tokenizer_config__json": decoder(token("[PAD]"), first=266)},
    {"tokenizer_config__json": {"additional_special_tokens": ["[PAD]"]}},
    {"special_tokens_map__json": {"pad_token": token("[PAD]")}},
    {"added_tokens__json": {"[PAD]": 266}},
]


@pytest.mark.parametrize("files", PADDED, ids=str)
def test_a_token_beyond_the_vocabulary_is_refused_wherever_it_is_named(files: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, "byte level", **files))
    facts = Facts(vocab_size=266, max_model_len=16, block_size=4, num_pages=16)
    with pytest.raises(InvalidRequest, match=r"holds '\[PAD\]', the token 266, .* has 266: leave it out"):
        check_has_rows(tokenizer.encode("a[PAD]b"), tokenizer, facts)


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": ["<tool>"]},
        {"added_tokens_decoder": {"first": token("<tool>")}},
        {"added_tokens_decoder": {"400": {"special": True}}},
        {"extra_special_tokens": [None]},
        {"eos_token": {"content": 5}},
    ],
)
def test_a_file_that_names_no_tokens_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=f"{tmp_path} names cannot be used"):
        load_tokenizer(save_tokenizer(tmp_path, "byte level", tokenizer_config__json=config))
