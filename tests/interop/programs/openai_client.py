"""OpenAI's official client: python openai_client.py URL MODEL ADAPTER"""

import asyncio
import json
import sys

import openai
from checks import check, expect
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

URL, MODEL, ADAPTER = sys.argv[1:]
CLIENT = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
HELLO = [{"role": "user", "content": "Say hello in one short sentence."}]
GREEDY = {"temperature": 0, "max_completion_tokens": 16}
CITY = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Oslo"]}}, "required": ["city"]}
CITY |= {"additionalProperties": False}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
CLOSED = {"type": "object", "properties": {}, "additionalProperties": False}
TIME = {"type": "function", "function": {"name": "time", "parameters": CLOSED}}


class Answer(BaseModel):
    is_true: bool
    number: int


def models():
    listed = {model.id: model for model in CLIENT.models.list()}
    return expect(listed[ADAPTER].parent == MODEL, ", ".join(listed))


def chat():
    answer = CLIENT.chat.completions.create(model=MODEL, messages=HELLO, **GREEDY)
    return expect(answer.usage.completion_tokens > 0, answer.choices[0].message.content)


def stream():
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(CLIENT.chat.completions.create(model=MODEL, messages=HELLO, **GREEDY, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return expect(text == chat() and chunks[-1].usage.completion_tokens > 0, f"{len(chunks)} chunks: the same text")


def several():
    answer = CLIENT.chat.completions.create(
        model=MODEL, messages=HELLO, n=2, seed=7, logprobs=True, top_logprobs=2, max_tokens=4
    )
    tops = [len(entry.top_logprobs) for choice in answer.choices for entry in choice.logprobs.content]
    return expect(len(answer.choices) == 2 and set(tops) == {2}, f"{len(tops)} tokens with 2 candidates each")


def adapter():
    texts = [
        CLIENT.chat.completions.create(model=name, messages=HELLO, **GREEDY).choices[0].message.content
        for name in (MODEL, ADAPTER)
    ]
    return expect(texts[0] != texts[1], texts[1])


def completion():
    answer = CLIENT.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, temperature=0, logprobs=1)
    return expect(len(answer.choices[0].logprobs.tokens) == 4, answer.choices[0].text)


def parse():
    question = [{"role": "user", "content": "Is 7 a prime number? Answer in JSON."}]
    answer = CLIENT.chat.completions.parse(model=MODEL, messages=question, response_format=Answer, max_tokens=100)
    parsed = answer.choices[0].message.parsed
    return expect(isinstance(parsed, Answer), parsed)


def required():
    answer = CLIENT.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[WEATHER, TIME], tool_choice="required", max_tokens=200
    )
    calls = answer.choices[0].message.tool_calls
    arguments = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
    return expect(answer.choices[0].finish_reason == "tool_calls", arguments)


def named():
    with CLIENT.chat.completions.stream(
        model=MODEL,
        messages=HELLO,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=100,
    ) as events:
        kinds = {event.type for event in events}
        call = events.get_final_completion().choices[0].message.tool_calls[0]
    json.loads(call.function.arguments)
    return expect("tool_calls.function.arguments.delta" in kinds, call.function.arguments)


def read():
    """The text of a call in the model's own format, which a regular expression has it write."""
    text = r'Of course\.\n<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Bonn|Oslo)"\}\}\n</tool_call>'
    arguments = {"model": MODEL, "messages": HELLO, "tools": [WEATHER], "max_tokens": 100}
    arguments["extra_body"] = {"structured_outputs": {"regex": text}}
    with CLIENT.chat.completions.stream(**arguments) as events:
        message = events.get_final_completion().choices[0].message
    expect(message.content == "Of course." and message.tool_calls, message.content)
    arguments = message.tool_calls[0].function.arguments
    return expect(json.loads(arguments), arguments)


def back():
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = CLIENT.chat.completions.create(model=MODEL, messages=messages, **GREEDY)
    return expect(bool(answer.choices), answer.choices[0].message.content)


def unknown():
    try:
        CLIENT.chat.completions.create(model="unknown", messages=HELLO)
    except openai.NotFoundError as error:
        return error.message
    raise AssertionError("no error")


def wrong():
    try:
        CLIENT.chat.completions.create(model=MODEL, messages=HELLO, temperature=-1)
    except openai.BadRequestError as error:
        return expect(error.param == "temperature", error.message)
    raise AssertionError("no error")


async def at_once():
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as client:
        calls = [client.chat.completions.create(model=MODEL, messages=HELLO, **GREEDY) for _ in range(8)]
        texts = {answer.choices[0].message.content for answer in await asyncio.gather(*calls)}
        return expect(len(texts) == 1, "the same text 8 times")


check("lists the model and its adapters", models)
check("answers a chat", chat)
check("streams the same text, with its usage", stream)
check("gives n answers with logprobs", several)
check("answers with an adapter as the model", adapter)
check("completes a text", completion)
check("`parse` gives a pydantic object", parse)
check("demands calls of tools", required)
check("streams a call of a named tool", named)
check("streams calls that the model writes", read)
check("takes the result of a tool", back)
check("NotFoundError for an unknown model", unknown)
check("BadRequestError names the parameter", wrong)
check("async client, 8 chats at once", lambda: asyncio.run(at_once()))
