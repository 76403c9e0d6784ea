"""`blora chat`: the conversation, its commands, and how an answer ends; against a fake, and a server around one."""

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from fake_llm import FakeLLM, ask

from blora.engine.cli import chat_command
from blora.engine.cli import main as cli
from blora.engine.cli.chat_command import Conversation, RemoteTalk
from blora.engine.errors import InvalidRequest


class Echo:
    """Answers with the words of the last message, one at a time."""

    def __init__(self, words: list[str], interrupt_at: int | None) -> None:
        self.words, self.interrupt_at, self.is_stopped = words, interrupt_at, False

    def __iter__(self) -> Iterator[str]:
        for index, word in enumerate(self.words):
            if self.is_stopped:
                return
            yield f"{word} "
            if index == self.interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)

    def stop(self) -> None:
        self.is_stopped = True


class FakeTalk:
    def __init__(self) -> None:
        self.asked: list[tuple[list[dict[str, str]], dict[str, float]]] = []
        self.interrupt_at: int | None = None

    def answer(self, conversation: list[dict[str, str]], uses: dict[str, float]) -> Echo:
        self.asked.append(([*conversation], uses))
        if "refuse" in conversation[-1]["content"]:
            raise InvalidRequest("messages", "they are refused")
        return Echo(conversation[-1]["content"].split(), self.interrupt_at)

    def adapters(self) -> list[str]:
        return ["sql", "poet"]


@pytest.fixture
def talk() -> FakeTalk:
    return FakeTalk()


def test_a_conversation_has_all_its_messages(talk: FakeTalk, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(talk, {}, "be brief")
    for line in ("how are you", "and now"):
        assert conversation.take(line)
    roles = [message["role"] for message in talk.asked[-1][0]]
    assert roles == ["system", "user", "assistant", "user"]
    assert talk.asked[-1][0][2]["content"] == "how are you " and "and now" in capsys.readouterr().out
    conversation.take("/reset")
    assert conversation.messages == [{"role": "system", "content": "be brief"}]
    assert not conversation.take("/exit")


def test_adapters_are_switched(talk: FakeTalk, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(talk, {}, None)
    for line, uses in (
        ("/adapter sql", {"sql": 1.0}),
        ("/adapter sql=0.5 poet", {"sql": 0.5, "poet": 1.0}),
        ("/adapter -", {}),
    ):
        conversation.take(line)
        assert conversation.uses == uses
    conversation.take("/adapter poet@2")
    assert conversation.uses == {"poet@2": 1.0}
    for line, words in (("/adapter bard", "'bard' is not loaded; loaded: sql, poet"), ("/adapter a=b", "is not NAME")):
        conversation.take(line)
        assert words in capsys.readouterr().out and conversation.uses == {"poet@2": 1.0}
    for line, words in (("/adapter", "sql"), ("/help", "/reset"), ("/what", "/what is no command")):
        conversation.take(line)
        assert words in capsys.readouterr().out
    conversation.take("hello")
    assert talk.asked[-1][1] == {"poet@2": 1.0}


def test_an_interrupt_ends_the_answer_and_not_the_program(talk: FakeTalk, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(talk, {}, None)
    talk.interrupt_at = 1
    handler = signal.getsignal(signal.SIGINT)
    assert conversation.take("one two three four")
    assert conversation.messages[-1] == {"role": "assistant", "content": "one two "}
    assert "three" not in capsys.readouterr().out and signal.getsignal(signal.SIGINT) is handler


def test_what_is_refused_is_no_part_of_the_conversation(talk: FakeTalk, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(talk, {}, None)
    assert conversation.take("refuse this") and conversation.messages == []
    assert "messages: they are refused" in capsys.readouterr().err


def test_with_a_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(chat_command, "interruptible", nullcontext)  # signals come to the main thread only

    def converse(client: Any) -> list[dict[str, str]]:
        conversation = Conversation(RemoteTalk(client, {"max_tokens": 8}), {}, None)
        conversation.take("/adapter alice")
        conversation.take("hi")
        conversation.take("/adapter")
        return conversation.messages

    llm = FakeLLM()
    messages = ask(converse, llm)
    assert messages[-1] == {"role": "assistant", "content": "<user>hi"} and "* alice" in capsys.readouterr().out
    assert llm.requests[0]["adapter"] is not None


@pytest.mark.parametrize("argv", [["chat"], ["chat", "some/model", "--address", "127.0.0.1:1"]])
def test_one_of_model_and_address_is_given(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(argv)
    assert "give MODEL" in capsys.readouterr().err
