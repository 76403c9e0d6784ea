"""A conversation gives the same tokens in process and over gRPC: all of it is carried, or the fault is named."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_llm import FakeLLM, running
from hypothesis import given
from hypothesis import strategies as st
from shared_engine import shared_engine
from tiny import make_model

from blora.engine import LLM, AsyncLLM, Chat, InvalidRequest, SamplingParams
from blora.engine.server import convert
from blora.engine.text.tokenizer import load_tokenizer
from blora.engine.text.wire_chat import MAX_ITEMS, MAX_JSON
from blora.proto import calls
from blora.proto.client import Client
from blora.proto.v1 import generation_pb2
from blora.scheduler import RequestOutputKind

FIRST = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
HI = {"role": "user", "content": "Hi"}
ADD = {"name": "add", "description": "Adds numbers.", "parameters": {"type": "object", "required": ["b", "a"]}}
TOOL = {"type": "function", "function": ADD}
SHOW_ALL = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{{ tools | tojson }}{{ x | default('-') | tojson }}"


def call(arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}, **fields}


def said(**fields: Any) -> list[dict[str, Any]]:
    return [HI, {"role": "assistant", **fields}]


# Each is a list of messages, and the options that go with it.
CONVERSATIONS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([HI], {}),
    ([{"role": "system", "content": "Söid 東京 🎉\r\n\t\0"}, HI], {}),
    (said(content=""), {}),
    (said(content=None), {}),
    (said(), {}),
    (said(content=[]), {}),
    (said(content=["a", "b"]), {}),
    (said(content=[{"type": "text", "text": "a"}, {"text": ""}]), {}),
    (said(content=({"text": "a", "cache_control": {"type": "ephemeral"}, "type": "input_text"},)), {}),
    (said(content=[{"type": "refusal", "refusal": "no"}]), {}),
    (said(content="a"), {}),
    (said(content=None), {}),
    (said(content=["a", {"text": "b", "n": 1}]), {}),
    (said(content=["a", "b"]), {"chat_template_content_format": "openai"}),
    ([{"role": "user", "content": "a", "name": "Ann"}, {"role": "user", "content": "b", "name": ""}], {}),
    (said(tool_calls=[call('{"b": 1, "a": [2.5, null, true]}')]), {}),
    (said(content=None, tool_calls=[call({"b": 1, "a": 1.0, "c": -0.0, "d": 1e300}), call("", index=0)]), {}),
    (said(content="Let me see.", tool_calls=[{"name": "add", "arguments": {"z": {"y": {"x": []}}}}]), {}),
    (said(content="a", tool_calls=[], name=None, tool_call_id=None), {}),
    ([*said(tool_calls=[call("{}")]), {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"}], {}),
    ([{"role": "tool", "content": ["3", "4"], "tool_call_id": ""}], {}),
    (said(reasoning_content="because", content="yes"), {}),
    (said(thinking="because", refusal=None, audio=None, annotations=[]), {}),
    ([{"z": 1, "parsed": {"b": [1, 1.0, "1"], "a": {}}, "content": "x", "role": "assistant", "": "é\u2028"}], {}),
    ([{"role": "user", "content": "x", "big": (1 << 63) - 1, "small": -(1 << 62), "third": 0.1 + 0.2}], {}),
    ([HI], {"tools": [TOOL]}),
    ([HI], {"tools": ({"z": 1, "a": {"c": 1, "b": 2.0}}, TOOL)}),
    ([HI], {"tools": []}),
    ([HI], {"chat_template_kwargs": {"x": {"b": [False, None, 3], "a": "é"}, "enable_thinking": False}}),
    ([HI], {"add_generation_prompt": False}),
    (said(content="and so on "), {"add_generation_prompt": False, "continue_final_message": True}),
]  # fmt: skip


def over_the_wire(prompt: Any, options: dict[str, Any]) -> dict[str, Any]:
    request = calls.generate_request(prompt, None, **options)
    received = convert.parse(generation_pb2.GenerateRequest, request.SerializeToString())
    return converted(received)


def converted(request: generation_pb2.GenerateRequest) -> dict[str, Any]:
    """A long conversation is converted in another process."""
    call = convert.generate_call(request, SamplingParams(), RequestOutputKind.DELTA, FakeLLM().most_listed(), {})
    prompt = call.prompt
    return prompt["wire_chat"].arguments() if "wire_chat" in prompt else prompt


@pytest.mark.parametrize(("messages", "options"), CONVERSATIONS, ids=lambda value: f"{value!r:.60}")
def test_the_wire_carries_all_of_a_conversation(messages: Any, options: dict[str, Any]) -> None:
    expected = repr(Chat.read({"messages": messages, **options}))  # types and the order of keys, too
    assert repr(Chat.read(over_the_wire(messages, options))) == expected
    assert repr(Chat.read(over_the_wire({"messages": messages, **options}, {}))) == expected


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("model"), max_position_embeddings=2048)
    (folder / "chat_template.jinja").write_text(SHOW_ALL)
    return folder


TEXTS = st.text(max_size=3)
SCALARS = st.none() | st.booleans() | TEXTS | st.integers() | st.floats() | st.binary(max_size=1)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS | st.integers(), inner)
)
PARTS = ANYTHING | st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "refusal", "image_url"]),
        "text": ANYTHING,
        "refusal": TEXTS,
        "x": ANYTHING,
    },
)
FUNCTIONS = st.fixed_dictionaries(
    {}, optional={"name": TEXTS, "arguments": ANYTHING | st.sampled_from(["{}", '{"a": 1}', "[1]"])}
)
CALLS = ANYTHING | FUNCTIONS | st.fixed_dictionaries({"function": FUNCTIONS}, optional={"type": ANYTHING})
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "tool", ""])},
    optional={
        "content": ANYTHING | st.lists(PARTS, max_size=2),
        "name": ANYTHING,
        "tool_calls": ANYTHING | st.lists(CALLS, max_size=2),
        "tool_call_id": ANYTHING,
        "reasoning": TEXTS | st.none(),
        "parsed": ANYTHING,
    },
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "tools": ANYTHING | st.lists(st.dictionaries(TEXTS, ANYTHING, max_size=2), max_size=2),
        "chat_template_kwargs": ANYTHING,
        "add_generation_prompt": st.none() | st.booleans(),
        "continue_final_message": st.none() | st.booleans(),
    },
)


@given(messages=st.lists(MESSAGES | ANYTHING, max_size=2), options=OPTIONS)
def test_any_conversation_is_the_same_on_the_wire_or_refused_on_both(messages: Any, options: dict[str, Any]) -> None:
    prompt = {"messages": messages, **options}
    assert read(lambda: prompt) == read(lambda: over_the_wire(prompt, {}))


def read(make: Callable[[], Any]) -> str:
    try:
        return repr(Chat.read(make()))
    except ValueError:
        return "refused"


@pytest.mark.slow
def test_conversations_have_the_same_tokens_in_process_and_over_grpc(model: Path) -> None:
    tokenizer = load_tokenizer(model)

    async def body(llm: AsyncLLM) -> None:
        async with running(llm) as server:
            for messages, options in CONVERSATIONS:
                text = tokenizer.render(Chat.read({"messages": messages, **options}))
                direct = [output async for output in llm.chat(messages, FIRST, **options)][-1]
                assert direct.prompt_token_ids == tokenizer.encode(text)
                assert await asyncio.to_thread(prompt_over, server.address, messages, options) == (
                    direct.prompt_token_ids
                ), messages

    shared_engine.run(model, body, {})


def prompt_over(address: str, messages: Any, options: dict[str, Any]) -> list[int]:
    with Client(address, timeout=200) as client:
        answer = client.generate(messages, temperature=0, max_tokens=1, prompt_logprobs=0, **options)
    return [position.token.token_id for position in answer.prompt_logprobs]


# What cannot be sent.


@pytest.mark.parametrize(
    ("messages", "options", "name"),
    [
        ([HI | {"x": {"y": {1, 2}}}], {}, r"messages\[0\]\.x\.y"),
        ([HI, HI | {"x": float("nan")}], {}, r"messages\[1\]\.x"),
        ([HI | {"content": "\ud800"}], {}, r"messages\[0\]\.content"),
        ([HI | {"content": 1}], {}, r"messages\[0\]\.content"),
        ([HI | {"content": [{"type": "text", "text": 1}]}], {}, r"messages\[0\]\.content\[0\]\.text"),
        ([HI | {"content": [...]}], {}, r"messages\[0\]\.content\[0\]"),
        ([HI | {"name": 1}], {}, r"messages\[0\]\.name"),
        ([HI | {"tool_calls": {"name": "add"}}], {}, r"messages\[0\]\.tool_calls"),
        ([HI | {"tool_calls": [{1: 2}]}], {}, r"messages\[0\]\.tool_calls\[0\]"),
        ([{"content": "a"}], {}, r"messages\[0\]\.role"),
        ([HI, "a"], {}, r"messages\[1\]"),
        ([HI], {"tools": [print]}, r"tools\[0\]"),
        ([HI], {"tools": {"a": 1}}, "tools"),
        ([HI], {"chat_template_kwargs": {"a": b"x"}}, r"chat_template_kwargs\.a"),
        ([HI], {"chat_template": "a"}, "chat_template: "),  # in process only
        ([HI], {"continue_final_message": "content"}, "continue_final_message: "),
        ([HI], {"tool": []}, "tool: "),
        ("Hi", {"tools": [TOOL]}, "tools: "),
        ({"messages": [HI], "tool": []}, {}, "tool: "),
    ],
    ids=lambda value: f"{value!r:.60}",
)
def test_what_a_client_cannot_send_is_named(messages: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        calls.generate_request(messages, None, **options)


@pytest.mark.parametrize(
    ("chat", "place"),
    [
        ({"messages": [{"role": "user", "content": "a", "parts": [{"text": "b"}]}]}, r"messages: \[0\]\.parts"),
        ({"messages": [{"role": "user", "other_fields": '{"content": "a"}'}]}, r"messages: \[0\]\.other_fields"),
        ({"messages": [{"role": "user", "other_fields": "[1]"}]}, r"messages: \[0\]\.other_fields"),
        ({"messages": [{"role": "user", "other_fields": "{"}]}, r"messages: \[0\]\.other_fields is not JSON"),
        ({"messages": [{"role": "user", "tool_calls": ["{}", "["]}]}, r"messages: \[0\]\.tool_calls\[1\] is not JSON"),
        ({"messages": [{"role": "user", "tool_calls": ["[" * 100_000]}]}, r"messages: \[0\]\.tool_calls\[0\]"),
        ({"messages": [{"role": "user", "other_fields": '{"a": NaN}'}]}, r"messages: \[0\]\.a is nan"),
        ({"messages": [{"role": "user", "other_fields": '{"a": "\\ud800"}'}]}, r"messages: \[0\]\.a is not valid"),
        ({"messages": [{"role": "user", "parts": [{}]}]}, r"messages: \[0\]\.content\[0\]\.text"),
        ({"messages": [{"role": "user", "parts": [{"other_fields": '{"type": "image_url"}'}]}]}, "image_url"),
        ({"messages": [{"role": "a", "tool_calls": ["1" * MAX_JSON], "other_fields": "1"}]}, "chat: has 1048577"),
        ({"messages": [{"role": "a", "parts": [{"other_fields": "1" * (MAX_JSON + 1)}]}]}, "chat: has 1048577"),
        ({"messages": [HI] * MAX_ITEMS, "tools": ["{}"]}, "chat: has 32769 messages"),
        ({"messages": [{"role": "a", "parts": [{}] * MAX_ITEMS}]}, "chat: has 32769 messages"),
        ({"messages": [HI], "tools": ["1" * MAX_JSON], "chat_template_kwargs": "1"}, "chat: has 1048577"),
        ({"messages": [HI], "tools": ["{}", "{'a': 1}"]}, r"tools: \[1\] is not JSON"),
        ({"messages": [HI], "tools": ["5"]}, r"tools: \[0\] is a int"),
        ({"messages": [HI], "chat_template_kwargs": "enable_thinking"}, "chat_template_kwargs: is not JSON"),
        ({"messages": [HI], "chat_template_kwargs": "[]"}, "chat_template_kwargs: is not a mapping"),
    ],
    ids=lambda value: f"{value!r:.80}",
)
def test_a_faulty_message_of_another_client_is_refused_by_its_place(chat: Any, place: str) -> None:
    request = generation_pb2.GenerateRequest(chat=chat)
    with pytest.raises(InvalidRequest, match=place):
        Chat.read(converted(request))


@pytest.mark.slow
def test_a_faulty_conversation_is_an_invalid_argument_over_grpc(model: Path) -> None:
    faulty: list[tuple[Any, dict[str, Any], str]] = [
        ([HI | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}], {}, "image_url"),
        ([HI], {"continue_final_message": True}, "continue_final_message: "),
        ([HI], {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs: .messages"),
        ([HI], {"chat_template_content_format": "html"}, "chat_template_content_format: "),
    ]

    def ask(address: str, messages: Any, options: dict[str, Any]) -> None:
        with Client(address, timeout=200) as client:
            client.generate(messages, **options)

    async def body(llm: AsyncLLM) -> None:
        async with running(llm) as server:
            for messages, options, reason in faulty:
                with pytest.raises(grpc.RpcError) as caught:
                    await asyncio.to_thread(ask, server.address, messages, options)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert reason in caught.value.details()

    shared_engine.run(model, body, {})


def test_the_engine_in_process_reads_the_same(make_llm: Callable[..., LLM], tiny_model: Path) -> None:
    llm, tokenizer = make_llm(), load_tokenizer(tiny_model)
    prompts = [{"messages": messages, **options} for messages, options in CONVERSATIONS[::4]]
    expected = [tokenizer.encode(tokenizer.render(Chat.read(prompt))) for prompt in prompts]
    outputs = llm.generate(prompts, FIRST, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == expected
