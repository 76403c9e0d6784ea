"""The validator: every bound of every field, from both sides. A refusal names the field."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from blora.engine.errors import InvalidRequest
from blora.engine.facts import Facts
from blora.engine.front_end.token_lists import TokenLists
from blora.engine.front_end.validator import (
    MAX_PROMPT_LOGPROBS,
    MAX_PROMPT_TOKENS,
    WITHOUT_EFFECT,
    Limits,
    as_plain,
    as_token_ids,
    check_salt,
    check_sampling,
    check_tenant,
    resolve_max_tokens,
    with_all_logprobs,
)
from blora.engine.identity.tenant import Tenant
from blora.engine.text.chat import Chat
from blora.engine.text.sizes import MAX_BYTES_PER_TOKEN, MIN_READ, check_chat, check_text
from blora.scheduler import SamplingParams

VOCAB = 1000
FACTS = Facts(vocab_size=VOCAB, max_model_len=64, block_size=4, num_pages=12)

TINY = 5e-324
NOT_NUMBERS: list[Any] = [True, False, "1", [], 1j, b"1"]
NOT_FINITE = [math.nan, math.inf, -math.inf]
FLAGS = (
    "include_stop_str_in_output",
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)


def above(value: float) -> float:
    return math.nextafter(value, math.inf)


def below(value: float) -> float:
    return math.nextafter(value, -math.inf)


GOOD: dict[str, list[Any]] = {
    "n": [1, 2, 1024],
    "temperature": [0, 0.0, -0.0, TINY, 1e-45, 1, 5, 5.0],
    "top_k": [-1, 0, 1, VOCAB, VOCAB + 1, 2**31 - 1],
    "top_p": [TINY, 0.5, 1, 1.0],
    "min_p": [0, 0.0, -0.0, TINY, 1.0],
    "seed": [None, 0, -1, -(2**63), 2**63 - 1],
    "presence_penalty": [-2, -2.0, 0, 2.0],
    "frequency_penalty": [-2, -2.0, 0, 2.0],
    "repetition_penalty": [TINY, 0.5, 1, 10, 10.0],
    "logit_bias": [None, {}, {0: -100}, {VOCAB - 1: 100.0}, {1: 1e9, 2: -3e38}, dict.fromkeys(range(VOCAB), 0.5)],
    "allowed_token_ids": [None, [0], (VOCAB - 1, 0), range(VOCAB), [5, 5]],
    "bad_words": [None, [], "x", ["x"], [" x", "y "], "\n", ["x"] * 512, "x" * 256],
    "max_tokens": [None, 1, 64, 2**31],
    "min_tokens": [0, 1, 16],
    "stop": [None, [], "x", ["x"], ("x", "y"), ["x"] * 256, "x" * 256, "\0", "é漢👍"],
    "stop_token_ids": [None, [], (), [0], [VOCAB - 1], list(range(256))],
    "logprobs": [None, 0, 1, 20],
    "prompt_logprobs": [None, 0, 1, 20],
    "stream_interval": [None, 1, 100, (1 << 31) - 1],
    "truncate_prompt_tokens": [None, -1, 1, 10**30],
    "skip_clone": [True, False],
    "skip_reading_prefix_cache": [None, True, False],
    "routed_experts_prompt_start": [0, 5],
    "extra_args": [None, {}],
    "flat_logprobs": [False],
    "prompt_logprob_start": [None, 0],
    "thinking_token_budget": [None, -1],
    **dict.fromkeys(FLAGS, [True, False]),
}

BAD: dict[str, list[Any]] = {
    "n": [None, 0, -1, 1025, 10**6, 2**31 - 1, 2**32 - 1, 2**64 - 1, 1.0, *NOT_FINITE, *NOT_NUMBERS],
    "temperature": [None, -TINY, above(5.0), -1, 10**400, 1e308, *NOT_FINITE, *NOT_NUMBERS],
    "top_k": [None, -2, -(2**31), 2**31, 2**70, 1.0, *NOT_FINITE, *NOT_NUMBERS],
    "top_p": [None, 0, 0.0, -0.0, -TINY, above(1.0), 2, *NOT_FINITE, *NOT_NUMBERS],
    "min_p": [None, -TINY, above(1.0), 2, *NOT_FINITE, *NOT_NUMBERS],
    "seed": [-(2**63) - 1, 2**63, 2**64 - 1, 1.0, *NOT_FINITE, *NOT_NUMBERS],
    "presence_penalty": [None, below(-2.0), above(2.0), *NOT_FINITE, *NOT_NUMBERS],
    "frequency_penalty": [None, below(-2.0), above(2.0), *NOT_FINITE, *NOT_NUMBERS],
    "repetition_penalty": [None, 0, 0.0, -0.0, -TINY, above(10.0), *NOT_FINITE, *NOT_NUMBERS],
    "logit_bias": [
        *({token: 1.0} for token in (-1, -VOCAB, VOCAB, 2**31 - 1, 2**31, "1", 1.0, True, None)),
        *({1: bias} for bias in (None, above(3e38), below(-3e38), *NOT_FINITE, *NOT_NUMBERS)),
        *([1], [(1, 2.0)], "1", 1, 1.5),
    ],
    "max_tokens": [0, -1, 1.0, *NOT_FINITE, *NOT_NUMBERS],
    "min_tokens": [None, -1, 17, 2**31, 1.0, *NOT_FINITE, *NOT_NUMBERS],
    "stop": [
        "",
        [""],
        ["x", ""],
        "x" * 257,
        ["x"] * 257,
        [None],
        [1],
        1,
        1.5,
        True,
        b"x",
        {"x": 1},
        "\ud800",
        ["a\udfffb"],
    ],
    "stop_token_ids": [
        *(
            [-1],
            [VOCAB],
            [2**31],
            ["1"],
            [1.0],
            [True],
            [None],
            [math.nan],
            list(range(257)),
            0,
            1,
            1.5,
            "1",
            True,
            {1: 2},
        ),
    ],
    "logprobs": [-1, -2, 21, VOCAB, 2**31, 1.0, *NOT_FINITE, *NOT_NUMBERS],
    "prompt_logprobs": [-1, -2, 21, VOCAB, 2**31, 1.0, *NOT_FINITE, *NOT_NUMBERS],
    **dict.fromkeys(FLAGS, [None, 0, 1, "yes", ""]),
    "output_kind": [None, "delta", 1],
    "allowed_token_ids": [[], [-1], [VOCAB], [2**31], ["1"], [1.0], [True], [None], 0, "1", {1: 2}, [1] * (VOCAB + 1)],
    "bad_words": ["", [""], ["x", ""], "x" * 257, ["x"] * 513, [None], [1], 1, b"x", "\ud800"],
    "structured_outputs": [{"json": {}}, object, "x"],
    "truncate_prompt_tokens": [0, -2, 1.0, *NOT_FINITE, *NOT_NUMBERS],
    "stream_interval": [0, -1, 1 << 31, 1.0, *NOT_FINITE, *NOT_NUMBERS],
    "extra_args": [{"kv_transfer_params": 1}],
    "flat_logprobs": [True, 1],
    "logprob_token_ids": [[1], np.array([1])],
    "prompt_logprob_token_ids": [[1]],
    "prompt_logprob_start": [1, False],
    "repetition_detection": [object()],
    "thinking_token_budget": [0, 5],
    "trace_decode_token_ids": [[1], []],
    "watermarking": [True, "on"],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={ascii(value):.20}") for name in table for value in table[name]]


def refused(check: Callable[[], object], field: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert len(str(caught.value)) < 1000
    return caught.value.reason


def check_all(params: SamplingParams) -> None:
    """Checks the entries of the long lists, too."""
    check_sampling(params, FACTS)
    TokenLists.of(params).pack_at_once(FACTS)


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
def test_values_up_to_the_bound_are_taken(name: str, value: Any) -> None:
    check_all(SamplingParams(**{name: value}))


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_values_beyond_the_bound_are_refused(name: str, value: Any) -> None:
    refused(lambda: check_all(SamplingParams(**{name: value})), name)


def test_every_field_has_bounds() -> None:
    free = WITHOUT_EFFECT.keys() - set(FLAGS)
    assert BAD.keys() | free == {field.name for field in fields(SamplingParams)}


def test_a_minimum_above_the_maximum_is_refused() -> None:
    check_sampling(SamplingParams(min_tokens=5, max_tokens=5), FACTS)
    refused(lambda: check_sampling(SamplingParams(min_tokens=6, max_tokens=5), FACTS), "min_tokens")


def test_stop_strings_need_text() -> None:
    check_sampling(SamplingParams(detokenize=False), FACTS)
    refused(lambda: check_sampling(SamplingParams(stop="x", detokenize=False), FACTS), "stop")


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_logprobs_are_limited_by_an_option(name: str) -> None:
    for most, good, bad in ((5, [0, 5], [6, -1]), (None, [0, VOCAB, -1], [VOCAB + 1, -2]), (VOCAB, [-1], [VOCAB + 1])):
        for number in good:
            check_sampling(SamplingParams(**{name: number}), FACTS, Limits(max_logprobs=most))
        for number in bad:
            params = SamplingParams(**{name: number})
            refused(lambda params=params, most=most: check_sampling(params, FACTS, Limits(max_logprobs=most)), name)  # type: ignore[misc]


def test_the_whole_vocabulary_is_a_number_in_the_end() -> None:
    resolved = with_all_logprobs(SamplingParams(logprobs=-1, prompt_logprobs=-1), 10, FACTS)
    assert (resolved.logprobs, resolved.prompt_logprobs) == (VOCAB, VOCAB)
    few = SamplingParams(logprobs=3)
    assert with_all_logprobs(few, 10, FACTS) == few
    refused(lambda: with_all_logprobs(SamplingParams(prompt_logprobs=-1), 1 << 20, FACTS), "prompt_logprobs")


def test_logprobs_of_a_prompt_are_limited_for_all_of_its_tokens_together() -> None:
    four, none = SamplingParams(prompt_logprobs=4), SamplingParams(logprobs=4)
    assert with_all_logprobs(four, MAX_PROMPT_LOGPROBS // 4, FACTS) == four
    refused(lambda: with_all_logprobs(four, MAX_PROMPT_LOGPROBS // 4 + 1, FACTS), "prompt_logprobs")
    assert with_all_logprobs(none, MAX_PROMPT_LOGPROBS + 1, FACTS) == none


def test_samples_and_stops_are_limited_by_options() -> None:
    limits = Limits(max_n=2, max_stops=3)
    check_sampling(SamplingParams(n=2, stop=["a", "b", "c"], stop_token_ids=[1, 2, 3]), FACTS, limits)
    for params in (SamplingParams(n=3), SamplingParams(stop=["a"] * 4), SamplingParams(stop_token_ids=[1] * 4)):
        with pytest.raises(InvalidRequest, match="more than the"):
            check_sampling(params, FACTS, limits)


def test_long_lists_are_limited_for_all_samples_together() -> None:
    wide = replace(FACTS, vocab_size=1 << 20)
    ids = range(1 << 13)
    values: dict[str, Any] = {"allowed_token_ids": ids, "logit_bias": dict.fromkeys(ids, 1.0)}
    for name, value in values.items():
        check_sampling(SamplingParams(n=128, **{name: value}), wide)
        more = SamplingParams(n=129, **{name: value})
        refused(lambda more=more: check_sampling(more, wide), name)  # type: ignore[misc]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 4e38, -4e38])
def test_one_bias_of_many_may_not_be_too_large(bad: float) -> None:
    for place in (0, 7, VOCAB - 1):
        biases = dict.fromkeys(range(VOCAB), 1.0) | {place: bad}
        refused(lambda biases=biases: check_all(SamplingParams(logit_bias=biases)), "logit_bias")


def test_the_prompts_of_all_samples_are_bounded() -> None:
    facts = replace(FACTS, max_model_len=1 << 17, num_pages=1 << 17)
    prompt, most = [1] * (1 << 16), MAX_PROMPT_TOKENS >> 16
    assert resolve_max_tokens(prompt, SamplingParams(n=most, max_tokens=4), 0, facts) == 4
    refused(lambda: resolve_max_tokens(prompt, SamplingParams(n=most + 1, max_tokens=4), 0, facts), "n")


# Prompts.


def resolve(prompt: Any, num_adapter_pages: int = 0, facts: Facts = FACTS, **sampling: Any) -> int:
    return resolve_max_tokens(prompt, SamplingParams(**sampling), num_adapter_pages, facts)


@pytest.mark.parametrize("token_id", [-1, -VOCAB, VOCAB, VOCAB + 1, 2**31 - 1, 2**31, 2**63, 1.0, "1", True, None])
def test_token_ids_beyond_the_logits_are_refused(token_id: Any) -> None:
    refused(lambda: resolve([token_id]), "prompt")
    refused(lambda: resolve([1, 2, token_id]), "prompt")
    refused(lambda: resolve([token_id, 1]), "prompt")


def test_the_last_token_id_is_taken() -> None:
    assert resolve([0, VOCAB - 1], max_tokens=3) == 3


@pytest.mark.parametrize("prompt", [[], ()])
def test_an_empty_prompt_is_refused(prompt: Any) -> None:
    assert resolve([1], max_tokens=1) == 1
    refused(lambda: resolve(prompt), "prompt")


LARGE = Facts(vocab_size=VOCAB, max_model_len=64, block_size=4, num_pages=16)


@pytest.mark.parametrize("asked", [4, 5, 64, 65, 2**31, 2**63, 10**30])
def test_a_maximum_beyond_the_models_length_means_the_room_left(asked: int) -> None:
    assert resolve([1] * 60, facts=LARGE, max_tokens=asked) == 4
    assert as_plain(SamplingParams(max_tokens=asked)).max_tokens == min(asked, 2**31 - 1)


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    assert resolve([1] * 63, facts=LARGE, max_tokens=1) == 1
    refused(lambda: resolve([1] * 64, facts=LARGE, max_tokens=1), "prompt")
    refused(lambda: resolve([1] * 64, facts=LARGE, max_tokens=None), "prompt")
    refused(lambda: resolve([1] * 65, facts=LARGE, max_tokens=None), "prompt")


def test_no_maximum_means_up_to_the_models_length() -> None:
    assert resolve([1] * 10, facts=LARGE, max_tokens=None) == 54


@pytest.mark.parametrize("max_tokens", [None, 5, 1000])
def test_a_minimum_beyond_the_room_is_refused(max_tokens: int | None) -> None:
    assert resolve([1] * 60, facts=LARGE, max_tokens=max_tokens, min_tokens=4) == 4
    refused(lambda: resolve([1] * 60, facts=LARGE, max_tokens=max_tokens, min_tokens=5), "min_tokens")


def test_a_default_maximum_makes_no_request_fail() -> None:
    """One that the user named as well does: the memory has 48 tokens, the model 64."""
    limits = Limits(default_max_tokens=20)
    for max_tokens, min_tokens, expected in ((20, 0, 8), (20, 8, 8), (8, 0, 8)):
        params = SamplingParams(max_tokens=max_tokens, min_tokens=min_tokens)
        assert resolve_max_tokens([1] * 40, params, 0, FACTS, limits) == expected
    beside = SamplingParams(max_tokens=20)
    assert resolve_max_tokens([1] * 20, beside, 3, FACTS, limits) == 16  # of 12 pages, 3 are the adapter's
    more = SamplingParams(max_tokens=20, min_tokens=30)
    check_sampling(more, FACTS, limits)
    assert resolve_max_tokens([1], more, 0, FACTS, limits) == 30
    refused(lambda: resolve([1] * 40, max_tokens=20), "max_tokens")
    refused(lambda: check_sampling(SamplingParams(max_tokens=21, min_tokens=30), FACTS, limits), "min_tokens")


def test_a_request_larger_than_the_memory_is_refused() -> None:
    assert resolve([1] * 40, max_tokens=8) == 8  # 12 pages of 4 tokens
    assert "13 pages, the memory has 12" in refused(lambda: resolve([1] * 40, max_tokens=9), "max_tokens")


def test_adapter_pages_count() -> None:
    assert resolve([1] * 40, num_adapter_pages=1, max_tokens=4) == 4
    refused(lambda: resolve([1] * 40, num_adapter_pages=1, max_tokens=5), "max_tokens")
    refused(lambda: resolve([1], num_adapter_pages=12, max_tokens=1), "max_tokens")


# Texts, tenants and salts.


@pytest.mark.parametrize("name", ["", "x" * 128, "é" * 128, "a b"])
def test_tenants_are_short_printable_texts(name: str) -> None:
    assert check_tenant(name) == check_tenant(check_tenant(name)) == Tenant(name)


@pytest.mark.parametrize("name", ["x" * 129, "a\n", "\ud800", None, 1, b"x"], ids=repr)
def test_other_tenants_are_refused(name: Any) -> None:
    refused(lambda: check_tenant(name), "tenant")
    refused(lambda: check_tenant(Tenant(name)), "tenant")


@pytest.mark.parametrize("text", ["x", "\0", "é👍", "\ufffd", "x" * 64 * 16, " "])
def test_texts_that_can_fit_are_taken(text: str) -> None:
    assert check_text(text, FACTS) == text


@pytest.mark.parametrize("text", ["", None, 1, b"x", ["x"], "x" * (64 * 16 + 1), "\ud800", "a\udc00b", "\udfff\ud800"])
def test_texts_that_cannot_be_served_are_refused(text: Any) -> None:
    refused(lambda: check_text(text, FACTS), "prompt")


@pytest.mark.parametrize(
    ("salt", "key"),
    [(None, b""), ("", b""), ("x", b"x"), ("\0\n", b"\0\n"), ("x" * 128, b"x" * 128), ("é" * 64, b"\xc3\xa9" * 64)],
)
def test_salts_are_opaque_bytes(salt: str | None, key: bytes) -> None:
    assert check_salt(salt) == key


def test_a_lone_surrogate_is_a_salt_of_its_own() -> None:
    salts = [check_salt(salt) for salt in ("\ud800", "\udfff", "?", "\ufffd")]
    assert len(set(salts)) == len(salts)


@pytest.mark.parametrize("salt", ["x" * 129, "é" * 65, "x" * (10 << 20), b"x", 1, True, ["x"], math.nan])
def test_salts_that_are_too_long_or_no_text_are_refused(salt: Any) -> None:
    refused(lambda: check_salt(salt), "cache_salt")


MOST = FACTS.max_model_len * MAX_BYTES_PER_TOKEN  # characters of a conversation
LARGEST = max(4 * MOST, MIN_READ)


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        ({"messages": [{"role": "user", "content": "x" * MOST}]}, "messages"),
        ({"messages": [{"role": "user", "content": ["x" * MOST]}]}, "messages"),
        ({"messages": [{"role": "user", "content": ""}] * (FACTS.max_model_len + 1)}, "messages"),
        ({"messages": [{"role": "user", "tool_calls": [{"x": {"y": "x" * LARGEST}}]}]}, "messages"),
        ({"messages": [{"role": "user"}], "tools": [{"x": ["x" * 99, 1] * (LARGEST // 99)}]}, "tools"),
        ({"messages": [{"role": "user"}], "chat_template_kwargs": {"x" * (LARGEST + 1): 1}}, "chat_template_kwargs"),
    ],
)
def test_the_size_of_a_conversation_is_checked_before_it_is_rendered(chat: Any, field: str) -> None:
    refused(lambda: check_chat(Chat.read(chat), FACTS), field)


def test_a_good_conversation_passes() -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "", "reasoning": "x" * 99}]
    check_chat(Chat.read({"messages": messages, "tools": [{"x": "x" * (MIN_READ - 99)}]}), FACTS)


INTEGERS: list[Any] = [np.int64(7), np.uint8(7), np.array(7), torch.tensor(7)]


@pytest.mark.parametrize("seven", INTEGERS, ids=repr)
def test_integers_of_other_libraries_are_taken_as_ints(seven: Any) -> None:
    assert as_token_ids("prompt", [1, seven]) == [1, 7]
    params = SamplingParams(seed=seven, max_tokens=seven, stop_token_ids=[seven])
    check_sampling(params, FACTS)
    plain = as_plain(params)
    assert (plain.seed, plain.max_tokens, plain.stop_token_ids) == (7, 7, (7,))
    assert {type(value) for value in (plain.seed, plain.max_tokens, *(plain.stop_token_ids or ()))} == {int}


@pytest.mark.parametrize("other", [1.0, np.float64(1), np.bool_(True), True, "1", None, [1], 1j], ids=repr)
def test_what_is_no_integer_is_no_token(other: Any) -> None:
    refused(lambda: as_token_ids("prompt", [1, other]), "prompt")
    refused(lambda: check_sampling(SamplingParams(stop_token_ids=[other]), FACTS), "stop_token_ids")


def test_integers_of_other_libraries_have_the_same_range() -> None:
    refused(lambda: check_sampling(SamplingParams(stop_token_ids=[np.int64(VOCAB)]), FACTS), "stop_token_ids")
    refused(lambda: check_sampling(SamplingParams(stop_token_ids=[np.int64(-1)]), FACTS), "stop_token_ids")
