"""Tokenizer and TokenStream: deltas add up to the whole text, and a chat is rendered as by transformers."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EOS, make_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from blora.engine.errors import InvalidRequest
from blora.engine.model_files.config import UnsupportedModel
from blora.engine.text.chat import Chat
from blora.engine.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "plain words, with  two spaces\n\n\tand a tab ",
    " leading and trailing ",
    "é è ü ß – “quotes” …",
    "日本語のテキスト、漢字とかな。한국어 문장",
    "👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "e\u0301 n\u0303 a\u0308\u0304 ก็ नमस्ते שָׁלוֹם",
    "\u202eright to left\u202c \ufeff zero\u200bwidth",
    "a\ufffdb \ufffd\ufffd",
    "\0\x01\x7f\x80",
    "𐍈𝔘𝔫𝔦𝔠𝔬𝔡𝔢 " * 5,
    "x" * 200,
]

MESSAGES: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi \n there"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "<|im_end|> {{ x }} {% if %} \"'<b>é👍"},
    ],
]


@pytest.fixture(scope="module", params=["bytes", "real"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "real":
        return load_tokenizer(request.getfixturevalue("real_model"))
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(real_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(real_model)


def stream_text(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = (), skip: bool = True) -> str:
    stream = tokenizer.decode_stream(prompt, skip)
    return "".join([*(stream.push(token_id) for token_id in ids), stream.flush()])


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:12])
def test_encoding_and_decoding_give_the_text_back(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("prompt", ["", "A prompt: ", "日本"])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:12])
def test_deltas_add_up_to_the_text(text: str, prompt: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert stream_text(tokenizer, ids, tokenizer.encode(prompt)) == tokenizer.decode(ids)


def test_no_delta_holds_half_a_character(bytes_tokenizer: Tokenizer) -> None:
    text = "é漢👍🏽"
    stream = bytes_tokenizer.decode_stream([], True)
    deltas = [stream.push(token_id) for token_id in bytes_tokenizer.encode(text)]
    assert [delta for delta in deltas if delta] == list(text)
    assert stream.flush() == ""


INVALID = [
    *([0xFF], [0x80, 0x80], [0xC3], [0xE2, 0x82], [0xF0, 0x9F, 0x91], [0x61, 0xFF, 0x62], [0xE2, 0x82, 0x61]),
    *([0xC3, 0xC3, 0xA9], [0xF0, 0x9F, 0x61, 0x91, 0x8D, 0x62], [0xED, 0xA0, 0x80, 0x61], [0xFF] * 30 + [0x61]),
    *([0xC0, 0x80, 0x61], [0xF4, 0x90, 0x80, 0x80, 0x61], [0x61, 0xEF, 0xBF, 0xBD], [0xE2, 0x82, 0xAC, 0x80, 0x61]),
]


def vocabulary_ids(content: Sequence[int]) -> list[int]:
    """Returns the byte tokenizer's ids, which are the ranks of the bytes' symbols."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index(BYTE_SYMBOLS[value]) for value in content]


