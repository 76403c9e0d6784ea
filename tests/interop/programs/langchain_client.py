"""LangChain's client of OpenAI's API: python langchain_client.py URL MODEL ADAPTER"""

import sys

from checks import check, expect
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

URL, MODEL, ADAPTER = sys.argv[1:]
HELLO = [HumanMessage("What is the weather in Bonn?")]


class Weather(BaseModel):
    """Tells the weather of a city."""

    city: str = Field(pattern="^(Bonn|Oslo)$")


class Answer(BaseModel):
    is_true: bool


def client(name=MODEL, max_tokens=100):
    return ChatOpenAI(model=name, base_url=f"{URL}/v1", api_key="none", max_tokens=max_tokens, temperature=0)


def answer():
    message = client(max_tokens=16).invoke(HELLO)
    return expect(message.usage_metadata["output_tokens"] > 0, message.content)


def stream():
    parts = list(client(max_tokens=16).stream(HELLO))
    return expect("".join(part.content for part in parts) == answer(), f"{len(parts)} parts: the same text")


def adapter():
    return client(ADAPTER, 16).invoke(HELLO).content


def tools():
    bound = client().bind_tools([Weather], tool_choice="any")
    message = bound.invoke(HELLO)
    (call, *_) = message.tool_calls
    results = [ToolMessage("sunny", tool_call_id=made["id"]) for made in message.tool_calls]
    said = client(max_tokens=16).invoke([*HELLO, message, *results]).content
    return expect(call["args"]["city"] in ("Bonn", "Oslo"), f"{call['name']} {call['args']}, then: {said}")


def streamed_tools():
    whole = None
    for part in client().bind_tools([Weather], tool_choice="Weather").stream(HELLO):
        whole = part if whole is None else whole + part
    (call,) = whole.tool_calls
    return expect(call["name"] == "Weather", call["args"])


def structured():
    found = client().with_structured_output(Answer, method="json_schema").invoke("Is 7 prime? Answer in JSON.")
    return expect(isinstance(found, Answer), found)


check("answers", answer)
check("streams the same text", stream)
check("answers with an adapter as the model", adapter)
check("demands calls of tools, and sends their results", tools)
check("streams a call of a named tool", streamed_tools)
check("`with_structured_output`", structured)
