"""The text process, through its client: long texts, and templates that requests bring, hold up nobody else."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from simulation.clock import run

from blora.engine.errors import EngineUnavailable, InvalidRequest, QueueFull
from blora.engine.facts import Facts
from blora.engine.ipc import asked_child
from blora.engine.ipc.messages import TextRead
from blora.engine.ipc.text_client import TextClient, TextClients
from blora.engine.text.chat import Chat
from blora.engine.text.text_work import TextOrder, TextTokens, TextWork
from blora.engine.text.tokenizer import Tokenizer, load_tokenizer

FACTS = Facts(vocab_size=260, max_model_len=10_000, block_size=4, num_pages=12)
SHOW = "{{ eos_token }}{{ messages[0].content }}{{ tools | tojson }}{{ x }}"
FOR_EVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(tiny_model)


def order(template: str, is_strange: bool = True, **arguments: Any) -> TextOrder:
    messages = [{"role": "user", "content": "é", "tool_calls": [{"name": "f", "arguments": {"a": [1, 2.0, None]}}]}]
    chat = Chat.read({"messages": messages, "chat_template": template, **arguments})
    return TextOrder(work=TextWork(chat=chat), text=None, runs_strange_template=is_strange)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as kept:
        yield kept


class Asked:
    """Runs a test with the client of one process, which all tests share while it lives."""

    def __init__(self, model: Path, runner: asyncio.Runner) -> None:
        self._model, self._runner = model, runner
        self.client = TextClient(model, FACTS, 0)

    def __call__(self, body: Callable[[TextClient], Awaitable[None]]) -> None:
        self._runner.run(asyncio.wait_for(body(self.client), 250))
        if self.client._child._child._is_closed:
            self.client = TextClient(self._model, FACTS, 0)

    def close(self) -> None:
        self._runner.run(self.client.close())


@pytest.fixture(scope="module")
def ask(tiny_model: Path, runner: asyncio.Runner) -> Iterator[Asked]:
    asked = Asked(tiny_model, runner)
    yield asked
    asked.close()


def test_a_conversation_comes_back_as_tokens_and_a_refusal_with_its_field(ask: Asked, tokenizer: Tokenizer) -> None:
    async def body(client: TextClient) -> None:
        given = order(SHOW, tools=[{"b": 1, "a": 2.0}], chat_template_kwargs={"x": -(1 << 62)})
        text = '<eos>é[{"b": 1, "a": 2.0}]-4611686018427387904'
        assert await client.read(given, "") == TextTokens(tokenizer.encode(text), ())
        child = client._child._child._child
        for template, field in [
            ("{% if %}", "chat_template"),
            (FOR_EVER, "chat_template"),
            ("{{ 1 / 0 }}", "messages"),
        ]:
            with pytest.raises(InvalidRequest) as caught:
                await client.read(order(template), "")
            assert caught.value.field == field
        assert client._child._child._child is child

    ask(body)


def test_after_a_process_that_ends_another_one_starts(ask: Asked, tokenizer: Tokenizer) -> None:
    async def body(client: TextClient) -> None:
        await client.read(order("a"), "")
        assert client._child._child._child is not None
        os.kill(client._child._child._child.process.pid, signal.SIGSTOP)
        stopped = asyncio.create_task(client.read(order("a"), ""))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(client.read(order("b"), ""))
        os.kill(client._child._child._child.process.pid, signal.SIGKILL)
        with pytest.raises(InvalidRequest, match="^chat_template: takes too long"):
            await stopped
        assert (await waiting).prompt == tokenizer.encode("b")

    ask(body)


def test_work_that_outlasts_its_limit_or_its_caller_ends(
    ask: Asked, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(client: TextClient) -> None:
        await client.read(order("a"), "")
        for owner, patience, is_cancelled in [(client._child, "_timeout", False), (asked_child, "LEAVE_TIMEOUT", True)]:
            assert client._child._child._child is not None
            child, gone = client._child._child._child, asyncio.create_task(client.read(order("a"), ""))
            os.kill(child.process.pid, signal.SIGSTOP)
            with monkeypatch.context() as patched:
                patched.setattr(owner, patience, 0.01)
                await asyncio.sleep(0)
                if is_cancelled:
                    gone.cancel()
                with suppress(asyncio.CancelledError, InvalidRequest):
                    await gone
            assert (await client.read(order("b"), "")).prompt == tokenizer.encode("b")
            assert client._child._child._child is not child and child.process.returncode is not None

    ask(body)


def test_too_many_texts_are_refused_and_closing_ends_all(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(client: TextClient) -> None:
        monkeypatch.setattr(client._turns, "_most", 2 * order("a").work.weight)
        waiting = [asyncio.create_task(client.read(order("a"), "")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await client.read(order("a"), "")
        await client.close()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, EngineUnavailable)

    ask(body)


def test_templates_of_strangers_hold_up_no_other_texts(tiny_model: Path, runner: asyncio.Runner) -> None:
    async def body() -> None:
        clients = TextClients(tiny_model, FACTS)
        try:
            long = TextOrder(work=TextWork(text="a" * 9000), text=None, runs_strange_template=False)
            stopped = asyncio.create_task(clients.read(order("a"), ""))
            while clients._strange._child._child._child is None:
                await asyncio.sleep(0.01)
            os.kill(clients._strange._child._child._child.process.pid, signal.SIGSTOP)
            assert len((await clients.read(long, "")).prompt) == 9000
            assert not stopped.done()
            os.kill(clients._strange._child._child._child.process.pid, signal.SIGCONT)
            await stopped
        finally:
            await clients.close()

    runner.run(asyncio.wait_for(body(), 250))


class SlowChild:
    """Is its own `start_child`, and answers after 10 s."""

    def __init__(self) -> None:
        self.process, self.is_read = self, False
        self.returncode: int | None = None

    async def start(self, _module: str, _incoming: Any) -> Any:
        return SlowChild()

    def send(self, _message: Any) -> None:
        pass

    async def receive(self) -> TextRead:
        assert not self.is_read, "two callers wait for one answer"
        self.is_read = True
        await asyncio.sleep(10.0)
        self.is_read = False
        return TextRead(TextTokens([1], ()))

    async def stop(self, _grace: float) -> None:
        await asyncio.sleep(0)

    def seconds_without_core(self) -> float:
        return 0.0


def test_a_caller_that_is_cancelled_twice_leaves_no_answer_to_the_next_one() -> None:
    """By its client and by a deadline, for one."""

    async def main() -> None:
        client = TextClient(Path("model"), FACTS, 0, SlowChild().start)
        caller = asyncio.create_task(client.read(order(SHOW), ""))
        for _ in range(2):
            await asyncio.sleep(0.1)
            caller.cancel()
        await asyncio.wait({caller})
        assert (await client.read(order(SHOW), "")).prompt == [1]

    run(main)
