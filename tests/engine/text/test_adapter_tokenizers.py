"""An adapter folder's own tokens and chat template are used for its own requests only."""

import asyncio
import dataclasses
import json
import re
import shutil
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from shared_engine import shared_engine
from tiny import EOS, VOCAB_SIZE, make_model

from blora.adapters import AdapterText, AddedToken
from blora.adapters.peft.text import read_adapter_text
from blora.engine import LLM, AdapterRejected, AsyncLLM, InvalidRequest, LoRARequest, RequestOutput, SamplingParams
from blora.engine.ipc.engine_connection import EngineConnection
from blora.engine.text.adapter_tokenizers import AdapterTokenizers
from blora.engine.text.tokenizer import load_tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
HELLO = [{"role": "user", "content": "hello"}]
TOOL = EOS + 1  # the first free id of the tiny model's tokenizer; its logits reach to 259
TEMPLATE = "{% for message in messages %}<tool>{{ message['content'] }}{% endfor %}"


@pytest.fixture
def make_folder(tiny_adapters: dict[str, Path], tmp_path: Path) -> Callable[..., str]:
    """Makes a copy of r4 with more files; content that is no text is written as JSON."""

    def make(name: str, **files: Any) -> str:
        folder = Path(shutil.copytree(tiny_adapters["r4"], tmp_path / name))
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / file.replace("__", ".")).write_text(text)
        return str(folder)

    return make


def added(*tokens: tuple[str, int], **flags: bool) -> dict[str, Any]:
    return {"added_tokens": [{"content": content, "id": token_id, **flags} for content, token_id in tokens]}


@pytest.fixture
def tooled(make_folder: Callable[..., str]) -> str:
    tokens = added(("<eos>", EOS), ("<tool>", TOOL), normalized=False)
    return make_folder("tooled", tokenizer__json=tokens, chat_template__jinja=TEMPLATE)


def test_a_text_holds_the_adapters_tokens_for_its_own_requests_only(make_llm: Callable[..., LLM], tooled: str) -> None:
    llm = make_llm(adapters={"tooled": tooled})
    base, own = (llm.generate("a<tool>b", GREEDY, lora_request=name, use_tqdm=False)[0] for name in (None, "tooled"))
    assert own.prompt_token_ids == [base.prompt_token_ids[0], TOOL, base.prompt_token_ids[-1]]
    assert len(base.prompt_token_ids) == len("a<tool>b")
    assert base.prompt_token_ids == llm.get_tokenizer().encode("a<tool>b")
    assert own.prompt_token_ids == llm.get_tokenizer("tooled").encode("a<tool>b")


def test_an_answer_shows_the_adapters_tokens_for_its_own_requests_only(
    make_llm: Callable[..., LLM], tooled: str
) -> None:
    llm = make_llm(adapters={"tooled": tooled})
    forced = dataclasses.replace(GREEDY, max_tokens=2, logit_bias={TOOL: 100.0}, logprobs=0)
    base, own = (
        llm.generate("a", forced, lora_request=name, use_tqdm=False)[0].outputs[0] for name in (None, "tooled")
    )
    assert (base.token_ids, own.token_ids) == ([TOOL] * 2, [TOOL] * 2)
    assert (base.text, own.text) == ("", "<tool><tool>")
    assert own.logprobs is not None and own.logprobs[0][TOOL].decoded_token == "<tool>"


def test_a_conversation_is_put_into_the_adapters_template(make_llm: Callable[..., LLM], tooled: str) -> None:
    llm = make_llm(adapters={"tooled": tooled})
    base, own = (llm.chat(HELLO, GREEDY, lora_request=name, use_tqdm=False)[0] for name in (None, "tooled"))
    assert base.prompt_token_ids == llm.get_tokenizer().encode("user: hello\n")
    assert own.prompt_token_ids == [TOOL, *llm.get_tokenizer().encode("hello")]


def test_what_is_loaded_by_its_first_request_reads_that_request(make_llm: Callable[..., LLM], tooled: str) -> None:
    llm = make_llm()
    request = LoRARequest("tooled", lora_path=tooled, load_inplace=True)
    (own,) = llm.chat(HELLO, GREEDY, lora_request=request, use_tqdm=False)
    assert own.prompt_token_ids[0] == TOOL


