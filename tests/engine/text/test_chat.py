"""Chats: what a user gives is checked, and comes into one form."""

import copy
from types import MappingProxyType
from typing import Any

import pytest

from blora.engine.errors import InvalidRequest
from blora.engine.text.chat import MAX_TEMPLATE_LENGTH, Chat

HELLO = {"role": "user", "content": "hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"b": 1, "a": [2.5, null]}'}}


def message(**fields: Any) -> dict[str, Any]:
    (only,) = Chat.read({"messages": [{"role": "assistant", **fields}]}).messages
    return only


def test_a_plain_conversation_is_taken_as_it_is() -> None:
    assert Chat.read({"messages": [HELLO]}) == Chat(messages=[HELLO])


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (None, ""),
        ("", ""),
        ([], ""),
        (["a"], [{"type": "text", "text": "a"}]),
        (({"text": "a", "type": "text"}, {"text": "b"}), [{"type": "text", "text": t} for t in "ab"]),
        ([{"type": "refusal", "refusal": "no"}], [{"type": "text", "text": "no"}]),
        ([{"text": "a", "type": "input_text", "cache_control": {"x": 1}}],
         [{"type": "text", "text": "a", "cache_control": {"x": 1}}]),
    ],
)  # fmt: skip
def test_contents(content: Any, read: Any) -> None:
    assert message(content=content)["content"] == read
    assert message()["content"] == ""


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"b": 1, "a": [2.5, null]}', {"b": 1, "a": [2.5, None]}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {}),
        ({}, {}),
        ("{}", {}),
    ],
)
def test_arguments_of_tool_calls_become_mappings(arguments: Any, read: Any) -> None:
    function = {"name": "add", "arguments": arguments}
    assert message(tool_calls=[{"id": "c1", "function": function}])["tool_calls"] == [
        {"id": "c1", "function": {"name": "add", "arguments": read}}
    ]
    assert message(tool_calls=[function])["tool_calls"] == [{"name": "add", "arguments": read}]
    assert list(message(tool_calls=[CALL])["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]


def test_fields_come_in_one_order_and_none_is_lost() -> None:
    given = {
        "x": None,
        "tool_call_id": "c1",
        "name": "n",
        "content": "a",
        "role": "tool",
        "parsed": {"b": [1], "a": 2.0},
    }
    read = message(**given)
    assert list(read) == ["role", "content", "name", "tool_call_id", "x", "parsed"]
    assert read == given and repr(read["parsed"]) == repr(given["parsed"])
    assert message(name=None, tool_calls=None, tool_call_id=None) == message(tool_calls=[]) == message()


def test_reasoning_has_all_its_names() -> None:
    names = ("reasoning_content", "reasoning", "thinking")
    for name in names:
        assert message(**{name: "because"}) == message() | dict.fromkeys(names, "because")
    assert message(reasoning=None) == message() | {"reasoning": None}


def test_what_is_read_is_a_copy() -> None:
    arguments = {"messages": [{"role": "assistant", "tool_calls": [copy.deepcopy(CALL)]}], "tools": [{"a": {"b": 1}}]}
    before = copy.deepcopy(arguments)
    chat = Chat.read(arguments)
    chat.messages[0]["tool_calls"][0]["function"]["name"] = chat.tools[0]["a"] = "changed"  # type: ignore[index]
    assert arguments == before


def test_a_missing_argument_and_none_are_the_default() -> None:
    names = ("tools", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
    assert Chat.read({"messages": [HELLO], **dict.fromkeys(names)}) == Chat.read({"messages": [HELLO], "tools": []})
    assert Chat.read({"messages": (MappingProxyType(HELLO),)}) == Chat(messages=[HELLO])


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        ({}, "messages", "is not a list"),
        ({"messages": "hello"}, "messages", "is not a list"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["hello"]}, "messages", r"\[0\] is a str"),
        ({"messages": [HELLO, {"content": "a"}]}, "messages", r"\[1\]\.role is missing"),
        ({"messages": [{"role": 1, "content": "a"}]}, "messages", r"\[0\]\.role is not a text"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages", r"\[0\]\.content is neither"),
        ({"messages": [HELLO | {"name": 1}]}, "messages", r"\[0\]\.name is not a text"),
        ({"messages": [HELLO | {"tool_call_id": 1}]}, "messages", r"\[0\]\.tool_call_id"),
        ({"messages": [HELLO | {"x": {"y": {1, 2}}}]}, "messages", r"\[0\]\.x\.y is a set"),
        ({"messages": [HELLO | {"x": float("nan")}]}, "messages", r"\[0\]\.x is nan"),
        ({"messages": [HELLO | {"content": "\ud800"}]}, "messages", r"\[0\]\.content is not valid Unicode"),
        ({"messages": [HELLO | {1: 2}]}, "messages", r"\[0\] has the key 1"),
        ({"messages": [HELLO | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages",
         r"\[0\]\.content\[0\] is a part of type 'image_url'"),
        ({"messages": [HELLO | {"content": [{"type": []}]}]}, "messages", "part of type"),
        ({"messages": [HELLO | {"content": [{"image_url": {"url": "x"}}]}]}, "messages", r"content\[0\]\.text"),
        ({"messages": [HELLO | {"content": [1]}]}, "messages", r"\[0\]\.content\[0\] is neither"),
        ({"messages": [HELLO | {"tool_calls": {}}]}, "messages", r"\[0\]\.tool_calls is not a list"),
        ({"messages": [HELLO | {"tool_calls": ["add"]}]}, "messages", r"tool_calls\[0\]"),
        ({"messages": [HELLO | {"tool_calls": [{"type": "custom", "custom": {}}]}]}, "messages", r"tool_calls\[0\]"),
        ({"messages": [HELLO | {"tool_calls": [{"function": "add"}]}]}, "messages", r"tool_calls\[0\]\.function"),
        *(({"messages": [HELLO | {"tool_calls": [{"function": {"arguments": arguments}}]}]}, "messages",
           r"tool_calls\[0\]\.function\.arguments\S* is n")
          for arguments in ("{", "[1]", "5", [1], 5, "[" * 100_000, "9" * 10_000, '{"a": ' * 99 + "1" + "}" * 99)),
        ({"messages": [HELLO], "tools": {"a": 1}}, "tools", "is not a list"),
        ({"messages": [HELLO], "tools": [print]}, "tools", r"\[0\] is a builtin_function"),
        ({"messages": [HELLO], "tools": [{"x": object()}]}, "tools", r"\[0\]\.x is a object"),
        ({"messages": [HELLO], "chat_template": b"a"}, "chat_template", "is a bytes"),
        ({"messages": [HELLO], "chat_template": "a" * (MAX_TEMPLATE_LENGTH + 1)}, "chat_template", "characters"),
        ({"messages": [HELLO], "chat_template_kwargs": [1]}, "chat_template_kwargs", "is not a mapping"),
        ({"messages": [HELLO], "chat_template_kwargs": {"a": {1}}}, "chat_template_kwargs", r"\.a is a set"),
        ({"messages": [HELLO], "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", r"\.messages"),
        ({"messages": [HELLO], "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", r"\.tokenize"),
        ({"messages": [HELLO], "chat_template_content_format": "html"}, "chat_template_content_format", "html"),
        ({"messages": [HELLO], "add_generation_prompt": 1}, "add_generation_prompt", "not a boolean"),
        ({"messages": [HELLO], "continue_final_message": "content", "add_generation_prompt": False},
         "continue_final_message", "not a boolean"),
        ({"messages": [HELLO], "continue_final_message": True}, "continue_final_message", "add_generation_prompt"),
    ],
    ids=lambda value: f"{value!r:.60}",
)  # fmt: skip
def test_a_fault_is_named_by_its_place(arguments: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        Chat.read(arguments)
    assert caught.value.field == field
