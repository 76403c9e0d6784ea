"""Tools and objects over HTTP with a real engine and the real model, as OpenAI's client sees them."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_llm import HTTP, running
from pydantic import BaseModel

from blora.engine import AsyncLLM
from blora.engine.answers.answer_form import AnswerFormats

pytestmark = pytest.mark.slow

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Bonn?"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Oslo"]}}, "required": ["city"]}
CITY |= {"additionalProperties": False}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
WRITTEN = r'I look\.\n<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Bonn|Oslo)"\}\}\n</tool_call>'
OPTIONS: Any = {"memory": "300MB", "max_model_len": 512, "threads": 1}
SERVED = replace(HTTP, formats=AnswerFormats(tool_call_parser="hermes"))


class Verdict(BaseModel):
    is_true: bool


async def ask(client: openai.AsyncOpenAI, **arguments: Any) -> Any:
    """Returns the choice of an answer that came in a stream."""
    given = {"model": "fake", "messages": QUESTION, "temperature": 0, "max_tokens": 80} | arguments
    async with client.chat.completions.stream(**given) as stream:
        return (await stream.get_final_completion()).choices[0]


async def demanded(client: openai.AsyncOpenAI, choice: Any) -> tuple[str, str, Any]:
    answer = await ask(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    (call,) = answer.message.tool_calls
    return answer.finish_reason, call.function.name, json.loads(call.function.arguments)["city"]


async def conversation(model: Path) -> None:
    async with (
        AsyncLLM(model, **OPTIONS) as llm,
        running(llm, http=SERVED) as server,
        openai.AsyncOpenAI(base_url=f"{server.addresses[1]}/v1", api_key="none", max_retries=0) as client,
    ):
        required, named = await asyncio.gather(demanded(client, "required"), demanded(client, NAMED))
        assert required[:2] == ("tool_calls", "weather") and required[2] in ("Bonn", "Oslo")
        assert named[:2] == ("stop", "weather") and named[2] in ("Bonn", "Oslo")
        # What the model writes itself is read: a regular expression has it write a call.
        choice = await ask(client, tools=TOOLS, extra_body={"structured_outputs": {"regex": WRITTEN}})
        assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
        assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] in ("Bonn", "Oslo")
        # The calls and their results go back.
        result = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "sunny"}
        said = choice.message.model_dump(exclude_none=True)
        back: Any = {"model": "fake", "messages": [*QUESTION, said, result], "max_tokens": 4}
        assert (await client.chat.completions.create(**back)).choices[0].message.content
        assert isinstance((await ask(client, response_format=Verdict)).message.parsed, Verdict)


def test_the_model_calls_tools_as_demanded(real_model: Path) -> None:
    asyncio.run(asyncio.wait_for(conversation(real_model), 200))
