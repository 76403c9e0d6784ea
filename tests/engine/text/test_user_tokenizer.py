"""UserTokenizer: answers as a tokenizer of transformers does, or refuses."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_tokenizers import KINDS, save_tokenizer
from transformers import AutoTokenizer

from blora.engine import LLM, InvalidRequest, SamplingParams, UserTokenizer
from blora.engine.text.tokenizer import load_tokenizer

CONFIG = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "additional_special_tokens": ["<tool>"],
    "clean_up_tokenization_spaces": True,
}
TEXTS = ["the cat", "", "Hello <tool> world</s>", "日本語 é", "don't , the cat ."]
TOKENS = ["the", "</s>", "<tool>", "nowhere", "<pad>", "▁the"]
ROW = [5, 1, 7, 2, 264, 3]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[UserTokenizer, Any]:
    config = CONFIG | ({"unk_token": "<unk>"} if "byte level" not in request.param else {})
    folder = save_tokenizer(tmp_path_factory.mktemp("kind"), request.param, tokenizer_config__json=config)
    return load_tokenizer(folder).for_users, AutoTokenizer.from_pretrained(folder)


def test_a_call_gives_ids_and_masks(pair: tuple[UserTokenizer, Any]) -> None:
    ours, theirs = pair
    for text in (*TEXTS, TEXTS, tuple(TEXTS), []):
        for special in (False, True):
            expected = theirs(text, add_special_tokens=special) if text != [] else {"input_ids": []}
            found = ours(text, add_special_tokens=special)
            assert found["input_ids"] == found.input_ids == expected["input_ids"]
            assert found.attention_mask == expected.get("attention_mask", [])
    assert set(ours("the", return_attention_mask=False)) == {"input_ids"}
    assert not hasattr(ours("the"), "token_type_ids")


def test_conversions_are_those_of_transformers(pair: tuple[UserTokenizer, Any]) -> None:
    ours, theirs = pair
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.tokenize(text) == theirs.tokenize(text)
    for skip in (False, True):
        assert ours.decode(ROW, skip) == theirs.decode(ROW, skip)
        assert ours.decode([ROW, ROW[:2]], skip) == theirs.decode([ROW, ROW[:2]], skip)
        assert ours.batch_decode([ROW, ROW[:2]], skip) == theirs.batch_decode([ROW, ROW[:2]], skip)
        assert ours.convert_ids_to_tokens(ROW[:4], skip) == theirs.convert_ids_to_tokens(ROW[:4], skip)
    for cleans in (False, True, None):
        ids = ours.encode("don't , the cat .")
        expected = theirs.decode(ids, clean_up_tokenization_spaces=cleans)
        assert ours.decode(ids, clean_up_tokenization_spaces=cleans) == expected
    assert ours.convert_tokens_to_ids(TOKENS) == theirs.convert_tokens_to_ids(TOKENS)
    assert [ours.convert_tokens_to_ids(token) for token in TOKENS] == ours.convert_tokens_to_ids(TOKENS)
    assert ours.convert_ids_to_tokens(5) == theirs.convert_ids_to_tokens(5)
    assert ours.convert_tokens_to_string(["the", "cat"]) == theirs.convert_tokens_to_string(["the", "cat"])


def test_ids_come_in_any_form(pair: tuple[UserTokenizer, Any]) -> None:
    ours, _ = pair
    text = ours.decode(ROW)
    for row in (tuple(ROW), np.array(ROW), torch.tensor(ROW), iter(ROW), [np.int64(token) for token in ROW]):
        assert ours.decode(row) == text
    for rows in ([ROW, ROW], np.array([ROW, ROW]), torch.tensor([ROW, ROW]), [np.array(ROW)] * 2):
        assert ours.decode(rows) == ours.batch_decode(rows) == [text, text]
    for one in (5, np.int64(5), torch.tensor(5)):
        assert ours.decode(one) == ours.decode([5])
    assert ours.decode([]) == ""


def test_names_and_sizes_are_those_of_transformers(pair: tuple[UserTokenizer, Any]) -> None:
    ours, theirs = pair
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token"):
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert set(ours.all_special_tokens) >= set(theirs.all_special_tokens)
    assert ours.convert_tokens_to_ids(ours.all_special_tokens) == ours.all_special_ids
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.is_fast


def test_a_padding_token_may_be_chosen(pair: tuple[UserTokenizer, Any]) -> None:
    ours = copy.copy(pair[0])
    ours.pad_token = ours.eos_token
    assert (ours.pad_token, ours.pad_token_id) == ("</s>", ours.eos_token_id)


def test_copies_are_tokenizers(pair: tuple[UserTokenizer, Any]) -> None:
    ours, _ = pair
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert twin("the cat") == ours("the cat")


@pytest.mark.parametrize("name", ["padding", "truncation", "max_length", "return_tensors", "text_pair"])
def test_what_is_not_served_is_refused_by_name(pair: tuple[UserTokenizer, Any], name: str) -> None:
    ours, _ = pair
    for call in (ours, ours.encode):
        with pytest.raises(InvalidRequest, match=f"{name}: is not served; AutoTokenizer"):
            call("the", **{name: "pt"})
        call("the", **{name: None})
    with pytest.raises(AttributeError, match="AutoTokenizer has it"):
        ours.save_pretrained("here")
    for text in (5, None, [5], b"the", ["the", None]):
        with pytest.raises((InvalidRequest, TypeError)):
            ours(text)  # type: ignore[arg-type]


# Conversations.

TEMPLATE = (
    "{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.content is string or m.content is not defined %}{{ m.content }}"
    "{% else %}{{ m.content | tojson }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{{ m.reasoning_content }}{{ m.thinking }}"
    "{{ '|' ~ m.content if m.content is defined else '-' }}</s>\n{% endfor %}"
    "{{ documents | tojson if documents else '' }}{% if enable_thinking %}<think>{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
SCHEMA = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello <tool>"}],
    [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi"}, {"role": "tool", "content": "3 "}],
    [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]}],
    [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    [{"role": "assistant", "content": "yes", "reasoning": "hm", "name": None}],
    [{"role": "assistant", "tool_calls": [CALL], "thinking": "a", "reasoning_content": "b"}],
]
CALLS: list[dict[str, Any]] = [
    {},
    {"tokenize": False},
    {"return_dict": False},
    {"add_generation_prompt": True, "tokenize": False},
    {"tools": [SCHEMA], "tokenize": False},
    {"documents": [{"title": "a", "text": "b"}], "tokenize": False},
    {"enable_thinking": True, "bos_token": "<b>", "tokenize": False},
    {"chat_template": "{{ messages[0].role }}!", "tokenize": False},
    {"padding": False, "truncation": False, "max_length": None, "return_tensors": None},
]


def add(a: int) -> int:
    """
    Adds.

    Args:
        a: A number.
    """
    return a


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> tuple[UserTokenizer, Any]:
    config = CONFIG | {"chat_template": TEMPLATE}
    folder = save_tokenizer(tmp_path_factory.mktemp("chatty"), "byte fallback", tokenizer_config__json=config)
    return load_tokenizer(folder).for_users, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("arguments", CALLS, ids=json.dumps)
def test_conversations_are_rendered_as_transformers_does(
    chatty: tuple[UserTokenizer, Any], arguments: dict[str, Any]
) -> None:
    ours, theirs = chatty
    for chat in (*CHATS, CHATS):
        assert ours.apply_chat_template(chat, **arguments) == theirs.apply_chat_template(chat, **arguments)


def test_a_conversation_with_tools_has_the_template_for_tools(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]
    save_tokenizer(tmp_path, "byte level", tokenizer_config__json={"chat_template": templates})
    ours, theirs = load_tokenizer(tmp_path).for_users, AutoTokenizer.from_pretrained(tmp_path)
    for tools in (None, [], [SCHEMA]):
        rendered = [each.apply_chat_template(CHATS[0], tools=tools, tokenize=False) for each in (ours, theirs)]
        assert rendered[0] == rendered[1]


def test_functions_are_tools(chatty: tuple[UserTokenizer, Any]) -> None:
    ours, theirs = chatty
    for tools in ([add], [SCHEMA, add]):
        rendered = [each.apply_chat_template(CHATS[0], tools=tools, tokenize=False) for each in (ours, theirs)]
        assert rendered[0] == rendered[1]


@pytest.mark.parametrize("field", [True, "content", "reasoning_content"])
def test_a_final_message_is_continued_as_transformers_does(
    chatty: tuple[UserTokenizer, Any], field: bool | str
) -> None:
    ours, theirs = chatty
    template = "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content }}{{ m.content }}</s>{% endfor %}"
    for last in ({"content": "yes "}, {"content": "yes", "reasoning_content": "hm"}):
        chat = [*CHATS[0], {"role": "assistant", **last}]
        arguments = {"continue_final_message": field, "chat_template": template, "tokenize": False}
        if field == "reasoning_content" and field not in last:
            with pytest.raises(InvalidRequest, match="no 'reasoning_content' to continue"):
                ours.apply_chat_template(chat, **arguments)
        else:
            assert ours.apply_chat_template(chat, **arguments) == theirs.apply_chat_template(chat, **arguments)


def test_the_real_models_conversations_are_those_of_transformers(real_model: Path) -> None:
    ours, theirs = load_tokenizer(real_model).for_users, AutoTokenizer.from_pretrained(real_model)
    for chat in CHATS[:2]:
        for arguments in CALLS[:4]:
            assert ours.apply_chat_template(chat, **arguments) == theirs.apply_chat_template(chat, **arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"conversation": []}, "conversation: has no message"),
        ({"conversation": [{"role": "user", "content": {1}}]}, r"conversation: \[0\].content is a set"),
        ({"padding": True}, "padding: is not served"),
        ({"return_tensors": "pt"}, "return_tensors: is not served"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "cannot be true together"),
        ({"chat_template": "{{ raise_exception('no roles') }}"}, "conversation: .*no roles"),
        ({"chat_template": "{% for %}"}, "conversation: the chat template refuses it"),
        ({"tools": [{"a": object()}]}, r"tools: \[0\].a is a object"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_says_why(
    chatty: tuple[UserTokenizer, Any], arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        chatty[0].apply_chat_template(**{"conversation": CHATS[0], **arguments})


def test_a_model_without_a_template_asks_for_one(pair: tuple[UserTokenizer, Any]) -> None:
    with pytest.raises(InvalidRequest, match="chat_template: the model has no chat template; give one"):
        pair[0].apply_chat_template(CHATS[0])
    with pytest.raises(AttributeError):
        pair[0].chat_template = TEMPLATE  # type: ignore[misc]


# In the hands of a user.


def test_a_rendered_conversation_generates_what_chat_does(make_llm: Any) -> None:
    llm: LLM = make_llm()
    sampling = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    tokenizer = llm.get_tokenizer()
    assert tokenizer is llm.get_tokenizer()
    text = tokenizer.apply_chat_template(CHATS[1], tokenize=False, add_generation_prompt=True)
    (chat,) = llm.chat(CHATS[1], sampling, use_tqdm=False)
    for prompt in (text, {"prompt_token_ids": tokenizer(text).input_ids}):
        (output,) = llm.generate(prompt, sampling, use_tqdm=False)
        assert output.prompt_token_ids == chat.prompt_token_ids
    assert tokenizer.decode(chat.prompt_token_ids) == text
