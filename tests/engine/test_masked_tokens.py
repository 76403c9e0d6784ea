"""allowed_token_ids and bad_words through the whole engine: their words, adapters, and rows beside each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from blora.engine import LLM, InvalidRequest, SamplingParams
from blora.engine.facts import Facts
from blora.engine.text.bad_words import drawable, spellings
from blora.engine.text.tokenizer import Tokenizer

FACTS = Facts(vocab_size=9, max_model_len=64, block_size=4, num_pages=12)
WORDS = {"Ġ": 0, "a": 1, "b": 2, "Ġa": 3, "ab": 4, "Ġab": 5, "c": 6, "Ġabc": 7, "d": 8, "e": 9}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Merges "ab" and " ab", and " abc" but not "abc"; the logits do not reach to "e"."""
    merges = [("Ġ", "a"), ("a", "b"), ("Ġa", "b"), ("Ġab", "c")]
    backend = Backend(models.BPE(WORDS, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, {}, None)


@pytest.mark.parametrize(
    ("words", "sequences"),
    [
        (["ab"], {(4,), (5,)}),
        ([" ab"], {(4,), (5,)}),
        (["ab", "  ab"], {(4,), (5,)}),
        (["abc"], {(4, 6), (7,)}),  # vLLM forgets the second
        (["c"], {(6,)}),  # " c" ends in "c"
        (["dab"], {(8, 4)}),
        ([" "], {(0,)}),  # vLLM refuses it
        (["e"], set()),
        (["ce", "d"], {(8,)}),
    ],
)
def test_words_have_their_tokens_with_and_without_a_space(
    tokenizer: Tokenizer, words: list[str], sequences: set[tuple[int, ...]]
) -> None:
    assert set(drawable(spellings(words, tokenizer), FACTS.vocab_size)) == sequences


def test_a_word_without_a_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="^bad_words: 'zzz' has no token"):
        spellings(["ab", "zzz"], tokenizer)


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True} | fields)


def text_of(llm: LLM, sampling: SamplingParams, adapter: str | None = None) -> str:
    return llm.generate("a prompt", sampling, lora_request=adapter, use_tqdm=False)[0].outputs[0].text


@pytest.mark.parametrize("adapter", [None, "r4"])
def test_a_bad_word_is_not_said(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], adapter: str | None
) -> None:
    llm = make_llm(adapters={"r4": tiny_adapters["r4"]})
    letters = llm.get_tokenizer().encode("abcdefghijklm")
    plain = text_of(llm, greedy(allowed_token_ids=letters), adapter)
    for size in (1, 2, 3):
        word = plain[4 : 4 + size]
        changed = text_of(llm, greedy(allowed_token_ids=letters, bad_words=[word, "not said anyway"]), adapter)
        assert word not in changed
        same = plain.index(word) + size - 1  # characters before the first one that would complete the word
        assert changed[:same] == plain[:same] and changed[same] != plain[same]
    assert text_of(llm, greedy(allowed_token_ids=letters, bad_words=[]), adapter) == plain


def test_only_allowed_tokens_are_said(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    allowed = llm.get_tokenizer().encode("xyz")
    for temperature in (0, 1.0):
        sampling = greedy(allowed_token_ids=allowed, temperature=temperature, logprobs=3)
        answer = llm.generate("a prompt", sampling, use_tqdm=False)[0].outputs[0]
        assert set(answer.text) <= set("xyz")
        assert answer.logprobs is not None and len(answer.logprobs[0]) >= 3  # of all tokens, before the mask


def test_a_request_without_a_token_to_draw_fails_alone(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    allowed = llm.get_tokenizer().encode("x")
    samplings = [greedy(), greedy(allowed_token_ids=allowed, bad_words=["xx"]), greedy(allowed_token_ids=allowed)]
    outputs = llm.generate(["a", "a", "a"], samplings, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length"]
    assert "bad_words" in (outputs[1].outputs[0].error or "")


@pytest.mark.parametrize("field", ["allowed_token_ids", "stop_token_ids", "logit_bias"])
def test_tokens_beyond_the_models_are_refused(make_llm: Callable[..., LLM], field: str) -> None:
    llm = make_llm()
    value: Any = {260: 1.0} if field == "logit_bias" else [260]
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        llm.generate("a", greedy(**{field: value}), use_tqdm=False)


@pytest.mark.usefixtures("blind_forecast")
def test_each_row_of_a_mixed_batch_is_its_solo_run(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], backend: str
) -> None:
    """With all that limits draws, some of it impossible to fulfil, in chunks and with preemption."""
    llm = make_llm(adapters={name: tiny_adapters[name] for name in ("r4", "r8")}, enable_prefix_caching=False)
    crowded = make_llm(
        adapters={name: tiny_adapters[name] for name in ("r4", "r8")}, memory="340KB", max_num_batched_tokens=9
    )
    ids = llm.get_tokenizer().encode("abcdefgh ")
    said = text_of(llm, greedy(allowed_token_ids=ids))
    samplings = [
        greedy(logprobs=2),
        greedy(allowed_token_ids=ids, bad_words=[said[:2], said[3:5]], logprobs=2),
        greedy(allowed_token_ids=ids, temperature=0.8, seed=3, n=2),
        greedy(allowed_token_ids=ids[:1], bad_words=["a"]),
        greedy(temperature=1.0, seed=5, bad_words=said[:2], logit_bias={7: 2.0}, repetition_penalty=1.2, logprobs=0),
        greedy(min_tokens=4, stop_token_ids=[*range(60)], allowed_token_ids=[*range(65)], ignore_eos=False),
        greedy(prompt_logprobs=1, bad_words=["e"]),
    ] * 2
    adapters = [None, "r4", "r8", None, "r4", None, "r8", "r8", None, "r4", "r8", None, "r4", None]
    prompts = [f"prompt {index % 5}" for index in range(len(samplings))]
    outputs = crowded.generate(prompts, samplings, lora_request=adapters, use_tqdm=False)
    for prompt, sampling, adapter, output in zip(prompts, samplings, adapters, outputs, strict=True):
        (alone,) = llm.generate(prompt, sampling, lora_request=adapter, use_tqdm=False)
        for sample, expected in zip(output.outputs, alone.outputs, strict=True):
            assert (sample.token_ids, sample.finish_reason) == (expected.token_ids, expected.finish_reason)
            if backend == "cpu":
                assert sample.logprobs == expected.logprobs
