"""The in-process engine as a user sees it."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_adapter
from transformers import LlamaForCausalLM

from blora.engine import (
    LLM,
    AdapterNotFound,
    AdapterRejected,
    AdapterTooLarge,
    InvalidRequest,
    LoRARequest,
    QueueFull,
    SamplingParams,
    TextPrompt,
    TokensPrompt,
)
from blora.engine.step.runner import ModelRunner
from blora.scheduler import RowResult, Step

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def text_of(llm: LLM, prompt: str, adapter: str | None = None, sampling: SamplingParams = GREEDY) -> str:
    return llm.generate(prompt, sampling, lora_request=adapter, use_tqdm=False)[0].outputs[0].text


def tokens_of(llm: LLM, prompt: str, adapter: object = None, sampling: SamplingParams = GREEDY) -> list[int]:
    return llm.generate(prompt, sampling, lora_request=adapter, use_tqdm=False)[0].outputs[0].token_ids  # type: ignore[arg-type]


# Pairing.


def test_outputs_come_in_the_order_of_the_prompts(make_llm: Callable[..., LLM]) -> None:
    prompts = [f"prompt {index}" for index in range(9)]
    lengths = [SamplingParams(temperature=0, max_tokens=1 + 5 * (index % 3), ignore_eos=True) for index in range(9)]
    outputs = make_llm(max_num_seqs=2).generate(prompts, lengths, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [p.max_tokens for p in lengths]


@pytest.mark.parametrize(
    "prompt",
    [
        "text",
        [1, 2, 3],
        {"prompt": "text"},
        {"prompt_token_ids": [1, 2]},
        TextPrompt(prompt="text", cache_salt="mine"),
        TokensPrompt(prompt_token_ids=[1, 2], prompt="text"),
        {"prompt": "text", "prompt_token_ids": None, "multi_modal_data": None},
    ],
)
def test_every_form_of_prompt_is_taken(make_llm: Callable[..., LLM], prompt: object) -> None:
    assert len(make_llm().generate(prompt, GREEDY, use_tqdm=False)) == 1  # type: ignore[arg-type]


def test_a_text_beside_tokens_is_only_shown(make_llm: Callable[..., LLM]) -> None:
    prompt = TokensPrompt(prompt_token_ids=[1, 2], prompt="text")
    (output,) = make_llm().generate(prompt, GREEDY, use_tqdm=False)
    assert (output.prompt, output.prompt_token_ids) == ("text", [1, 2])


@pytest.mark.parametrize("name", ["multi_modal_data", "prompt_embeds", "mm_processor_kwargs", "encoder_prompt"])
def test_a_part_of_a_prompt_that_is_not_served_is_refused_by_name(make_llm: Callable[..., LLM], name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}: is not served"):
        make_llm().generate({"prompt": "text", name: {"image": 1}}, GREEDY, use_tqdm=False)


def test_lists_have_to_pair_one_to_one(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    with pytest.raises(InvalidRequest, match="lora_request"):
        llm.generate(["a", "b"], GREEDY, lora_request=[None], use_tqdm=False)
    with pytest.raises(InvalidRequest, match="sampling_params"):
        llm.generate(["a", "b"], [GREEDY] * 3, use_tqdm=False)


def test_one_bad_request_of_a_batch_raises_before_anything_runs(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    with pytest.raises(InvalidRequest) as raised:
        llm.generate(["fine", "bad"], [GREEDY, SamplingParams(temperature=float("nan"))], use_tqdm=False)
    assert raised.value.field == "temperature"
    with pytest.raises(AdapterNotFound, match="nobody"):
        llm.generate(["fine", "bad"], GREEDY, lora_request=[None, "nobody"], use_tqdm=False)
    llm.check_idle()


def test_more_requests_than_the_queue_holds_are_refused(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(max_num_queued_reqs=2)
    with pytest.raises(QueueFull):
        llm.generate(["a", "b", "c"], GREEDY, use_tqdm=False)
    assert len(llm.generate(["a", "b"], GREEDY, use_tqdm=False)) == 2


def test_a_reset_empties_the_prefix_cache(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()

    def num_cached() -> int:
        return llm.generate("a prompt of four blocks", GREEDY, use_tqdm=False)[0].num_cached_tokens

    assert (num_cached(), num_cached()) == (0, 20)
    stream = llm.stream("a prompt of four blocks", GREEDY)
    next(stream)
    assert not llm.reset_prefix_cache() and num_cached() > 0  # the running request still holds blocks
    assert llm.reset_prefix_cache(reset_running_requests=True) and num_cached() == 0
    assert sum(len(output.outputs[0].token_ids) for outputs in stream for output in outputs) == GREEDY.max_tokens - 1


def test_options_of_vllm_are_taken_with_a_notice(
    make_llm: Callable[..., LLM], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make_llm(enable_lora=True, max_loras=4, max_lora_rank=64, gpu_memory_utilization=0.9)
    for name in ("enable_lora", "max_loras", "max_lora_rank", "gpu_memory_utilization"):
        assert f"{name} is ignored" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"memory": "lots"},
        {"scheduling_policy": "lifo"},
        {"max_model_len": 100000},
        {"block_size": 1.5},
        {"max_num_seqs": "4"},
        {"threads": 0},
        {"seed": "x"},
        {"adapter_copy_bytes": -5},
        {"enforce_eager": "no"},
        {"memory": [1]},
        {"adapters": ["/some/folder"]},
    ],
)
def test_a_bad_option_is_refused_by_name(make_llm: Callable[..., LLM], options: dict[str, object]) -> None:
    with pytest.raises((ValueError, RuntimeError), match=next(iter(options))):
        make_llm(**options)


def test_an_unknown_option_is_refused(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(ValueError, match="no option 'max_lorras'.*max_num_seqs"):
        make_llm(max_lorras=3)


def test_options_that_change_nothing_here_are_taken(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(enforce_eager=True, tensor_parallel_size=1, trust_remote_code=True, quantization=None)
    answers = [
        engine.generate("a prompt", GREEDY, use_tqdm=False)[0].outputs[0].token_ids for engine in (llm, make_llm())
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("model", [None, 5])
def test_what_is_no_model_is_refused_by_name(model: Any) -> None:
    with pytest.raises(ValueError, match="^model: "):
        LLM(model)


def test_types_go_by_vllms_names_too(make_llm: Callable[..., LLM]) -> None:
    for dtype in ("float", torch.float32):
        make_llm(dtype=dtype)
    with pytest.raises(ValueError, match="dtype: 'fp8'"):
        make_llm(dtype="fp8")


# Generation.


def test_a_conversation_is_the_prompt_of_its_template(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    chat = llm.chat([{"role": "user", "content": "hello"}], GREEDY, use_tqdm=False)
    assert chat[0].outputs[0].text == text_of(llm, "user: hello\n")
    assert len(llm.chat([[{"role": "user", "content": "a"}]] * 3, GREEDY, use_tqdm=False)) == 3


def test_a_chat_takes_vllms_arguments_and_so_does_its_prompt(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    template = "{{ tools[0].name }}{{ x }}{{ messages[0].content }}{% if add_generation_prompt %}<a>{% endif %}"
    messages = [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}]
    arguments: dict[str, Any] = {"tools": [{"name": "add"}], "chat_template_kwargs": {"x": False}}
    (chat,) = llm.chat(messages, GREEDY, False, None, None, template, "string", True, False, **arguments)
    assert chat.prompt_token_ids == llm.get_tokenizer().encode("addFalsea\nb<a>")
    form = {"messages": messages, "chat_template": template, "continue_final_message": True} | arguments
    (going_on,) = llm.generate(form | {"add_generation_prompt": False, "cache_salt": "s"}, GREEDY, use_tqdm=False)
    assert going_on.prompt_token_ids == llm.get_tokenizer().encode("addFalsea\nb")
    with pytest.raises(InvalidRequest, match="^continue_final_message: "):
        llm.generate(form, GREEDY)
    with pytest.raises(InvalidRequest, match="^prompt: give one of"):
        llm.generate(form | {"tool": []}, GREEDY)


def test_streamed_deltas_add_up_to_the_generated_text(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(max_num_batched_tokens=7)
    prompts = ["a stream", "of several rows", "x"]
    sampling = SamplingParams(temperature=1, seed=5, max_tokens=9, n=2, logprobs=1, ignore_eos=True)
    whole = llm.generate(prompts, sampling, use_tqdm=False)
    texts = {(row, index): "" for row in range(3) for index in range(2)}
    tokens: dict[tuple[int, int], list[int]] = {key: [] for key in texts}
    for outputs in llm.stream(prompts, sampling):
        for output in outputs:
            for sample in output.outputs:
                texts[int(output.request_id), sample.index] += sample.text
                tokens[int(output.request_id), sample.index] += sample.token_ids
                assert sample.logprobs is not None and len(sample.logprobs) == len(sample.token_ids)
    for row, output in enumerate(whole):
        for sample in output.outputs:
            assert texts[row, sample.index] == sample.text
            assert tokens[row, sample.index] == sample.token_ids


def test_a_stop_string_ends_the_text_and_the_work(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    plain = llm.generate("stop", SamplingParams(temperature=0, max_tokens=30, ignore_eos=True), use_tqdm=False)[0]
    text = plain.outputs[0].text
    stop = text[5:8]
    sampling = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, stop=[stop])
    output = llm.generate("stop", sampling, use_tqdm=False)[0].outputs[0]
    assert output.text == text[: text.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert len(output.token_ids) < 30
    shown = "".join(sample.text for news in llm.stream("stop", sampling) for out in news for sample in out.outputs)
    assert shown == output.text


@pytest.mark.parametrize("keeps_stop", [False, True])
def test_a_special_token_that_is_not_shown_is_a_stop_string(make_llm: Callable[..., LLM], keeps_stop: bool) -> None:
    sampling = SamplingParams(
        temperature=0,
        max_tokens=8,
        ignore_eos=True,
        logit_bias={256: 100.0},
        stop=["x", "<eos>"],
        include_stop_str_in_output=keeps_stop,
    )
    output = make_llm().generate("stop", sampling, use_tqdm=False)[0].outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", "<eos>")
    assert (output.text, output.token_ids) == ("<eos>" if keeps_stop else "", [256])


def test_stop_tokens_and_eos_end_a_request(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    tokens = tokens_of(llm, "end here")
    named = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, stop_token_ids=[tokens[3]])
    output = llm.generate("end here", named, use_tqdm=False)[0].outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", tokens[3])
    forced = SamplingParams(temperature=0, max_tokens=8, logit_bias={256: 100.0})
    output = llm.generate("end here", forced, use_tqdm=False)[0].outputs[0]
    assert (output.finish_reason, output.stop_reason, output.token_ids, output.text) == ("stop", None, [256], "")
    held = SamplingParams(temperature=0, max_tokens=8, min_tokens=5, logit_bias={256: 100.0})
    output = llm.generate("end here", held, use_tqdm=False)[0].outputs[0]
    assert output.token_ids.index(256) == 5


def test_logprobs_equal_those_of_transformers(make_llm: Callable[..., LLM], tiny_model: Path) -> None:
    llm = make_llm(max_num_batched_tokens=5)
    sampling = SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    output = llm.generate("logprobs of a prompt", sampling, use_tqdm=False)[0]
    ids = output.prompt_token_ids + output.outputs[0].token_ids
    with torch.inference_mode():
        logits = LlamaForCausalLM.from_pretrained(tiny_model)(torch.tensor([ids])).logits[0]
    expected = logits.log_softmax(dim=1)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert output.outputs[0].logprobs is not None
    entries = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    assert len(entries) == len(ids) - 1
    for position, entry in enumerate(entries):
        assert entry is not None and ids[position + 1] in entry
        for token_id, logprob in entry.items():
            assert logprob.logprob == pytest.approx(float(expected[position, token_id]), abs=1e-4)
            assert logprob.rank == 1 + int((expected[position] > expected[position, token_id]).sum())


def test_a_prefix_is_found_again_and_salts_keep_it_apart(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    prompt = "a prefix that is long enough to fill some blocks"

    def num_cached(salt: str | None) -> int:
        request = {"prompt": prompt} if salt is None else {"prompt": prompt, "cache_salt": salt}
        return llm.generate(request, GREEDY, use_tqdm=False)[0].num_cached_tokens

    assert [num_cached(None), num_cached("mine"), num_cached(None), num_cached("mine")] == [0, 0, 44, 44]


# Adapters.


def test_adapters_come_and_go_at_run_time(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm()
    base = text_of(llm, "hello")
    info = llm.load_adapter("mine", tiny_adapters["r4"])
    assert (info.name, info.ranks, info.resident) == ("mine", (4,), False)
    adapted = text_of(llm, "hello", "mine")
    assert adapted != base
    assert llm.get_adapter("mine").resident
    assert [adapter.name for adapter in llm.list_adapters()] == ["mine"]
    llm.unload_adapter("mine")
    with pytest.raises(AdapterNotFound):
        text_of(llm, "hello", "mine")
    assert llm.list_adapters() == [] and text_of(llm, "hello") == base
    llm.load_adapter("again", tiny_adapters["r4"])
    assert text_of(llm, "hello", "again") == adapted


def test_a_lora_request_with_a_path_loads_it(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm(adapters={"named": str(tiny_adapters["r8"])})
    one, other = (LoRARequest("auto", 1, str(tiny_adapters[name])) for name in ("r8", "r4"))
    assert tokens_of(llm, "hello", one) == tokens_of(llm, "hello", "named")
    with pytest.raises(InvalidRequest, match="load_inplace"):
        tokens_of(llm, "hello", other)
    assert tokens_of(llm, "hello", LoRARequest("auto")) == tokens_of(llm, "hello", "named"), "nothing was replaced"
    replacing = replace(other, load_inplace=True)
    assert tokens_of(llm, "hello", replacing) != tokens_of(llm, "hello", "named"), "another path is another adapter"


def test_lora_requests_are_equal_by_name() -> None:
    assert LoRARequest("a", 1, "x") == LoRARequest("a", 2, "y", base_model_name="m") != LoRARequest("b", 1, "x")
    assert len({LoRARequest("a", 1, "x"), LoRARequest("a"), LoRARequest("b")}) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_params": SamplingParams(temperature=-1)},
        {"sampling_params": SamplingParams(max_tokens=300, min_tokens=300)},
        {"prompts": ""},
        {"prompts": [1, -1]},
        {"priority": ["high"]},
        {"sampling_params": SamplingParams(n=3)},  # more samples than the queue takes
    ],
    ids=["sampling", "length", "prompt", "token", "priority", "queue"],
)
def test_a_refused_call_loads_nothing(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], wrong: dict[str, Any]
) -> None:
    llm = make_llm(max_num_queued_reqs=2)
    call = {
        "prompts": "hello",
        "sampling_params": GREEDY,
        "lora_request": LoRARequest("new", 1, str(tiny_adapters["r4"])),
    }
    with pytest.raises((InvalidRequest, QueueFull)):
        llm.generate(**(call | wrong), use_tqdm=False)
    assert llm.list_adapters() == []


@pytest.mark.parametrize("prompts", [None, 5, b"text", {"a"}, np.array(5), iter("ab")])
def test_what_is_no_prompt_is_refused_by_name(make_llm: Callable[..., LLM], prompts: Any) -> None:
    llm = make_llm()
    with pytest.raises(InvalidRequest, match="^prompts: "):
        llm.generate(prompts, GREEDY, use_tqdm=False)
    with pytest.raises(InvalidRequest, match="^messages: "):
        llm.chat(prompts, GREEDY, use_tqdm=False)


def test_any_sequence_of_prompts_will_do(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    expected = [tokens_of(llm, prompt) for prompt in ("one", "two")]
    assert [output.outputs[0].token_ids for output in llm.generate(deque(["one", "two"]), GREEDY)] == expected
    assert tokens_of(llm, deque([1, 2, 3])) == tokens_of(llm, [1, 2, 3])
    with pytest.raises(InvalidRequest, match="^messages: "):
        llm.chat({"role": "user", "content": "hello"}, GREEDY)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["\ud800", "a\0b", "", None, 5])
def test_what_is_no_path_is_refused_by_name(make_llm: Callable[..., LLM], path: Any) -> None:
    with pytest.raises(InvalidRequest, match="^path: "):
        make_llm().load_adapter("x", path)


def test_token_ids_are_no_text(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(InvalidRequest, match="^prompt_token_ids: "):
        make_llm().generate({"prompt_token_ids": "hello"}, GREEDY, use_tqdm=False)


def test_a_too_long_prompt_is_told_its_length(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(InvalidRequest, match="5000 tokens"):
        make_llm().generate([1] * 5000, GREEDY, use_tqdm=False)


def test_metrics_say_when(make_llm: Callable[..., LLM]) -> None:
    before = time.time(), time.monotonic()
    (output,) = make_llm().generate("hello", replace(GREEDY, n=2, max_tokens=5), use_tqdm=False)
    metrics = output.metrics
    assert metrics is not None and metrics.arrival_time >= before[0]
    times = [metrics.queued_ts, metrics.scheduled_ts, metrics.first_token_ts, metrics.last_token_ts, time.monotonic()]
    assert before[1] <= times[0] and times == sorted(times)
    assert metrics.first_token_latency == metrics.first_token_ts - metrics.queued_ts > 0
    assert (metrics.num_generation_tokens, metrics.num_preemptions) == (10, 0)


@pytest.mark.usefixtures("blind_forecast")
def test_metrics_count_preemptions(make_llm: Callable[..., LLM]) -> None:
    outputs = make_llm(memory="20KB").generate(["a" * 20, "b" * 20], replace(GREEDY, max_tokens=30), use_tqdm=False)
    assert sum(output.metrics.num_preemptions for output in outputs if output.metrics) > 0


def test_an_output_knows_its_adapter_and_its_end(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm(adapters={"mine": tiny_adapters["r4"]})
    with llm.stream("hello", replace(GREEDY, max_tokens=3), "mine") as stream:
        samples = [sample for outputs in stream for output in outputs for sample in output.outputs]
    assert [sample.finished() for sample in samples] == [False, False, True]
    assert {sample.lora_request for sample in samples} == {LoRARequest("mine")}


@pytest.mark.grid
def test_replacing_weights_under_a_name_hits_no_stale_kv(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], cases: Callable[[int, int], int]
) -> None:
    llm = make_llm(adapters={name: str(path) for name, path in tiny_adapters.items()})
    prompt = "the same prompt, long enough to leave blocks in the prefix cache"
    expected = {name: tokens_of(llm, prompt, name) for name in tiny_adapters}
    for _ in range(cases(8, 63)):
        for name, path in tiny_adapters.items():
            llm.load_adapter("changing", path)
            assert tokens_of(llm, prompt, "changing") == expected[name]


def test_running_requests_finish_on_the_weights_they_began_with(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm(adapters={"mine": str(tiny_adapters["r4"])})
    expected = tokens_of(llm, "hello", "mine")
    stream = llm.stream("hello", GREEDY, lora_request="mine")
    tokens = next(stream)[0].outputs[0].token_ids
    llm.load_adapter("mine", tiny_adapters["r8"])
    assert tokens_of(llm, "hello", "mine") != expected
    for outputs in stream:
        tokens += outputs[0].outputs[0].token_ids
    assert tokens == expected


def test_unloading_while_a_request_runs_lets_it_finish(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm(adapters={"mine": str(tiny_adapters["r4"])})
    expected = tokens_of(llm, "hello", "mine")
    stream = llm.stream("hello", GREEDY, lora_request="mine")
    tokens = next(stream)[0].outputs[0].token_ids
    llm.unload_adapter("mine")
    with pytest.raises(AdapterNotFound):
        tokens_of(llm, "hello", "mine")
    assert tokens + [t for news in stream for t in news[0].outputs[0].token_ids] == expected
    assert llm.get_info().num_host_adapters == 0


def test_pinned_adapters_stay(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm(adapters={name: str(path) for name, path in tiny_adapters.items()}, memory="200KB")
    llm.pin_adapter("r1")
    for name in tiny_adapters:
        tokens_of(llm, "hello", name)
    info = llm.get_adapter("r1")
    assert info.pinned and info.resident
    llm.check_idle()
    assert not llm.pin_adapter("r1", False).pinned


def test_a_pin_ends_with_what_its_name_means(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm(adapters={"r4": str(tiny_adapters["r4"]), "alias": str(tiny_adapters["r4"])})
    llm.pin_adapter("alias")
    llm.load_adapter("alias", tiny_adapters["r8"])
    assert not llm.get_adapter("alias").pinned and not llm.get_adapter("r4").pinned
    llm.pin_adapter("alias")
    llm.unload_adapter("alias")
    llm.check_idle()
    info = llm.get_info()
    assert info.num_free_pages == info.num_pages


def test_what_cannot_be_served_is_refused_and_changes_nothing(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    llm = make_llm(adapters={"mine": str(tiny_adapters["r4"])}, memory="100KB")
    expected = tokens_of(llm, "hello", "mine")
    with pytest.raises(AdapterRejected, match="cannot be read"):
        llm.load_adapter("mine", tmp_path / "missing")
    with pytest.raises(AdapterTooLarge):
        llm.load_adapter("mine", tiny_adapters["r64"])
    with pytest.raises(InvalidRequest, match="name"):
        llm.load_adapter("../mine", tiny_adapters["r4"])
    assert tokens_of(llm, "hello", "mine") == expected


def test_an_adapter_of_zero_change_loads_and_says_so(
    make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_adapter(tiny_model, tmp_path / "zero")
    file = folder / "adapter_model.safetensors"
    save_file({name: t * ("lora_A" in name) for name, t in load_file(file).items()}, file)
    llm = make_llm(adapters={"zero": str(folder)})
    assert "zero" in llm.get_adapter("zero").warnings[0]
    assert tokens_of(llm, "hello", "zero") == tokens_of(llm, "hello")


# One request's failure is its own.


def test_a_row_that_is_not_finite_fails_alone(
    make_llm: Callable[..., LLM], tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    # The weights are finite and of an allowed size, but their products overflow. (In attention they would not: its norm
    # gives zero.)
    modules = ["gate_proj", "up_proj", "down_proj"]
    folder = make_adapter(tiny_model, tmp_path / "huge", lora_alpha=1_000_000, target_modules=modules)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.clamp(-1, 1) * 6e4 for name, tensor in load_file(file).items()}, file)
    llm = make_llm(adapters={"huge": str(folder), "mine": str(tiny_adapters["r4"])})
    adapters = [None, "mine"] * 3
    prompts = [f"victim {index}" for index in range(6)]
    expected = [tokens_of(llm, prompt, adapter) for prompt, adapter in zip(prompts, adapters, strict=True)]
    for _ in range(5):
        outputs = llm.generate([*prompts, "offender"], GREEDY, lora_request=[*adapters, "huge"], use_tqdm=False)
        assert outputs[-1].outputs[0].finish_reason == "error"
        assert "not finite" in (outputs[-1].outputs[0].error or "")
        assert [output.outputs[0].token_ids for output in outputs[:-1]] == expected


def test_a_step_that_raises_ends_only_the_guilty_request(
    make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make_llm()
    prompts = [f"row {index}" for index in range(7)]
    expected = [tokens_of(llm, prompt) for prompt in prompts]
    guilty = len(prompts) + 3  # of all requests, which are numbered
    execute = ModelRunner.execute

    def fail_with_guilty(runner: ModelRunner, step: Step) -> dict[int, RowResult]:
        if any(row.request_id == guilty and row.num_output_tokens == 4 for row in step.rows):
            raise RuntimeError("a kernel fault")
        return execute(runner, step)

    monkeypatch.setattr(ModelRunner, "execute", fail_with_guilty)
    outputs = [output.outputs[0] for output in llm.generate(prompts, GREEDY, use_tqdm=False)]
    assert [output.finish_reason for output in outputs] == ["length"] * 3 + ["error"] + ["length"] * 3
    assert outputs[3].token_ids == expected[3][:4]
    assert [output.token_ids for output in outputs[:3] + outputs[4:]] == expected[:3] + expected[4:]


def test_a_stream_that_is_closed_gives_everything_back(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    stream = llm.stream(["one", "two"], SamplingParams(max_tokens=50, n=3, ignore_eos=True))
    next(stream)
    stream.close()
    llm.check_idle()


def test_a_stream_is_accepted_at_the_call(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm(adapters={"mine": str(tiny_adapters["r4"])}, max_num_queued_reqs=2)
    expected = tokens_of(llm, "hello", "mine")
    stream = llm.stream("hello", GREEDY, lora_request="mine")
    llm.unload_adapter("mine")
    with pytest.raises(QueueFull):
        llm.stream(["too", "many"], GREEDY)
    assert [token for news in stream for token in news[0].outputs[0].token_ids] == expected


def test_a_stream_that_is_dropped_unread_leaves_nothing(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    llm.stream(["never", "read"], GREEDY)
    llm.check_idle()


def test_two_streams_may_be_read_in_turn(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    expected = [tokens_of(llm, "one"), tokens_of(llm, "other")]
    streams = [llm.stream("one", GREEDY), llm.stream("other", GREEDY)]
    tokens: list[list[int]] = [[], []]
    for _ in range(GREEDY.max_tokens or 0):
        for index, stream in enumerate(streams):
            for output in next(stream, []):
                tokens[index] += output.outputs[0].token_ids
    assert tokens == expected


def test_cached_tokens_are_those_found_before_the_first_sample(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    sampling = SamplingParams(temperature=1, n=3, max_tokens=4, ignore_eos=True)
    first, again = (llm.generate("a prompt of some blocks", sampling, use_tqdm=False)[0] for _ in range(2))
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 20)


@pytest.mark.usefixtures("blind_forecast")
def test_prompt_logprobs_come_once_through_preemptions(make_llm: Callable[..., LLM]) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=30, prompt_logprobs=1, ignore_eos=True)
    prompts = [f"row {index} of a batch that does not fit" for index in range(6)]
    llm = make_llm(memory="60KB", max_num_batched_tokens=9)
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    assert llm.get_info().num_preemptions > 0
    for output, expected in zip(outputs, make_llm().generate(prompts, sampling, use_tqdm=False), strict=True):
        assert output.prompt_logprobs is not None and expected.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
        assert [list(entry or ()) for entry in output.prompt_logprobs] == [
            list(entry or ()) for entry in expected.prompt_logprobs
        ]


def test_two_names_of_one_content_keep_their_paths(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(tiny_adapters["r4"], tmp_path / "copy")
    llm = make_llm(adapters={"original": str(tiny_adapters["r4"]), "copy": str(copy)})
    original, copied = llm.get_adapter("original"), llm.get_adapter("copy")
    assert original.digest == copied.digest
    assert (original.path, copied.path) == (str(tiny_adapters["r4"]), str(copy))
    llm.unload_adapter("original")
    assert llm.get_adapter("copy").path == str(copy)


def test_no_limit_means_as_much_as_fits(make_llm: Callable[..., LLM]) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    whole = make_llm().generate("x" * 10, sampling, use_tqdm=False)[0]
    assert len(whole.outputs[0].token_ids) == 256 - 10
    small = make_llm(memory="20KB").generate("x" * 10, sampling, use_tqdm=False)[0]
    assert len(small.outputs[0].token_ids) == 19 * 4 - 10


def test_a_name_with_two_paths_in_one_batch_is_refused(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm()
    requests = [LoRARequest("x", 1, str(tiny_adapters[name])) for name in ("r4", "r8")]
    with pytest.raises(InvalidRequest, match="two paths"):
        llm.generate(["a", "a"], GREEDY, lora_request=requests, use_tqdm=False)
    assert llm.list_adapters() == []
