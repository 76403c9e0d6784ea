"""Activated LoRA (aLoRA): rows are base rows up to the invocation tokens and PEFT's from there; the prefix is the base
model's."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare import assert_same_tokens
from peft import PeftModel
from peft_greedy import greedy_tokens
from tiny import make_adapter
from transformers import LlamaForCausalLM

from blora.engine import LLM, InvalidRequest, RequestOutput, SamplingParams

pytestmark = pytest.mark.slow

BLOCK = 4
INVOCATION = "<go>"  # four tokens of the tiny model, one for each byte
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=2)
# Prompts with the invocation at all distances from a block's start, at both ends, more than once, and overlapping.
PROMPTS = [
    *("x" * length + INVOCATION + " and more" for length in range(9)),
    "a prompt that ends with " + INVOCATION,
    INVOCATION + " first, then another " + INVOCATION + " x",
    "a<go" + INVOCATION + "<g",
    INVOCATION,
]


@pytest.fixture(scope="session")
def activated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("activated")
    tokens = LLM(str(tiny_model), memory="1MB").get_tokenizer().encode(INVOCATION)
    fields: dict[str, dict[str, Any]] = {
        "all": {"r": 8, "alora_invocation_tokens": tokens},
        "values": {"r": 3, "target_modules": ["v_proj", "down_proj"], "alora_invocation_tokens": tokens},
        "plain": {"r": 8},
    }
    return {name: str(make_adapter(tiny_model, folder / name, 7, **these)) for name, these in fields.items()}


def run(llm: LLM, prompts: Any, adapters: Any = None, sampling: SamplingParams = GREEDY) -> list[RequestOutput]:
    return llm.generate(prompts, sampling, lora_request=adapters, use_tqdm=False)


def peft_tokens(model: Path, adapter: str, prompt: list[int]) -> list[int]:
    adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model), adapter)
    return greedy_tokens(adapted, prompt, GREEDY.max_tokens)


@pytest.mark.parametrize("num_batched_tokens", [5, 64])
def test_rows_equal_peft_in_one_mixed_batch(
    make_llm: Callable[..., LLM], tiny_model: Path, activated: dict[str, str], num_batched_tokens: int
) -> None:
    llm = make_llm(adapters=activated, max_num_batched_tokens=num_batched_tokens)
    batch = [(prompt, name) for prompt in PROMPTS for name in (None, *activated)]
    outputs = run(llm, [prompt for prompt, _ in batch], [name for _, name in batch])
    for (prompt, name), output in zip(batch, outputs, strict=True):
        if name in ("all", "values"):
            ours = output.outputs[0]
            reference = dataclasses.replace(
                ours, token_ids=peft_tokens(tiny_model, activated[name], output.prompt_token_ids)
            )
            assert_same_tokens(ours, reference, (prompt, name))


def test_prompt_logprobs_before_the_invocation_are_the_base_models(
    make_llm: Callable[..., LLM], activated: dict[str, str], backend: str
) -> None:
    llm = make_llm(adapters=activated, enable_prefix_caching=False)
    sampling = dataclasses.replace(GREEDY, prompt_logprobs=0)
    prompt = "some words before " + INVOCATION + " some after"
    start = prompt.index(INVOCATION)
    base, ours = (run(llm, prompt, name, sampling)[0].prompt_logprobs for name in (None, "all"))
    assert base is not None and ours is not None
    logprobs = [[next(iter((entry or {0: None}).values())) for entry in entries] for entries in (base, ours)]
    same = [getattr(one, "logprob", 0) == getattr(other, "logprob", 0) for one, other in zip(*logprobs, strict=True)]
    if backend == "cpu":
        assert all(same[: start + 1])  # the logits of position start - 1 are for the token at start
    assert not any(same[start + 1 :])


@pytest.mark.usefixtures("blind_forecast")
def test_rows_in_any_batch_are_their_solo_runs(
    make_llm: Callable[..., LLM], activated: dict[str, str], backend: str
) -> None:
    sampling = dataclasses.replace(GREEDY, max_tokens=50)
    batch = [(prompt, name) for prompt in PROMPTS for name in (None, *activated)]
    solo = make_llm(adapters=activated, enable_prefix_caching=False)
    crowded = make_llm(adapters=activated, memory="110KB", max_num_batched_tokens=40, adapter_copy_bytes=10_000)
    outputs = run(crowded, [prompt for prompt, _ in batch], [name for _, name in batch], sampling)
    info = crowded.get_info()
    assert info.num_preemptions > 0 and info.num_cached_tokens > 0
    for (prompt, name), output in zip(batch, outputs, strict=True):
        (alone,) = run(solo, prompt, name, sampling)
        assert_same_tokens(alone.outputs[0], output.outputs[0], (prompt, name))
        if backend == "cpu":
            assert output.outputs[0].logprobs == alone.outputs[0].logprobs, (prompt, name)


@pytest.mark.parametrize("first", [None, "all", "values"])
@pytest.mark.parametrize("then", [None, "all", "values"])
def test_the_prefix_is_shared_with_the_base_model_and_among_activated_adapters(
    make_llm: Callable[..., LLM], activated: dict[str, str], first: str | None, then: str | None
) -> None:
    llm = make_llm(adapters=activated)
    prompt = "a long prefix of many blocks" + "....." + INVOCATION + " then what follows is the adapter's own"
    num_base_tokens = prompt.index(INVOCATION) // BLOCK * BLOCK
    assert run(llm, prompt, first)[0].num_cached_tokens == 0
    hits = run(llm, prompt, then)[0].num_cached_tokens
    assert hits == ((len(prompt) - 1) // BLOCK * BLOCK if first == then else num_base_tokens)
    # A block in which another adapter is activated, and a plain adapter's block, belong to that adapter alone.
    assert run(llm, prompt, "plain")[0].num_cached_tokens == 0


def test_another_invocation_later_is_another_activation(
    make_llm: Callable[..., LLM], activated: dict[str, str]
) -> None:
    llm, fresh = make_llm(adapters=activated), make_llm(adapters=activated, enable_prefix_caching=False)
    once = "prefix. " + INVOCATION + " and this is said after it"
    twice = once + INVOCATION + "!"
    run(llm, once, "all")
    (output,) = run(llm, twice, "all")
    assert output.num_cached_tokens == 8  # the first invocation's block is now the base model's
    assert output.outputs[0].token_ids == run(fresh, twice, "all")[0].outputs[0].token_ids


def test_salts_separate_what_would_be_shared(make_llm: Callable[..., LLM], activated: dict[str, str]) -> None:
    llm = make_llm(adapters=activated)
    prompt = "a long prefix of many blocks " + INVOCATION
    run(llm, {"prompt": prompt, "cache_salt": "mine"})
    assert run(llm, prompt, "all")[0].num_cached_tokens == 0
    assert run(llm, {"prompt": prompt, "cache_salt": "mine"}, "all")[0].num_cached_tokens > 0


def test_several_samples_and_a_scale(make_llm: Callable[..., LLM], activated: dict[str, str]) -> None:
    llm = make_llm(adapters=activated)
    prompt = "many blocks before it " + INVOCATION + "?"
    sampling = dataclasses.replace(GREEDY, n=3)
    samples = run(llm, prompt, "all", sampling)[0].outputs
    assert len({tuple(sample.token_ids) for sample in samples}) == 1
    base, none, half = (run(llm, prompt, [use])[0].outputs[0] for use in (None, {"all": 0.0}, {"all": 0.5}))
    assert none.token_ids == base.token_ids != half.token_ids != samples[0].token_ids


def test_a_prompt_that_does_not_invoke_its_adapter_is_refused(
    make_llm: Callable[..., LLM], activated: dict[str, str]
) -> None:
    llm = make_llm(adapters=activated)
    assert llm.get_adapter("all").invocation_tokens == tuple(llm.get_tokenizer().encode(INVOCATION))
    for prompt in ("no invocation", "<go", "< go>"):
        with pytest.raises(InvalidRequest, match="prompt: lacks the tokens that invoke its adapter"):
            run(llm, ["fine", prompt], [None, "all"])


def test_an_activated_adapter_takes_no_partner(make_llm: Callable[..., LLM], activated: dict[str, str]) -> None:
    llm = make_llm(adapters=activated)
    with pytest.raises(InvalidRequest, match="takes no partner"):
        run(llm, INVOCATION, [["all", "plain"]])
