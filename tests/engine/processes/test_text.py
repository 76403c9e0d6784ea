"""The text process: its tokens are those of the front end, and the kernel ends it where the sandbox fails to."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.adapters import AdapterText, AddedToken
from blora.engine.errors import InvalidRequest
from blora.engine.facts import Facts
from blora.engine.ipc.messages import FromText, TextRead, TextRefused
from blora.engine.processes.text import TextReader
from blora.engine.text.chat import Chat
from blora.engine.text.text_work import TextOrder, TextTokens, TextWork, start_work, tokenize, tokenizer_of
from blora.engine.text.tokenizer import Tokenizer, load_tokenizer

FACTS = Facts(vocab_size=260, max_model_len=1000, block_size=4, num_pages=12)
TOKEN = AddedToken(257, "<added>", special=True)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(tiny_model)


def read(tokenizer: Tokenizer, work: TextWork, text: AdapterText | None = None) -> FromText:
    return TextReader(tokenizer, FACTS).read(TextOrder(work=work, text=text, runs_strange_template=True))


def test_an_order_is_answered_with_tokens_or_with_the_argument_at_fault(tokenizer: Tokenizer) -> None:
    chat = Chat(messages=[{"role": "user", "content": "a"}], chat_template="{{ messages[0].content }}{{ eos_token }}")
    assert read(tokenizer, TextWork(chat=chat)) == TextRead(TextTokens(tokenizer.encode("a<eos>"), ()))
    refused = read(tokenizer, TextWork(chat=Chat(messages=chat.messages, chat_template="{{")))
    assert isinstance(refused, TextRefused) and refused.field == "chat_template"
    assert read(tokenizer, TextWork(text="a" * 1001)) == TextRefused(
        "prompt", "1001 tokens are more than the 1000 allowed"
    )


LONG = ["word"] * 100  # too much for the front end
WORDS = st.text("ab <eos>added\n", max_size=30)


@given(
    st.lists(WORDS, min_size=1, max_size=4), st.booleans(), st.none() | st.integers(1, 9), st.lists(WORDS, max_size=2)
)
def test_the_process_of_texts_reads_what_the_tokenizer_of_the_request_reads(
    tokenizer: Tokenizer, texts: list[str], is_chat: bool, keep_last: int | None, bad: list[str]
) -> None:
    """An adapter's tokenizer is made again there, of its text."""
    own = AdapterText((TOKEN,), (("eos_token", "<added>"),), "{{ messages[-1].content }}{{ eos_token }}")
    chat = Chat(messages=[{"role": "user", "content": text} for text in texts])
    what: dict[str, Any] = {"chat": chat} if is_chat else {"text": "".join(texts)}
    work = TextWork(**what, keep_last=keep_last, bad_words=tuple(word for word in bad if word))
    for text in (None, own):
        known = tokenizer_of(text, tokenizer)
        try:
            expected: FromText = TextRead(tokenize(work, known, FACTS))
        except InvalidRequest as error:
            expected = TextRefused(error.field, error.reason)
        order = start_work(replace(work, bad_words=(*work.bad_words, *LONG)), known, tokenizer, FACTS)
        assert isinstance(order, TextOrder)
        assert read(tokenizer, work, order.text) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "code"), [("while True: pass", -signal.SIGXCPU), ("bytearray(text.MAX_BYTES + (64 << 20))", 1)]
)
def test_work_without_an_end_is_ended(work: str, code: int) -> None:
    script = f"""
from blora.engine.processes import text
text.limit_memory(text.MAX_BYTES)
text.limit_time(1)
{work}"""
    assert subprocess.run([sys.executable, "-c", script], timeout=200, stderr=subprocess.DEVNULL).returncode == code
