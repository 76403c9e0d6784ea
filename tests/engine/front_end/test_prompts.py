"""Every form of prompt is read as the same tokens, and is cut alike."""

from array import array
from collections import UserDict, deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_tokenizers import byte_fallback, byte_level
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding

from blora.engine.errors import InvalidRequest
from blora.engine.facts import Facts
from blora.engine.front_end.calls import pair_up
from blora.engine.front_end.prompts import PromptReader, check_has_rows
from blora.engine.front_end.validator import num_kept_tokens
from blora.engine.text.text_work import TextWork, tokenize
from blora.engine.text.tokenizer import Tokenizer
from blora.scheduler import SamplingParams

FACTS = Facts(vocab_size=100, max_model_len=12, block_size=4, num_pages=12)
BOS = 9
ONE, TWO = [3, 1, 4], [1, 5]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Its tokens are digits, and it puts BOS before every text."""
    backend = Backend(models.WordLevel({str(digit): digit for digit in range(10)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = TemplateProcessing(single="9 $A", special_tokens=[("9", BOS)])
    return Tokenizer(backend, {}, "{{ messages[0].content }}")


def read(prompts: Any, tokenizer: Tokenizer, keep_last: int | None = None) -> list[list[int]]:
    reader = PromptReader(FACTS)
    calls = pair_up(prompts, None, None, None)
    return [read_one(reader, call.prompt, tokenizer, keep_last) for call in calls]


def read_one(reader: PromptReader, prompt: Any, tokenizer: Tokenizer, keep_last: int | None = None) -> list[int]:
    parts = reader.take_apart(prompt, TextWork(keep_last=keep_last))
    return reader.token_ids(parts, tokenize(parts.work, tokenizer, FACTS), tokenizer)


MAKERS = [list, tuple, deque, np.array, torch.tensor, lambda ids: array("q", ids), lambda ids: np.array(ids, "uint16")]


@pytest.mark.parametrize("make", MAKERS)
def test_tokens_of_any_kind_are_one_prompt(tokenizer: Tokenizer, make: Any) -> None:
    assert read(make(ONE), tokenizer) == [ONE]
    assert read([make(ONE), make(TWO)], tokenizer) == [ONE, TWO]
    assert read({"prompt_token_ids": make(ONE), "prompt": None, "multi_modal_data": None}, tokenizer) == [ONE]
    assert read([{"prompt_token_ids": make(TWO), "prompt": "15"}, make(ONE), "3"], tokenizer) == [TWO, ONE, [BOS, 3]]
    assert {type(token) for token in read(make(ONE), tokenizer)[0]} == {int}


@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_a_matrix_is_a_batch(tokenizer: Tokenizer, library: Any) -> None:
    matrix = library([[1, 2], [3, 4], [5, 6]])
    assert read(matrix, tokenizer) == [[1, 2], [3, 4], [5, 6]]
    assert read(matrix[:1], tokenizer) == [[1, 2]]
    assert read(library([[7], [8]]), tokenizer) == [[7], [8]]
    assert read([matrix[:1], matrix[1:2]], tokenizer) == [[1, 2], [3, 4]]
    assert read({"prompt_token_ids": matrix[:1]}, tokenizer) == [[1, 2]]
    assert read([library(3), library(4)], tokenizer) == [[3, 4]]  # a list of numbers


def test_an_array_of_texts_is_a_batch(tokenizer: Tokenizer) -> None:
    assert read(np.array(["12", "3"]), tokenizer) == [[BOS, 1, 2], [BOS, 3]]
    assert read(np.array(["12", "3"], dtype=object), tokenizer) == [[BOS, 1, 2], [BOS, 3]]


@pytest.mark.parametrize("kind", [BatchEncoding, dict, UserDict])
@pytest.mark.parametrize("library", [list, np.array, torch.tensor])
def test_what_a_tokenizer_of_transformers_returns(tokenizer: Tokenizer, kind: Any, library: Any) -> None:
    one = kind({"input_ids": library(ONE), "attention_mask": library([1, 1, 1]), "token_type_ids": library([0, 0, 0])})
    assert read(one, tokenizer) == [ONE]
    assert read([one, kind({"input_ids": library([TWO])})], tokenizer) == [ONE, TWO]
    left = {"input_ids": library([ONE, [0, *TWO]]), "attention_mask": library([[1, 1, 1], [0, 1, 1]])}
    assert read(kind(left), tokenizer) == [ONE, TWO]
    right = {"input_ids": library([[*TWO, 0], ONE]), "attention_mask": library([[1, 1, 0], [1, 1, 1]])}
    assert read(kind(right), tokenizer) == [TWO, ONE]
    assert read(kind({"input_ids": library([ONE])}), tokenizer) == [ONE]


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (np.array([1.0, 2.0]), "prompt"),
        (torch.tensor([1.0]), "prompt"),
        (np.array([True, False]), "prompt"),
        ([np.array([[1, 2], [3, 4]])], "prompt"),
        (np.zeros((2, 2, 2), dtype=int), "prompt"),
        (np.arange(100), "prompt"),
        ({"prompt_token_ids": np.zeros((2, 2), dtype=int)}, "prompt_token_ids"),
        ({"prompt_token_ids": "12"}, "prompt_token_ids"),
        ({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1]]}, "attention_mask"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "attention_mask"),
        ({"input_ids": "12"}, "input_ids"),
        ({"input_ids": [1, 2], "pixel_values": [0.5]}, "prompt"),
        ({"input_ids": [[1, 2]], "pixel_values": [0.5]}, "prompt"),
    ],
)
def test_what_is_no_prompt_is_refused(tokenizer: Tokenizer, prompt: Any, field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        read(prompt, tokenizer)


LONG = list(range(1, 9)) * 3
TEXT = "".join(map(str, LONG))


@pytest.mark.parametrize("keep", [1, 2, 5, 12])
def test_a_longer_prompt_is_cut_on_the_left(tokenizer: Tokenizer, keep: int) -> None:
    for tokens in (LONG, np.array(LONG), deque(LONG), {"prompt_token_ids": LONG}, {"input_ids": torch.tensor([LONG])}):
        assert read(tokens, tokenizer, keep) == [LONG[-keep:]]
    cut = [BOS, *LONG[-keep + 1 :]] if keep > 1 else [BOS]  # BOS stays and counts, as in vLLM
    assert read(TEXT, tokenizer, keep) == [cut]
    chat = {"messages": [{"role": "user", "content": TEXT}]}
    assert read(chat, tokenizer, keep) == [LONG[-keep:]]
    assert read([[4], {"prompt": "3"}], tokenizer, 2) == [[4], [BOS, 3]]


def test_a_text_beyond_all_bounds_is_cut_before_it_is_read(tokenizer: Tokenizer) -> None:
    text = TEXT * 100
    with pytest.raises(InvalidRequest, match="cannot fit"):
        read(text, tokenizer)
    assert read(text, tokenizer, 4) == [[BOS, *LONG[-3:]]]
    with pytest.raises(InvalidRequest, match="24 tokens are more than the 12 allowed"):
        read(LONG, tokenizer)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, None),
        ({"truncate_prompt_tokens": 5}, 5),
        ({"truncate_prompt_tokens": -1, "max_tokens": 4}, 8),
        ({"truncate_prompt_tokens": -1, "max_tokens": 11}, 1),
        ({"truncate_prompt_tokens": -1, "max_tokens": 12}, 11),
        ({"truncate_prompt_tokens": -1, "max_tokens": None}, 11),
        ({"truncate_prompt_tokens": -1, "max_tokens": None, "min_tokens": 3}, 9),
        ({"truncate_prompt_tokens": -1, "max_tokens": 2, "min_tokens": 3}, 9),
    ],
)
def test_minus_one_leaves_room_for_the_output(fields: dict[str, Any], kept: int | None) -> None:
    assert num_kept_tokens(SamplingParams(**fields), FACTS) == kept


# Special tokens.


def test_a_second_bos_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer, reader = Tokenizer(byte_fallback(), {"bos_token": "<s>"}, None), PromptReader(FACTS)
    texts: list[Any] = ["the", " <s>the", "the<s>", {"prompt_token_ids": [1, 1, 5]}]
    for text in texts:
        read_one(reader, text, tokenizer)
    assert not caplog.records
    for text in ("<s>the", {"prompt": "<s>cat"}, "<s>the"):
        assert read_one(reader, text, tokenizer)[:2] == [1, 1]
    (record,) = caplog.records
    assert "begins with '<s>'" in record.getMessage() and "messages to chat()" in record.getMessage()


def test_a_text_may_begin_with_the_only_bos(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer(byte_level(), {"bos_token": "<s>"}, None)
    assert tokenizer.first_token_id is None
    for text in ("<s>the", "<s><s>the"):
        read_one(PromptReader(FACTS), text, tokenizer)
    assert not caplog.records


def test_a_token_that_the_model_has_no_row_for_is_named(tokenizer: Tokenizer) -> None:
    narrow = replace(FACTS, vocab_size=8)
    check_has_rows([BOS, 3], tokenizer, FACTS)
    check_has_rows([99, 1 << 40, -1], tokenizer, narrow)  # no tokens of the tokenizer
    with pytest.raises(InvalidRequest, match="prompt: holds '9', the token 9, and the model's vocabulary has 8: leave"):
        check_has_rows([3, BOS], tokenizer, narrow)
