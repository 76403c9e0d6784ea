"""Adapters trained with more tokens than the model has: only their own requests have these tokens."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from shared_engine import shared_engine
from tiny import EOS, VOCAB_SIZE, load_resized, make_adapter, make_model, quiet

from blora.engine import LLM, AdapterRejected, AsyncLLM, InvalidRequest, LoRARequest, SamplingParams

OWN_SIZE = VOCAB_SIZE + 6
FIRST, LAST = VOCAB_SIZE, OWN_SIZE - 1  # added tokens
TABLES = {"r": 4, "modules_to_save": ["embed_tokens", "lm_head"], "vocab_size": OWN_SIZE}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)
PROMPT = {"prompt_token_ids": [70, FIRST, 71, LAST, LAST, 66]}
NEAR = 2e-4


@pytest.fixture(scope="module")
def wide(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_adapter(tiny_model, tmp_path_factory.mktemp("wide") / "it", 3, **TABLES))


def peft_logprobs(model: Path, adapter: str, tokens: list[int]) -> torch.Tensor:
    """Returns the logprobs after each token: [num_tokens, vocab]."""
    with quiet():
        adapted: Any = PeftModel.from_pretrained(load_resized(model, OWN_SIZE), adapter)
    with torch.inference_mode():
        logits: torch.Tensor = adapted(input_ids=torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)


def answer(llm: LLM, prompt: Any, sampling: SamplingParams, adapter: Any = "wide") -> Any:
    return llm.generate(prompt, sampling, lora_request=adapter, use_tqdm=False)[0]


def test_prompts_and_answers_hold_added_tokens_as_in_peft(
    make_llm: Callable[..., LLM], tiny_model: Path, wide: str
) -> None:
    llm = make_llm(adapters={"wide": wide})
    output = answer(llm, PROMPT, replace(GREEDY, prompt_logprobs=2, logit_bias={FIRST + 1: 4.0, LAST: 4.0}))
    ours = output.outputs[0]
    assert any(token >= VOCAB_SIZE for token in ours.token_ids)
    expected = peft_logprobs(tiny_model, wide, output.prompt_token_ids + ours.token_ids)
    told = [*output.prompt_logprobs[1:], *ours.logprobs]
    assert len(told) == len(output.prompt_token_ids) - 1 + len(ours.token_ids)
    for row, entries in zip(expected, told, strict=False):
        for token, entry in entries.items():
            assert abs(entry.logprob - row[token]) < NEAR
            assert entry.rank == 1 + int((row > row[token]).sum())


SAMPLINGS = [
    SamplingParams(temperature=0, logprobs=2),
    SamplingParams(temperature=1.5, seed=1),
    SamplingParams(temperature=1.0, seed=2, top_k=300),
    SamplingParams(temperature=2.0, seed=3, top_p=0.9, logprobs=20),
    SamplingParams(temperature=1.0, seed=4, min_p=0.01, repetition_penalty=1.3, frequency_penalty=0.5),
    SamplingParams(temperature=1.0, seed=5, logit_bias={LAST: 3.0}, min_tokens=6, stop_token_ids=[FIRST, LAST]),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_beside_it_are_what_they_are_alone(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], wide: str, backend: str, dtype: str
) -> None:
    if backend == "reference" and dtype == "bfloat16":
        pytest.skip("torch rounds by shape")
    adapters = {"wide": wide, "r4": str(tiny_adapters["r4"])}
    llm = make_llm(adapters=adapters, dtype=dtype, enable_prefix_caching=False)
    rows = []
    for sampling in SAMPLINGS:
        long = replace(sampling, max_tokens=24, ignore_eos=True, prompt_logprobs=1)
        narrow = replace(long, logit_bias=None, stop_token_ids=None)
        rows += [("a prompt", narrow, None), (PROMPT, long, "wide"), ("other", narrow, "r4"), ("text", long, "wide")]
    prompts, samplings, names = zip(*rows, strict=True)
    together = llm.generate(list(prompts), list(samplings), lora_request=list(names), use_tqdm=False)
    for (prompt, sampling, name), output in zip(rows, together, strict=True):
        alone = answer(llm, prompt, sampling, name)
        assert output.outputs[0].token_ids == alone.outputs[0].token_ids
        if backend == "cpu":
            assert output.outputs[0].logprobs == alone.outputs[0].logprobs
            assert output.prompt_logprobs == alone.prompt_logprobs
    assert any(token >= VOCAB_SIZE for output in together for token in output.outputs[0].token_ids)


MISUSES = {
    "prompt": ({"prompt_token_ids": [70, FIRST]}, SamplingParams()),
    "stop_token_ids": ("x", SamplingParams(stop_token_ids=[FIRST])),
    "logit_bias": ("x", SamplingParams(logit_bias={LAST: 1.0})),
}


@pytest.mark.parametrize("field", MISUSES)
@pytest.mark.parametrize("adapter", [None, "r4"])
def test_nobody_else_has_its_tokens(
    field: str, adapter: str | None, make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], wide: str
) -> None:
    prompt, sampling = MISUSES[field]
    llm = make_llm(adapters={"wide": wide, "r4": str(tiny_adapters["r4"])})
    with pytest.raises(InvalidRequest, match=f"{field}: .* is not a token id from 0 to {VOCAB_SIZE - 1}"):
        answer(llm, prompt, sampling, adapter)
    assert answer(llm, prompt, replace(sampling, max_tokens=2)).outputs[0].token_ids


def test_it_has_no_more_than_its_own(make_llm: Callable[..., LLM], wide: str) -> None:
    llm = make_llm(adapters={"wide": wide})
    with pytest.raises(InvalidRequest, match=f"prompt: {OWN_SIZE} is not a token id from 0 to {LAST}"):
        answer(llm, {"prompt_token_ids": [OWN_SIZE]}, GREEDY)


def test_a_request_that_loads_it_has_its_tokens(make_llm: Callable[..., LLM], wide: str, tiny_adapters: Any) -> None:
    llm = make_llm()
    request = LoRARequest("wide", lora_path=wide)
    loading = answer(llm, PROMPT, GREEDY, request)
    assert loading.outputs[0].token_ids == answer(llm, PROMPT, GREEDY).outputs[0].token_ids
    with pytest.raises(InvalidRequest, match=f"{FIRST} is not a token id from 0 to {VOCAB_SIZE - 1}"):
        answer(llm, PROMPT, GREEDY, LoRARequest("r4", lora_path=str(tiny_adapters["r4"])))


@pytest.fixture
def talking(tiny_model: Path, tmp_path: Path) -> str:
    """Adds a tokenizer whose tokens fill the ids up to the added ones, as it is saved beside an adapter."""
    folder = make_adapter(tiny_model, tmp_path / "talking", 3, **TABLES)
    names = ["<eos>", *(f"<unused{token}>" for token in range(EOS + 1, FIRST)), "<tool>", "<end>"]
    tokens = [{"content": name, "id": EOS + i, "special": name == "<end>"} for i, name in enumerate(names)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return str(folder)


def test_its_tokenizer_reads_and_writes_them(make_llm: Callable[..., LLM], talking: str) -> None:
    llm = make_llm(adapters={"wide": talking})
    forced = replace(GREEDY, max_tokens=2, logit_bias={FIRST: 100.0})
    output = answer(llm, "a<tool>b", forced)
    assert output.prompt_token_ids[1] == FIRST and len(output.prompt_token_ids) == 3
    assert output.outputs[0].text == "<tool><tool>"
    assert output.outputs[0].logprobs[0][FIRST].decoded_token == "<tool>"


def test_its_end_token_ends_its_requests(make_llm: Callable[..., LLM], talking: str) -> None:
    llm = make_llm(adapters={"wide": talking})
    output = answer(llm, "a", SamplingParams(temperature=0, max_tokens=9, min_tokens=3, logit_bias={FIRST + 1: 100.0}))
    assert (output.outputs[0].finish_reason, output.outputs[0].token_ids[-1]) == ("stop", FIRST + 1)
    assert len(output.outputs[0].token_ids) == 4


@pytest.mark.slow
def test_it_works_in_an_engine_process(wide: str, tiny_model: Path) -> None:
    direct = LLM(str(tiny_model), backend="cpu", memory="2MB", block_size=4, adapters={"wide": wide})

    async def body(llm: AsyncLLM) -> None:
        info = await llm.load_adapter("wide", wide)
        assert info.report is not None and info.report.vocab_size == OWN_SIZE
        final = [output async for output in llm.generate(PROMPT, GREEDY, lora_request="wide")][-1]
        assert final.outputs[0].token_ids == answer(direct, PROMPT, GREEDY).outputs[0].token_ids

    shared_engine.run(tiny_model, body, {})


def test_it_takes_no_partner(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], wide: str) -> None:
    llm = make_llm(adapters={"wide": wide, "r4": str(tiny_adapters["r4"])})
    with pytest.raises(InvalidRequest, match="takes no scale and no partner"):
        answer(llm, "x", GREEDY, [("wide", "r4")])


@pytest.mark.parametrize("is_tied", [False, True])
def test_embeddings_without_logits_are_refused(is_tied: bool, make_llm: Callable[..., LLM], tmp_path: Path) -> None:
    """PEFT saves no head beside LoRA on the embedding. A tied head is known without being saved."""
    model = make_model(tmp_path / "model", tie_word_embeddings=is_tied)
    folder = make_adapter(model, tmp_path / "it", target_modules=["embed_tokens"], vocab_size=OWN_SIZE)
    llm = make_llm(model)
    if is_tied:
        assert llm.inspect_adapter(folder).vocab_size == OWN_SIZE
    else:
        with pytest.raises(AdapterRejected, match=f"lm_head: rows of the added tokens {FIRST} to {LAST} are missing"):
            llm.load_adapter("it", folder)


def test_too_many_are_refused(make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "it", vocab_size=VOCAB_SIZE + 4097)
    with pytest.raises(AdapterRejected, match=f"4097 tokens are added to the model's {VOCAB_SIZE}, at most 4096"):
        make_llm(memory="8MB").load_adapter("it", folder)


def test_an_activated_adapter_has_none(make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(
        tiny_model, tmp_path / "it", target_modules=["q_proj"], alora_invocation_tokens=[66], vocab_size=OWN_SIZE
    )
    with pytest.raises(AdapterRejected, match=f"an activated LoRA with {OWN_SIZE} tokens is not served"):
        make_llm().load_adapter("it", folder)