def byte_symbols() -> dict[int, str]:
    """Returns GPT-2's table: a printable byte stands for itself, any other for a character from 256 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + index) for index, value in enumerate(others)}


BYTE_SYMBOLS = byte_symbols()


@pytest.mark.parametrize("content", INVALID, ids=lambda content: bytes(content).hex()[:16])
def test_invalid_bytes_add_up_too(content: list[int], bytes_tokenizer: Tokenizer) -> None:
    ids = vocabulary_ids(content)
    assert bytes_tokenizer.decode(ids) == bytes(content).decode(errors="replace")
    assert stream_text(bytes_tokenizer, ids) == bytes_tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(content=st.lists(st.sampled_from(b" a\x80\x82\xac\xc3\xe2\xf0\x9f\xff\xef\xbf\xbd")))
def test_any_bytes_add_up(bytes_tokenizer: Tokenizer, content: list[int]) -> None:
    ids = vocabulary_ids(content)
    assert stream_text(bytes_tokenizer, ids) == bytes_tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_text_after_any_prompt_is_that_of_the_output(bytes_tokenizer: Tokenizer, data: st.DataObject) -> None:
    """No part of the prompt is shown again, and no text is lost, even if the prompt ends in half a character."""
    some_bytes = st.lists(st.sampled_from(b"a\x80\x82\xac\xc3\xe2"), max_size=12)
    prompt, output = vocabulary_ids(data.draw(some_bytes)), vocabulary_ids(data.draw(some_bytes))
    assert stream_text(bytes_tokenizer, output, prompt) == bytes_tokenizer.decode(output)


def test_special_tokens_are_skipped_or_shown(bytes_tokenizer: Tokenizer) -> None:
    ids = [*bytes_tokenizer.encode("a"), EOS, *bytes_tokenizer.encode("b"), EOS]
    assert stream_text(bytes_tokenizer, ids) == "ab"
    assert stream_text(bytes_tokenizer, ids, skip=False) == "a<eos>b<eos>"


def test_ids_beyond_the_tokenizer_have_no_text(bytes_tokenizer: Tokenizer) -> None:
    ids = [*bytes_tokenizer.encode("a"), 258, *bytes_tokenizer.encode("b"), 259]
    assert stream_text(bytes_tokenizer, ids) == "ab"


def test_the_end_token_comes_from_the_config(bytes_tokenizer: Tokenizer) -> None:
    assert bytes_tokenizer.eos_token_id == EOS


def test_a_long_text_is_not_cut(tokenizer: Tokenizer) -> None:
    text = "word " * 20_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


# Chat templates.


def make(template: str | None, **config: Any) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])), config, template)


def render(template: str, **config: Any) -> str:
    return make(template, **config).apply_chat_template(MESSAGES[0])


@pytest.mark.parametrize("messages", MESSAGES, ids=len)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_the_real_models_chat_is_rendered_as_transformers_does(
    messages: list[dict[str, str]], add_generation_prompt: bool, real_model: Path, theirs: Any
) -> None:
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert load_tokenizer(real_model).apply_chat_template(messages, add_generation_prompt) == expected


# Idioms of published templates, which transformers renders, too.
TEMPLATES = {
    "blocks": "{% for m in messages %}\n  {% if m.role == 'user' %}\n {{ m.content }}\n  {% endif %}\n{% endfor %}",
    "break": "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "no tools": "{% if tools is not none %}tools!{% endif %}{% if documents is none %}no documents{% endif %}",
    "tojson": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} {{ '<é>' | tojson(ensure_ascii=True) }}",
    "namespace": "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
    "slices": "{% for m in messages[::-1] %}{{ loop.index0 }}{{ m['content'] | trim }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "tokens": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_idioms_of_templates_are_rendered_as_transformers_does(name: str, theirs: Any) -> None:
    tokens = {"bos_token": theirs.bos_token, "eos_token": theirs.eos_token}
    for messages in MESSAGES:
        expected = theirs.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False)
        ours = make(TEMPLATES[name], **tokens).apply_chat_template(messages, add_generation_prompt=False)
        assert ours == expected


NAMED = {"default": "plain", "tool_use": "{{ tools[0].name }}"}


@pytest.mark.parametrize("place", ["configuration", "files"])
def test_a_model_may_have_another_template_for_tools(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tokenizer(tmp_path)
    if place == "configuration":
        templates = [{"name": name, "template": template} for name, template in NAMED.items()]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    else:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "chat_template.jinja").write_text(NAMED["default"])
        (tmp_path / "additional_chat_templates/tool_use.jinja").write_text(NAMED["tool_use"])
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    tools: list[Any] = [{"name": "add"}]
    with_tools = Chat.read({"messages": MESSAGES[0], "tools": tools})
    for chat, text in [(Chat.read({"messages": MESSAGES[0]}), "plain"), (with_tools, "add")]:
        assert theirs.apply_chat_template(MESSAGES[0], tools=chat.tools, tokenize=False) == text
        assert ours.render(chat) == ours.derive((), {"eos_token": "</s>"}, None).render(chat) == text
    assert not caplog.records
    assert [ours.derive((), {}, f"of {place}").render(with_tools) for _ in range(2)] == [f"of {place}"] * 2
    assert [record.message for record in caplog.records] == [
        "tools are given to a chat template that does not read them; the model is not told of any"
    ]


HOSTILE = {
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
    "function globals": "{{ raise_exception.__globals__['json'] }}",
    "attribute filter": "{{ (messages | attr('__class__')).__base__ }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "mutation": "{% set _ = messages.append(1) %}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "huge range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "syntax": "{% for %}",
    "undefined": "{{ nothing.at.all }}",
    "division": "{{ 1 / 0 }}",
    "refusal": "{{ raise_exception('roles must alternate') }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_fails_or_escapes_is_an_invalid_request(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(HOSTILE[name])
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    ],
)
def test_a_template_that_runs_for_ever_is_stopped(template: str) -> None:
    tracer, started = sys.gettrace(), time.thread_time()
    with pytest.raises(InvalidRequest, match=r"it runs for more than 0\.1\d* s|it makes more than"):
        render(template)
    assert time.thread_time() - started < 0.5
    assert sys.gettrace() is tracer


def test_a_templates_own_refusal_is_told() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render(HOSTILE["refusal"])


def test_a_model_without_a_template_takes_no_messages() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        make(None).apply_chat_template(MESSAGES[0])


def test_messages_are_data_not_templates() -> None:
    messages = [{"role": "user", "content": "{{ 1 + 1 }}"}]
    assert make("{{ messages[0].content }}").apply_chat_template(messages) == "{{ 1 + 1 }}"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(UnsupportedModel, match=name):
        load_tokenizer(tmp_path)


def test_a_model_without_a_tokenizer_is_refused_as_such(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(UnsupportedModel, match=f"{tmp_path} holds no tokenizer"):
        load_tokenizer(tmp_path)