def test_a_new_version_brings_its_own_template(
    make_llm: Callable[..., LLM], make_folder: Callable[..., str], tooled: str
) -> None:
    llm = make_llm(adapters={"mine": tooled})
    stream = llm.stream({"messages": HELLO}, dataclasses.replace(GREEDY, logit_bias={TOOL: 100.0}), lora_request="mine")
    first = next(stream)
    info = llm.load_adapter("mine", make_folder("new", chat_template__jinja="{{ messages[0]['content'] }}!"))
    assert info.digest != llm.load_adapter("old", tooled).digest
    (new,) = llm.chat(HELLO, GREEDY, lora_request="mine", use_tqdm=False)
    assert new.prompt_token_ids == llm.get_tokenizer().encode("hello!")
    texts = [output.outputs[0].text for outputs in [first, *stream] for output in outputs]
    assert "".join(texts) == "<tool>" * 8  # the running request keeps the tokenizer it began with


def test_a_folder_that_says_what_the_model_says_costs_no_tokenizer(
    make_llm: Callable[..., LLM], make_folder: Callable[..., str], tiny_model: Path
) -> None:
    files = ("tokenizer.json", "tokenizer_config.json")
    same = make_folder("same", **{name.replace(".", "__"): (tiny_model / name).read_text() for name in files})
    padded = make_folder("padded", tokenizer_config__json={"pad_token": "<pad>"})
    llm = make_llm(adapters={"same": same, "padded": padded})
    assert llm.get_tokenizer("same") is llm.get_tokenizer("padded") is llm.get_tokenizer()


