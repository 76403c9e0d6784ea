"""Tools and reasoning over HTTP, as OpenAI's own client sees them, around an engine that says what a test wants."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from fake_llm import HTTP, FakeLLM, run, running
from pydantic import BaseModel

from blora.engine.errors import InvalidRequest

QWEN = r"<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call> <think> </think>"
MISTRAL = '{{- "[TOOL_CALLS] [" }}'
HELLO: list[Any] = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "time"}},
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
TWO_CALLS = (
    'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)
THOUGHT = "<think>\nHm.\n</think>\n\nYes."


def saying(text: str, template: str = QWEN) -> FakeLLM:
    llm = FakeLLM()
    llm.said, llm.finish_reason = text, "stop"
    llm.tokenizer.chat_template = template
    return llm


@asynccontextmanager
async def served(llm: FakeLLM) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running(llm, http=HTTP) as server,
        openai.AsyncOpenAI(base_url=f"{server.addresses[1]}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(llm: FakeLLM, **arguments: Any) -> Any:
    """Returns the choice of one answer, after it was compared with the sum of a stream."""

    async def conversation() -> Any:
        async with served(llm) as client:
            given = {"model": "fake", "messages": HELLO, "max_completion_tokens": 1000} | arguments
            answer = await client.chat.completions.create(**given)
            async with client.chat.completions.stream(**given) as stream:
                async for _ in stream:
                    pass
                streamed = await stream.get_final_completion()
        return answer.choices[0], streamed.choices[0]

    whole, streamed = run(conversation())
    assert streamed.finish_reason == whole.finish_reason
    assert (streamed.message.content or None) == (whole.message.content or None)
    assert _calls(streamed.message) == _calls(whole.message)
    assert getattr(streamed.message, "reasoning_content", None) == getattr(whole.message, "reasoning_content", None)
    return whole


def _calls(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


def refused(llm: FakeLLM, **arguments: Any) -> openai.BadRequestError:
    async def conversation() -> None:
        async with served(llm) as client:
            await client.chat.completions.create(model="fake", messages=HELLO, **arguments)

    with pytest.raises(openai.BadRequestError) as error:
        run(conversation())
    return error.value


def test_the_model_calls_tools() -> None:
    choice = ask(saying(TWO_CALLS), tools=TOOLS)
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    assert _calls(choice.message) == [("weather", '{"city": "Bonn"}'), ("time", "{}")]
    assert len({call.id for call in choice.message.tool_calls}) == 2


def test_an_answer_without_calls_is_content() -> None:
    choice = ask(saying("Hello."), tools=TOOLS)
    assert (choice.finish_reason, choice.message.content) == ("stop", "Hello.")
    assert choice.message.tool_calls is None


def test_without_tools_a_call_is_text() -> None:
    assert ask(saying(TWO_CALLS)).message.content == TWO_CALLS
    assert ask(saying(TWO_CALLS), tools=TOOLS, tool_choice="none").message.content == TWO_CALLS


def test_one_call_only() -> None:
    choice = ask(saying(TWO_CALLS), tools=TOOLS, parallel_tool_calls=False)
    assert _calls(choice.message) == [("weather", '{"city": "Bonn"}')]


def test_a_call_that_is_cut_short_ends_with_length() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Bo'
    llm = saying(text)
    llm.finish_reason = "length"

    async def conversation() -> Any:
        async with served(llm) as client:
            return await client.chat.completions.create(model="fake", messages=HELLO, tools=TOOLS, max_tokens=1000)

    choice = run(conversation()).choices[0]
    assert choice.finish_reason == "length" and _calls(choice.message) == [("weather", '{"city": "Bo')]


def test_special_tokens_are_shown_where_they_begin_calls() -> None:
    llm = saying('[TOOL_CALLS]weather[ARGS]{"city": "Bonn"}', MISTRAL)
    choice = ask(llm, tools=TOOLS)
    assert _calls(choice.message) == [("weather", '{"city": "Bonn"}')]
    assert len(choice.message.tool_calls[0].id) == 9  # Mistral's templates refuse other ids
    assert not llm.requests[0]["sampling"].skip_special_tokens
    ask(llm)
    assert llm.requests[-1]["sampling"].skip_special_tokens


def test_demanded_calls() -> None:
    llm = saying('[{"name": "weather", "parameters": {"city": "Bonn"}}]', "")
    choice = ask(llm, tools=TOOLS, tool_choice="required")
    assert choice.finish_reason == "tool_calls" and _calls(choice.message) == [("weather", '{"city": "Bonn"}')]
    assert llm.requests[0]["sampling"].structured_outputs.json["minItems"] == 1
    llm = saying('{"city": "Bonn"}', "")
    choice = ask(llm, tools=TOOLS, tool_choice=NAMED)
    assert choice.finish_reason == "stop" and _calls(choice.message) == [("weather", '{"city": "Bonn"}')]
    assert llm.requests[0]["sampling"].structured_outputs.json == CITY


def test_wrong_tools_are_refused() -> None:
    assert refused(saying(""), tools=[{"type": "function", "function": {}}]).param == "tools"
    assert refused(saying(""), tools=TOOLS, tool_choice="perhaps").param == "tool_choice"
    assert "'time' more than once" in refused(saying(""), tools=[*TOOLS, TOOLS[1]]).message
    large = {"type": "object", "description": "a" * 100_000}
    tool = {"type": "function", "function": {"name": "weather", "parameters": large}}
    assert refused(saying(""), tools=[tool], tool_choice="required").param == "tools"
    many = [{"type": "function", "function": {"name": "f", "parameters": {"enum": [[]] * 20_000}}}]
    assert "objects and lists" in refused(saying(""), tools=many).message
    long = [{"type": "function", "function": {"name": "f", "description": "a" * 300_000}}]
    assert "bytes" in refused(saying(""), tools=long).message
    assert "--tool-call-parser" in refused(saying("", ""), tools=TOOLS).message


def test_a_schema_that_the_grammar_refuses_is_one_of_the_tools() -> None:
    llm = saying("")
    llm.error = InvalidRequest("structured_outputs.json", "is no schema")
    assert refused(llm, tools=TOOLS, tool_choice="required").param == "tools"


class Weather(BaseModel):
    """The weather of a city."""

    city: str


def test_arguments_are_parsed_into_a_model() -> None:
    text = '<tool_call>{"name": "Weather", "arguments": {"city": "Bonn"}}</tool_call>'

    async def conversation() -> Any:
        async with served(saying(text)) as client:
            tools = [openai.pydantic_function_tool(Weather)]
            return await client.chat.completions.parse(model="fake", messages=HELLO, tools=tools, max_tokens=100)

    (call,) = run(conversation()).choices[0].message.tool_calls
    assert call.function.parsed_arguments == Weather(city="Bonn")


def test_each_choice_has_calls_of_its_own() -> None:
    async def conversation() -> Any:
        async with served(saying(TWO_CALLS)) as client:
            given: Any = {"model": "fake", "messages": HELLO, "tools": TOOLS, "n": 3, "max_tokens": 1000}
            answer = await client.chat.completions.create(**given)
            chunks = [chunk async for chunk in await client.chat.completions.create(**given, stream=True)]
        return answer, [choice for chunk in chunks for choice in chunk.choices]

    answer, deltas = run(conversation())
    assert len({call.id for choice in answer.choices for call in choice.message.tool_calls}) == 6
    parts = [(choice.index, call) for choice in deltas for call in choice.delta.tool_calls or ()]
    assert [(index, call.index) for index, call in parts if call.id] == [(i, j) for j in (0, 1) for i in range(3)]
    for index in range(3):
        written = [call.function.arguments for i, call in parts if (i, call.index) == (index, 0)]
        assert "".join(written) == '{"city": "Bonn"}' and len(written) > 10  # it comes while it is written


def test_reasoning_stands_beside_the_content() -> None:
    message = ask(saying(THOUGHT)).message
    assert (message.content, message.reasoning_content, message.reasoning) == ("Yes.", "Hm.", "Hm.")
    hidden = ask(saying(THOUGHT), extra_body={"include_reasoning": False}).message
    assert hidden.content == "Yes." and not hasattr(hidden, "reasoning_content")


def test_a_prompt_may_end_inside_the_reasoning() -> None:
    llm = saying("Hm.</think>Yes.")
    llm.prompt_end = "<assistant><think>\n"
    message = ask(llm).message
    assert (message.content, message.reasoning_content) == ("Yes.", "Hm.")


def test_calls_go_back_into_the_conversation() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    llm = saying("Sunny.")
    assert ask(llm, messages=messages, tools=TOOLS).message.content == "Sunny."
    prompt = llm.requests[0]["prompt"]
    assert prompt["messages"][1]["tool_calls"] == [call] and prompt["messages"][2]["tool_call_id"] == "call_1"
