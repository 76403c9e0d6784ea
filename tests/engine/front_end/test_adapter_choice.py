"""Several adapters in one request: PEFT's "cat" sums, isolation, and refused combinations."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare import assert_same_tokens
from peft import PeftModel
from peft_greedy import greedy_tokens
from transformers import LlamaForCausalLM

from blora.engine import LLM, AdapterNotFound, InvalidRequest, LoRARequest, SamplingParams
from blora.engine.front_end.adapter_choice import MAX_ADAPTERS, read_adapters

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=2)

# Name -> scale, with all kinds of ranks, scalings, modules. No sum begins with r8 (rsLoRA) or r64 (some layers): PEFT
# gives a sum the configuration of its first adapter, which would scale it by sqrt(rank), or cut it off, once more.
SUMS: list[dict[str, float]] = [
    {"r4": 0.5, "r16": 1.5, "r8": 1.0},
    {"r16": 1.5, "r8": 1.0, "r4": 0.5},
    {"pattern": -0.7, "r24": 0.3, "r64": 1.0},
    {"r1": 1.0, "r2": 2.0, "r4": 0.25, "r8": 0.5, "r16": 1.0, "r24": 0.5, "pattern": 1.0, "r64": -1.0},
    {"r24": 0.6},
    {"r4": 0.0},
]


def peft_tokens(model: Path, adapters: dict[str, Path], scales: dict[str, float], prompt: list[int]) -> list[int]:
    first, *others = scales
    adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model), adapters[first], first)
    for name in others:
        adapted.load_adapter(adapters[name], name)
    adapted.base_model.add_weighted_adapter(list(scales), list(scales.values()), "sum", combination_type="cat")
    adapted.set_adapter("sum")
    return greedy_tokens(adapted, prompt, GREEDY.max_tokens)


@pytest.fixture
def adapters(tiny_adapters: dict[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in tiny_adapters.items()}


@pytest.mark.slow
def test_sums_equal_peft_in_one_mixed_batch(
    make_llm: Callable[..., LLM], tiny_model: Path, tiny_adapters: dict[str, Path], adapters: dict[str, str]
) -> None:
    llm = make_llm(adapters=adapters, max_num_batched_tokens=30)
    uses: list[Any] = [None, "r4", *SUMS, "r8"]
    prompts = [f"a prompt, number {index}" for index in range(len(uses))]
    outputs = llm.generate(prompts, GREEDY, lora_request=uses, use_tqdm=False)
    for use, output in zip(uses, outputs, strict=True):
        if isinstance(use, dict):
            reference = peft_tokens(tiny_model, tiny_adapters, use, output.prompt_token_ids)
            ours = output.outputs[0]
            assert_same_tokens(ours, dataclasses.replace(ours, token_ids=reference), use)


def test_a_sum_in_any_batch_is_its_solo_run(
    make_llm: Callable[..., LLM], adapters: dict[str, str], backend: str
) -> None:
    uses: list[Any] = [None, "r4", *SUMS[:4], "r8", None]
    sampling = dataclasses.replace(GREEDY, n=2, temperature=0.8, seed=3)
    prompts = [f"the same beginning, {index % 2}" for index in range(len(uses))]
    solo = make_llm(adapters=adapters, enable_prefix_caching=False)
    crowded = make_llm(adapters=adapters, memory="340KB", max_num_batched_tokens=9, adapter_copy_bytes=20_000)
    outputs = crowded.generate(prompts, sampling, lora_request=uses, use_tqdm=False)
    for prompt, use, output in zip(prompts, uses, outputs, strict=True):
        (alone,) = solo.generate(prompt, sampling, lora_request=[use], use_tqdm=False)
        for sample, expected in zip(output.outputs, alone.outputs, strict=True):
            assert sample.token_ids == expected.token_ids, use
            if backend == "cpu":
                assert sample.logprobs == expected.logprobs, use


@pytest.mark.usefixtures("blind_forecast")
def test_a_preempted_sum_goes_on_as_it_was(make_llm: Callable[..., LLM], adapters: dict[str, str]) -> None:
    sampling = dataclasses.replace(GREEDY, max_tokens=40)
    uses = [{"r1": 0.5, "r2": 2.0}, {"r2": 2.0, "r1": 0.5}, None] * 3
    prompts = [f"prompt {index}" for index in range(len(uses))]
    small = make_llm(adapters={name: adapters[name] for name in ("r1", "r2")}, memory="60KB")
    ample = make_llm(adapters={name: adapters[name] for name in ("r1", "r2")})
    outputs = small.generate(prompts, sampling, lora_request=uses, use_tqdm=False)
    assert small.get_info().num_preemptions > 0
    for output, expected in zip(outputs, ample.generate(prompts, sampling, uses, use_tqdm=False), strict=True):
        assert_same_tokens(expected.outputs[0], output.outputs[0])


def test_the_prefix_cache_tells_lists_orders_and_scales_apart(
    make_llm: Callable[..., LLM], adapters: dict[str, str]
) -> None:
    llm = make_llm(adapters=adapters)
    uses: list[Any] = [None, {"r4": 0.5}, "r4", {"r4": 1.0, "r8": 1.0}, {"r8": 1.0, "r4": 1.0}, {"r4": 1.0, "r8": 2.0}]
    for use in uses:
        (output,) = llm.generate("a prompt of several blocks", GREEDY, lora_request=[use], use_tqdm=False)
        assert output.num_cached_tokens == 0, use
    for use in uses:
        (output,) = llm.generate("a prompt of several blocks", GREEDY, lora_request=[use], use_tqdm=False)
        assert output.num_cached_tokens == 24, use


def test_ways_to_name_adapters(make_llm: Callable[..., LLM], adapters: dict[str, str]) -> None:
    llm = make_llm(adapters={"r4": adapters["r4"]})
    ways: list[Any] = [
        [{"r4": 1, "r8": 0.5}],
        [["r4", LoRARequest("r8", lora_path=adapters["r8"], lora_scale=0.5)]],
        [(LoRARequest("r4"), LoRARequest("r8", lora_scale=0.5))],
        {"r4": 1.0, "r8": 0.5},
    ]
    llm.load_adapter("r8", adapters["r8"])
    outputs = [llm.generate("hello", GREEDY, lora_request=way, use_tqdm=False)[0] for way in ways]
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    assert outputs[0].lora_request == outputs[0].outputs[0].lora_request == (LoRARequest("r4"), LoRARequest("r8"))
    (single,) = llm.generate("hello", GREEDY, lora_request={"r4": 0.5}, use_tqdm=False)
    assert isinstance(single.lora_request, LoRARequest) and single.lora_request.lora_scale == 0.5


@pytest.mark.parametrize(
    "use",
    [
        ["r4", "r4"],
        ["r4", "same-content"],
        [],
        {},
        [None],
        [["r4"]],
        [7],
        ["r4"] * (MAX_ADAPTERS + 1),
        *({"r4": scale} for scale in (math.nan, math.inf, -101, 1e30, "1", None, True)),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_allocated(
    make_llm: Callable[..., LLM], adapters: dict[str, str], use: Any
) -> None:
    llm = make_llm(adapters={"r4": adapters["r4"], "same-content": adapters["r4"]} if "same" in str(use) else adapters)
    with pytest.raises(InvalidRequest, match="lora_request"):
        llm.generate(["fine", "bad"], GREEDY, lora_request=[None, use], use_tqdm=False)


def test_a_partner_that_is_not_loaded_is_not_found(make_llm: Callable[..., LLM], adapters: dict[str, str]) -> None:
    llm = make_llm(adapters=adapters)
    with pytest.raises(AdapterNotFound, match="nobody"):
        llm.generate("x", GREEDY, lora_request=[["r4", "nobody"]], use_tqdm=False)


def test_adapters_that_together_exceed_the_memory_are_refused(
    make_llm: Callable[..., LLM], adapters: dict[str, str]
) -> None:
    probe = make_llm(adapters=adapters)
    pages = {info.name: info.num_pages for info in probe.list_adapters()}
    largest = max(pages["r24"], pages["r64"])
    llm = make_llm(adapters=adapters, memory=(largest + 8) * probe.get_info().page_bytes)
    for name in ("r24", "r64"):
        assert llm.generate("x", GREEDY, lora_request=name, use_tqdm=False)[0].finished
    with pytest.raises(InvalidRequest, match="pages"):
        llm.generate("x", GREEDY, lora_request=[["r24", "r64"]], use_tqdm=False)


def test_equal_scales_are_equal_bits() -> None:
    assert [use.lora_scale for use in read_adapters({"a": 0, "b": 1})] == [0, 1]


def test_a_call_resolves_each_of_its_adapters_once(
    make_llm: Callable[..., LLM], adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, resolved = make_llm(adapters=adapters), list[str]()
    catalog = llm._front_end.adapters
    resolve = catalog.resolve
    monkeypatch.setattr(catalog, "resolve", lambda name: resolved.append(name) or resolve(name))
    llm.generate(["one", "two"], GREEDY, lora_request=["r8", {"r4": 1.0, "r8": 0.5}], use_tqdm=False)
    assert resolved == ["r8", "r4", "r8"]


def test_a_name_that_a_batch_loads_anew_means_the_same_in_all_its_rows(
    make_llm: Callable[..., LLM], adapters: dict[str, str]
) -> None:
    llm = make_llm(adapters={"mine": adapters["r4"], "r8": adapters["r8"]})
    anew = LoRARequest("mine", lora_path=adapters["r8"], load_inplace=True)
    rows = llm.generate(["x"] * 3, GREEDY, lora_request=["mine", anew, "r8"], use_tqdm=False)
    assert len({tuple(row.outputs[0].token_ids) for row in rows}) == 1
