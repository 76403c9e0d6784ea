"""The template process, through its client: templates that requests bring hold up nobody else."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from blora.engine.errors import EngineUnavailable, InvalidRequest, QueueFull
from blora.engine.ipc import template_client
from blora.engine.ipc.template_client import TemplateClient
from blora.engine.text.chat import Chat

SHOW = "{{ eos_token }}{{ messages[0].content }}{{ tools | tojson }}{{ x }}"
FOR_EVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def chat(template: str, **arguments: Any) -> Chat:
    messages = [{"role": "user", "content": "é", "tool_calls": [{"name": "f", "arguments": {"a": [1, 2.0, None]}}]}]
    return Chat.read({"messages": messages, "chat_template": template, **arguments})


def ask(body: Callable[[TemplateClient], Awaitable[None]]) -> None:
    async def whole() -> None:
        client = TemplateClient()
        try:
            await body(client)
        finally:
            await client.close()

    asyncio.run(asyncio.wait_for(whole(), 250))


def test_a_conversation_comes_back_as_text_and_a_refusal_with_its_field() -> None:
    async def body(client: TemplateClient) -> None:
        tools, variables = [{"b": 1, "a": 2.0}], {"x": -(1 << 62)}
        given = chat(SHOW, tools=tools, chat_template_kwargs=variables)
        assert await client.render(given, {"eos_token": "</s>"}) == '</s>é[{"b": 1, "a": 2.0}]-4611686018427387904'
        child = client._child
        for template, field in [
            ("{% if %}", "chat_template"),
            (FOR_EVER, "chat_template"),
            ("{{ 1 / 0 }}", "messages"),
        ]:
            with pytest.raises(InvalidRequest) as caught:
                await client.render(chat(template), {})
            assert caught.value.field == field
        assert client._child is child

    ask(body)


def test_after_a_process_that_ends_another_one_starts() -> None:
    async def body(client: TemplateClient) -> None:
        await client.render(chat("a"), {})
        assert client._child is not None
        os.kill(client._child.process.pid, signal.SIGSTOP)
        stopped = asyncio.create_task(client.render(chat("a"), {}))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(client.render(chat("b"), {}))
        os.kill(client._child.process.pid, signal.SIGKILL)
        with pytest.raises(InvalidRequest, match="^chat_template: takes too long"):
            await stopped
        assert await waiting == "b"
        assert await client.render(chat("c"), {}) == "c"

    ask(body)


def test_the_answer_to_a_caller_who_has_gone_is_not_given_to_another() -> None:
    async def body(client: TemplateClient) -> None:
        await client.render(chat("a"), {})
        gone = asyncio.create_task(client.render(chat(FOR_EVER), {}))
        waiting = asyncio.create_task(client.render(chat("b"), {}))
        await asyncio.sleep(0)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        assert await waiting == "b"

    ask(body)


def test_too_many_conversations_are_refused_and_closing_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_client, "MAX_WAITING", 2)

    async def body(client: TemplateClient) -> None:
        waiting = [asyncio.create_task(client.render(chat("a"), {})) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await client.render(chat("a"), {})
        await client.close()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, EngineUnavailable)

    ask(body)
