"""What takes long to read is read beside the event loop: long texts and conversations, and the templates of strangers.

Tokens are those that the tokenizer gives, in whatever process.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM
from shared_engine import shared_engine
from tiny import make_adapter, make_model

from blora.engine import AsyncLLM, InvalidRequest
from blora.engine.server import convert
from blora.engine.text.chat import Chat
from blora.engine.text.text_work import MOST_HERE
from blora.engine.text.tokenizer import Tokenizer, load_tokenizer
from blora.proto.v1 import generation_pb2
from blora.scheduler import RequestOutputKind, SamplingParams

LENGTH = 8192
OPTIONS: dict[str, Any] = {"memory": "8MB", "max_num_batched_tokens": 4096, "block_size": 64}
ONE = SamplingParams(max_tokens=1, temperature=0)
LONG = "some text. " * 380
WORDS = [f"word {number}" for number in range(500)]
TEMPLATE = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
LOUD = "{% for message in messages %}{{ message.content * 300 }}{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("long"), max_position_embeddings=LENGTH)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_adapter(model, tmp_path_factory.mktemp("adapter"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The lengths of the texts that this process tokenises or gets from a template."""
    lengths: list[int] = []
    encode, render = Tokenizer.encode, Tokenizer.render

    def noted_encode(self: Tokenizer, text: str, *args: Any, **options: Any) -> list[int]:
        lengths.append(len(text))
        return encode(self, text, *args, **options)

    def noted_render(self: Tokenizer, chat: Chat) -> str:
        text = render(self, chat)
        assert chat.chat_template is None and self.chat_template != TEMPLATE, "a stranger's template"
        return text

    monkeypatch.setattr(Tokenizer, "encode", noted_encode)
    monkeypatch.setattr(Tokenizer, "render", noted_render)
    yield lengths
    assert max(lengths, default=0) <= MOST_HERE


def said(content: str, **arguments: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **arguments}


def on_the_wire(content: str) -> Any:
    message = generation_pb2.ChatMessage(role="user", content=content)
    request = generation_pb2.GenerateRequest(chat=generation_pb2.ChatMessages(messages=[message]))
    return convert.generate_call(request, ONE, RequestOutputKind.DELTA, FakeLLM().most_listed(), {}).prompt


CASES: dict[str, tuple[Any, str | None, Callable[[Tokenizer], str]]] = {
    "short text": ("a text", None, lambda _: "a text"),
    "long text": (LONG, None, lambda _: LONG),
    "short chat": (said("hello"), None, lambda tokenizer: tokenizer.render(Chat.read(said("hello")))),
    "long chat on the wire": (on_the_wire(LONG), None, lambda tokenizer: tokenizer.render(Chat.read(said(LONG)))),
    "template of a request": (said("a", chat_template=LOUD), None, lambda _: "a" * 300),
    "template of an adapter": (said("hello"), "own", lambda _: "[hello]"),
}


@pytest.mark.slow
def test_long_texts_and_strange_templates_are_read_elsewhere_into_the_same_tokens(
    model: Path, adapter: Path, read_here: list[int]
) -> None:
    tokenizer = load_tokenizer(model)
    texts = {case: text(tokenizer) for case, (_, _, text) in CASES.items()}
    expected = {case: tokenizer._backend.encode(text).ids for case, text in texts.items()}

    async def body(llm: AsyncLLM) -> None:
        for case, (prompt, name, _) in CASES.items():
            async for output in llm.generate(prompt, ONE, lora_request=name):
                assert output.prompt_token_ids == expected[case], case

    shared_engine.run(model, body, {"own": adapter}, **OPTIONS)
    assert read_here


@pytest.mark.slow
def test_many_bad_words_are_read_elsewhere(model: Path, read_here: list[int]) -> None:
    async def body(llm: AsyncLLM) -> None:
        async for output in llm.generate([1, 2, 3], SamplingParams(max_tokens=4, bad_words=WORDS)):
            assert output.prompt_token_ids == [1, 2, 3]

    shared_engine.run(model, body, {}, **OPTIONS)
    assert not read_here


@pytest.mark.slow
@pytest.mark.usefixtures("read_here")
def test_what_cannot_fit_is_refused_before_another_process_reads_it(model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        for prompt in ("a" * (16 * LENGTH + 1), said("a" * (16 * LENGTH + 1)), [1] * (LENGTH + 1)):
            with pytest.raises(InvalidRequest):
                await anext(llm.generate(prompt, ONE))
        with pytest.raises(InvalidRequest, match="tokens are more than the 8192 allowed"):
            await anext(llm.generate("a" * (LENGTH + 1), ONE))  # a text may still have too many tokens

    shared_engine.run(model, body, {}, **OPTIONS)


@pytest.mark.slow
def test_a_call_that_leaves_while_its_text_is_read_leaves_nothing(model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        calls = [asyncio.create_task(anext(llm.generate(LONG, ONE, tenant=f"t{number % 3}"))) for number in range(9)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, False] * 4 + [True]

    shared_engine.run(model, body, {}, **OPTIONS)