def test_equal_additions_share_a_tokenizer(make_llm: Callable[..., LLM], make_folder: Callable[..., str]) -> None:
    tokens = added(("<tool>", TOOL))
    adapters = {name: make_folder(name, tokenizer__json=tokens, chat_template__jinja=name) for name in ("one", "two")}
    llm = make_llm(adapters=adapters)
    one, two = llm.get_tokenizer("one"), llm.get_tokenizer("two")
    assert one._backend is two._backend is not llm.get_tokenizer()._backend
    assert (one.chat_template, two.chat_template) == ("one", "two")
    for name in adapters:
        llm.unload_adapter(name)
    llm.check_integrity()


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for thousands of added tokens."""
    return make_model(tmp_path_factory.mktemp("wide"), vocab_size=EOS + 5000)


def test_thousands_of_tokens_are_added_at_once_to_a_vocabulary_that_is_shared(wide_model: Path) -> None:
    base = load_tokenizer(wide_model)
    tokens = tuple(AddedToken(TOOL + index, f"<{index}>", special=index < 1000) for index in range(4096))
    started = time.thread_time()
    extended = base.derive(tokens, {}, None)
    assert time.thread_time() - started < 1
    text = "a <eos> b<7><4095>c<1000> <eos"
    ids = extended.encode(text)
    parts = [base.encode("a "), [EOS], base.encode(" b"), [TOOL + 7, TOOL + 4095], base.encode("c"), [TOOL + 1000]]
    assert ids == [*chain(*parts), *base.encode(" <eos")]
    assert extended.decode(ids, skip_special_tokens=False) == text
    assert extended.decode(ids) == "a  b<4095>c<1000> <eos"
    assert len(base.encode("<7>")) == 3
    # The same tokenizer with everything in one file.
    copy = tokenizers.Tokenizer.from_str(extended._backend.to_str())
    assert copy.get_added_tokens_decoder() == extended._backend.get_added_tokens_decoder()
    assert copy.encode(text).ids == ids


@pytest.mark.parametrize(("number", "period"), [(4096, 1), (300, 2)], ids=["many", "of two kinds in turn"])
def test_tokens_that_take_long_to_add_are_refused(wide_model: Path, number: int, period: int) -> None:
    tokens = tuple(AddedToken(TOOL + i, f"<{i:4}" + "x" * 195, special=i % period > 0) for i in range(number))
    known = AdapterTokenizers(load_tokenizer(wide_model), EOS + 5000)
    started = time.thread_time()
    with pytest.raises(AdapterRejected, match=r"its added tokens take \d+ characters of preparation, more than 200000"):
        known.judge("x", AdapterText(tokens))
    assert time.thread_time() - started < 0.5


def test_the_end_token_of_an_adapter_ends_its_requests(
    make_llm: Callable[..., LLM], make_folder: Callable[..., str]
) -> None:
    folder = make_folder(
        "ended", tokenizer__json=added(("<end>", TOOL), special=True), tokenizer_config__json={"eos_token": "<end>"}
    )
    llm = make_llm(adapters={"ended": folder})
    forced = SamplingParams(temperature=0, max_tokens=8, logit_bias={TOOL: 100.0})
    outputs = llm.generate(["a", "a"], forced, lora_request=[None, "ended"], use_tqdm=False)
    base, own = (output.outputs[0] for output in outputs)
    assert (base.finish_reason, own.finish_reason) == ("length", "stop")
    assert own.token_ids == [TOOL] and own.text == ""


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"tokenizer__json": added(("<tool>", VOCAB_SIZE))},
            r"'<tool>' \(260\) is beyond the model's vocabulary of 260",
        ),
        ({"tokenizer__json": added(("<tool>", EOS + 2))}, r"'<tool>' \(258\) leaves a gap in the ids before it"),
        ({"tokenizer__json": added(("<eos>", TOOL))}, r"'<eos>' \(257\) has the id 256 in the model's tokenizer"),
        ({"tokenizer__json": added(("<tool>", EOS))}, r"'<tool>' \(256\) has the id of '<eos>'"),
        ({"chat_template__jinja": "{% if %}"}, "the chat template is not valid"),
        ({"chat_template__jinja": "{% for a in b %}" * 25 + "{% endfor %}" * 25}, "the chat template is not valid"),
        ({"chat_template__jinja": "{{ " + "(" * 9999 + ")" * 9999 + " }}"}, "the chat template is not valid"),
        ({"chat_template__jinja": "{{ 'a'|center(1000000000) }}"}, "the chat template is not valid"),
    ],
)
def test_what_does_not_go_with_the_models_tokenizer_is_refused_by_name(
    make_llm: Callable[..., LLM], make_folder: Callable[..., str], files: dict[str, Any], problem: str
) -> None:
    llm = make_llm()
    folder = make_folder("bad", **files)
    with pytest.raises(AdapterRejected, match=problem):
        llm.load_adapter("bad", folder)
    assert re.search(problem, "; ".join(llm.inspect_adapter(folder).problems))
    assert not llm.list_adapters()
    llm.check_integrity()


PAD_LISTS: list[dict[str, Any]] = [
    {"tokenizer__json": added(("[PAD]", VOCAB_SIZE))},
    {"tokenizer_config__json": {"added_tokens_decoder": {str(VOCAB_SIZE): {"content": "[PAD]"}}}},
    {"added_tokens__json": {"[PAD]": VOCAB_SIZE}},
]
PAD_NAMES: list[dict[str, Any]] = [
    {"tokenizer_config__json": {"pad_token": "[PAD]"}},
    {"tokenizer_config__json": {"pad_token": {"__type": "AddedToken", "content": "[PAD]"}}},
    {"special_tokens_map__json": {"pad_token": "[PAD]"}},
    {"special_tokens_map__json": {"pad_token": {"content": "[PAD]", "lstrip": False}}},
    {"tokenizer__json": {"padding": {"pad_token": "[PAD]", "pad_id": VOCAB_SIZE}}},
]


@pytest.mark.parametrize("listed", PAD_LISTS, ids=lambda files: next(iter(files)))
@pytest.mark.parametrize("named", PAD_NAMES, ids=str)
def test_a_padding_token_beyond_the_vocabulary_is_left_out_wherever_it_is_named(
    wide_model: Path, listed: dict[str, Any], named: dict[str, Any]
) -> None:
    if "added_tokens_decoder" in listed.get("tokenizer_config__json", {}) and "special_tokens_map__json" in named:
        return  # the older file does not count then
    files = {name: listed.get(name, {}) | named.get(name, {}) for name in listed.keys() | named.keys()}
    text = read_adapter_text(lambda name, _: json.dumps(files.get(name.replace(".", "__"), {})).encode())
    (warning,) = AdapterTokenizers(load_tokenizer(wide_model), VOCAB_SIZE).judge("padded", text)
    assert "'[PAD]' (260) only pads" in warning


def test_a_padding_token_beyond_the_vocabulary_is_left_out_with_a_warning(
    make_llm: Callable[..., LLM], make_folder: Callable[..., str]
) -> None:
    config = {"pad_token": "[PAD]"}
    folder = make_folder("padded", tokenizer__json=added(("[PAD]", VOCAB_SIZE)), tokenizer_config__json=config)
    llm = make_llm()
    info = llm.load_adapter("padded", folder)
    (warning,) = info.warnings
    assert "'[PAD]' (260)" in warning
    assert info.report is not None and info.report.warnings == llm.inspect_adapter(folder).warnings == info.warnings
    assert llm.get_tokenizer("padded") is llm.get_tokenizer()


def test_a_sum_uses_the_text_of_the_first_that_brings_any(
    make_llm: Callable[..., LLM], make_folder: Callable[..., str], tiny_adapters: dict[str, Path], tooled: str
) -> None:
    other = make_folder("other", tokenizer__json=added(("<other>", TOOL)))
    llm = make_llm(adapters={"r8": str(tiny_adapters["r8"]), "tooled": tooled, "other": other})
    (summed,) = llm.chat(HELLO, GREEDY, lora_request=[["r8", "tooled"]], use_tqdm=False)
    assert summed.prompt_token_ids[0] == TOOL
    with pytest.raises(InvalidRequest, match="add different tokens"):
        llm.chat(HELLO, GREEDY, lora_request=[["other", "tooled"]], use_tqdm=False)


def test_templates_run_in_the_sandbox(make_llm: Callable[..., LLM], make_folder: Callable[..., str]) -> None:
    llm = make_llm(adapters={"hostile": make_folder("hostile", chat_template__jinja="{{ ''.__class__.__mro__ }}")})
    with pytest.raises(InvalidRequest, match="the chat template refuses them"):
        llm.chat(HELLO, GREEDY, lora_request="hostile", use_tqdm=False)


@pytest.mark.slow
def test_the_loader_child_hands_the_text_on(tiny_model: Path, tooled: str) -> None:
    async def body(llm: AsyncLLM) -> None:
        outputs = [output async for output in llm.chat(HELLO, GREEDY, lora_request="tooled")]
        assert outputs[-1].prompt_token_ids[0] == TOOL

    shared_engine.run(tiny_model, body, {"tooled": Path(tooled)})


@pytest.mark.slow
def test_a_requests_own_template_has_the_special_tokens_of_an_adapter_that_it_loads(
    tiny_model: Path, make_folder: Callable[..., str], make_llm: Callable[..., LLM]
) -> None:
    tokens = added(("<eos>", EOS), ("<end>", TOOL), normalized=False)
    folder = make_folder("ended", tokenizer__json=tokens, tokenizer_config__json={"eos_token": "<end>"})
    prompt = {"messages": HELLO, "chat_template": "{{ eos_token }}{{ messages[0].content }}", "cache_salt": "s"}

    def check(output: RequestOutput) -> None:
        assert output.prompt_token_ids[0] == TOOL
        assert len(output.prompt_token_ids) == 1 + len("hello")

    async def body(llm: AsyncLLM) -> None:
        for _ in range(2):  # the second time it is loaded
            request = LoRARequest("ended", 1, folder)
            check([output async for output in llm.generate(prompt, GREEDY, lora_request=request)][-1])
        base = [output async for output in llm.chat(HELLO, GREEDY, chat_template=prompt["chat_template"])][-1]
        assert base.prompt_token_ids[0] == EOS

    shared_engine.run(tiny_model, body, {})
    check(make_llm().generate(prompt, GREEDY, LoRARequest("ended", 1, folder), use_tqdm=False)[0])


@pytest.mark.slow
def test_text_is_kept_while_the_same_adapter_leaves_under_another_name(
    tiny_model: Path, tooled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine takes the second load late. Meanwhile the first name, and with it the content, is dropped."""
    call = EngineConnection.call

    async def body(llm: AsyncLLM) -> None:
        is_held, is_free = asyncio.Event(), asyncio.Event()

        async def held(connection: EngineConnection, message: Any, descriptor: int | None = None) -> Any:
            if descriptor is not None:  # of an image
                is_held.set()
                await is_free.wait()
            return await call(connection, message, descriptor)

        await llm.load_adapter("first", tooled)
        monkeypatch.setattr(EngineConnection, "call", held)
        second = asyncio.create_task(llm.load_adapter("second", tooled))
        await is_held.wait()
        await llm.unload_adapter("first")
        is_free.set()
        await second
        assert llm.get_tokenizer("second").chat_template == TEMPLATE
        await llm.unload_adapter("second")

    shared_engine.run(tiny_model, body, {})
