"""LiteLLM, which takes blora for vLLM: python litellm_client.py URL MODEL ADAPTER"""

import asyncio
import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks the internet at the import otherwise

import litellm
from checks import check, expect

URL, MODEL, ADAPTER = sys.argv[1:]
HELLO = [{"role": "user", "content": "Say hello in one short sentence."}]
COMMON = {"api_base": f"{URL}/v1", "api_key": "none", "messages": HELLO, "max_tokens": 16, "temperature": 0}
CITY = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Oslo"]}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


def chat():
    answer = litellm.completion(model=f"hosted_vllm/{MODEL}", **COMMON)
    return expect(answer.usage.completion_tokens > 0, answer.choices[0].message.content)


def stream():
    chunks = list(litellm.completion(model=f"hosted_vllm/{MODEL}", stream=True, **COMMON))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return expect(text == chat(), f"{len(chunks)} chunks: the same text")


def adapter():
    return litellm.completion(model=f"openai/{ADAPTER}", **COMMON).choices[0].message.content


def text():
    arguments = {name: value for name, value in COMMON.items() if name != "messages"}
    answer = litellm.text_completion(model=f"hosted_vllm/{MODEL}", prompt="One, two,", **arguments)
    return expect(answer.choices[0].text, answer.choices[0].text)


def tools():
    arguments = {**COMMON, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 100}
    answer = litellm.completion(model=f"hosted_vllm/{MODEL}", **arguments)
    expect(answer.choices[0].message.tool_calls, answer.choices[0].message.content)
    call = answer.choices[0].message.tool_calls[0]
    json.loads(call.function.arguments)
    return expect(call.function.name == "weather", call.function.arguments)


def unknown():
    try:
        litellm.completion(model="hosted_vllm/unknown", **COMMON)
    except litellm.NotFoundError as error:
        return type(error).__name__
    raise AssertionError("no error")


async def at_once():
    calls = [litellm.acompletion(model=f"hosted_vllm/{MODEL}", **COMMON) for _ in range(8)]
    texts = {answer.choices[0].message.content for answer in await asyncio.gather(*calls)}
    return expect(len(texts) == 1, "the same text 8 times")


check("answers a chat", chat)
check("streams the same text", stream)
check("answers with an adapter as the model", adapter)
check("completes a text", text)
check("demands calls of tools", tools)
check("NotFoundError for an unknown model", unknown)
check("async, 8 chats at once", lambda: asyncio.run(at_once()))
