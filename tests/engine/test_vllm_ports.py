"""Scripts written for vLLM, call by call, after one change of their imports.

Each follows the calls of one of vLLM's offline examples, on tiny models and in its own words.
"""

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from blora.engine import (
    LLM,
    AsyncEngineArgs,
    AsyncLLM,
    EngineArgs,
    FlexibleArgumentParser,
    LLMEngine,
    LoRARequest,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
)

PROMPTS = ["Hello, my name is", "The capital of France is", "The future of AI is"]
SMALL: dict[str, Any] = {"memory": "4MB", "block_size": 4, "threads": 1}  # blora's own: the arena of a tiny model
Test = tuple[str, SamplingParams, LoRARequest | None]


def command_line(model: Path, *argv: str) -> dict[str, Any]:
    """The arguments of the examples "generate" and "chat"."""
    parser = FlexibleArgumentParser()
    engine_group = parser.add_argument_group("Engine arguments")
    EngineArgs.add_cli_args(engine_group)
    engine_group.set_defaults(model=str(model))
    sampling_group = parser.add_argument_group("Sampling parameters")
    sampling_group.add_argument("--max-tokens", type=int)
    sampling_group.add_argument("--temperature", type=float)
    sampling_group.add_argument("--top-p", type=float)
    sampling_group.add_argument("--top-k", type=int)
    parser.add_argument("--chat-template-path", type=str)
    return vars(parser.parse_args(["--memory", "4MB", "--block-size", "4", *argv]))


def sampling_of(llm: LLM, args: dict[str, Any]) -> SamplingParams:
    sampling_params = llm.get_default_sampling_params()
    for name, value in args.items():
        if value is not None:
            setattr(sampling_params, name, value)
    return sampling_params


def test_basic(tiny_model: Path) -> None:
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
    llm = LLM(model=str(tiny_model), **SMALL)
    outputs = llm.generate(PROMPTS, sampling_params)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert output.prompt == prompt and output.outputs[0].text


def test_generate_from_a_command_line(tiny_model: Path) -> None:
    args = command_line(tiny_model, "--max_tokens", "5", "--temperature", "0", "--max-num-seqs", "2")
    given = {name: args.pop(name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
    del args["chat_template_path"]
    llm = LLM(**args)
    outputs = llm.generate(PROMPTS, sampling_of(llm, given))
    assert [len(output.outputs[0].token_ids) <= 5 for output in outputs] == [True] * 3
    assert llm.get_default_sampling_params() != sampling_of(llm, given)  # the defaults are copies


def test_chat(tiny_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}")
    args = command_line(tiny_model, "--max-tokens", "5", "--chat-template-path", str(template))
    given = {name: args.pop(name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
    chat_template_path = args.pop("chat_template_path")
    llm = LLM(**args)
    sampling_params = sampling_of(llm, given)
    conversation = [
        {"role": "system", "content": "You help"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Write an essay"},
    ]
    assert len(llm.chat(conversation, sampling_params, use_tqdm=False)) == 1
    conversations = [conversation for _ in range(10)]
    assert len(llm.chat(conversations, sampling_params, use_tqdm=True)) == 10
    outputs = llm.chat(
        conversations, sampling_params, use_tqdm=False, chat_template=Path(chat_template_path).read_text()
    )
    shown = llm.get_tokenizer().decode(outputs[-1].prompt_token_ids)
    assert shown.startswith("<system>You help<user>Hello<assistant>")


def test_automatic_prefix_caching(tiny_model: Path) -> None:
    table = "".join(f"| {row} | name {row} |\n" for row in range(10))
    llm = LLM(model=str(tiny_model), enable_prefix_caching=True, **SMALL)
    sampling_params = SamplingParams(temperature=0, max_tokens=4)

    def timed(prompt: str) -> tuple[float, RequestOutput]:
        start = time.time()
        output = llm.generate(prompt, sampling_params=sampling_params)
        return time.time() - start, output[0]

    _, first = timed(table + "Question: who is 3?")
    _, second = timed(table + "Question: who is 7?")
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, len(table + "Question: who is ") // 4 * 4)


def test_prefix_caching_against_none(tiny_model: Path) -> None:
    prefix = "You are an expert in " * 4
    prompts = [prefix + prompt for prompt in PROMPTS]
    sampling_params = SamplingParams(temperature=0.0)
    regular_llm = LLM(model=str(tiny_model), enable_prefix_caching=False, gpu_memory_utilization=0.4, **SMALL)
    regular = [output.outputs[0].text for output in regular_llm.generate(prompts, sampling_params)]
    del regular_llm
    cached_llm = LLM(model=str(tiny_model), enable_prefix_caching=True, gpu_memory_utilization=0.4, **SMALL)
    cached_llm.generate(prompts[0], sampling_params)  # computes the prefix
    outputs = cached_llm.generate(prompts, sampling_params)
    assert [output.outputs[0].text for output in outputs] == regular
    assert all(output.num_cached_tokens > 0 for output in outputs)


def test_reproducibility(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95)

    def run() -> list[str]:
        llm = LLM(model=str(tiny_model), **SMALL)
        return [output.outputs[0].text for output in llm.generate(PROMPTS, sampling_params)]

    random.seed(7)
    before = random.getstate()
    assert run() == run()
    assert random.getstate() == before  # unlike vLLM, blora leaves the user's state alone


def process_requests(engine: LLMEngine, test_prompts: list[Any]) -> list[RequestOutput]:
    """The loop of the examples that drive an engine: a request joins before each step."""
    request_id, finished = 0, []
    while test_prompts or engine.has_unfinished_requests():
        if test_prompts:
            prompt, sampling_params, lora_request = test_prompts.pop(0)
            engine.add_request(str(request_id), prompt, sampling_params, lora_request=lora_request)
            request_id += 1
        request_outputs: list[RequestOutput] = engine.step()
        finished += [output for output in request_outputs if output.finished]
    return sorted(finished, key=lambda output: int(output.request_id))


def test_llm_engine(tiny_model: Path) -> None:
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(description="drives an engine"))
    args: argparse.Namespace = parser.parse_args(["--model", str(tiny_model), "--memory", "4MB", "--block-size", "4"])
    engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))
    outputs = process_requests(
        engine,
        [
            (PROMPTS[0], SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=1), None),
            (PROMPTS[1], SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2), None),
            (PROMPTS[2], SamplingParams(n=2, temperature=0.8, top_p=0.95, frequency_penalty=0.1), None),
        ],
    )
    assert [len(output.outputs) for output in outputs] == [1, 1, 2]
    assert outputs[0].prompt_logprobs is not None and len(outputs[0].prompt_logprobs) == len(PROMPTS[0])


def test_a_reset_while_the_engine_is_driven(tiny_model: Path) -> None:
    engine = LLMEngine.from_engine_args(EngineArgs(model=str(tiny_model), **SMALL))
    engine.add_request("0", PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True))
    outputs: list[RequestOutput] = []
    for step in range(16):
        if step == 10:
            assert engine.reset_prefix_cache(reset_running_requests=True)
        outputs += engine.step()
    assert outputs[-1].finished and len(outputs[-1].outputs[0].token_ids) == 16


def multilora_prompts(lora_path: str) -> list[Test]:
    greedy = SamplingParams(temperature=0.0, logprobs=1, max_tokens=8, ignore_eos=True)
    sampled = SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2, max_tokens=8)
    return [
        (PROMPTS[0], greedy, None),
        (PROMPTS[1], sampled, None),
        (PROMPTS[2], greedy, LoRARequest("sql-lora", 1, lora_path)),
        (PROMPTS[2], greedy, LoRARequest("sql-lora2", 2, lora_path)),
    ]


def test_multilora(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    engine_args = EngineArgs(
        model=str(tiny_model),
        enable_lora=True,
        max_loras=1,
        max_lora_rank=8,
        max_cpu_loras=2,
        max_num_seqs=256,
        **SMALL,
    )
    engine = LLMEngine.from_engine_args(engine_args)
    outputs = process_requests(engine, multilora_prompts(str(tiny_adapters["r8"])))
    first, second = outputs[2:]
    assert first.lora_request.lora_name == "sql-lora" and second.lora_request.lora_name == "sql-lora2"  # type: ignore[union-attr]
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    (base,) = engine.generate(PROMPTS[2], multilora_prompts("")[0][1], use_tqdm=False)
    assert base.outputs[0].token_ids != first.outputs[0].token_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_with_a_base_of_any_served_type(tiny_model: Path, tiny_adapters: dict[str, Path], dtype: str) -> None:
    lora_path = str(tiny_adapters["r4"])
    engine_args = EngineArgs(
        model=str(tiny_model), quantization=None, dtype=dtype, enable_lora=True, max_lora_rank=64, max_loras=4, **SMALL
    )
    engine = LLMEngine.from_engine_args(engine_args)
    sampling_params = SamplingParams(temperature=0.0, logprobs=1, max_tokens=6, ignore_eos=True)
    prompts: list[Test] = [("My name is", sampling_params, None)]
    prompts += [
        (prompt, sampling_params, LoRARequest(f"lora-test-{number}", 1, lora_path))
        for number, prompt in enumerate(["my name is", *PROMPTS[1:]], 1)
    ]
    outputs = process_requests(engine, prompts)
    assert [output.lora_request and output.lora_request.lora_name for output in outputs] == [  # type: ignore[union-attr]
        None,
        "lora-test-1",
        "lora-test-2",
        "lora-test-3",
    ]
    assert all(len(output.outputs[0].token_ids) == 6 and output.prompt for output in outputs)
    with pytest.raises(ValueError, match="quantization: 'awq' is not supported"):
        LLMEngine.from_engine_args(EngineArgs(model=str(tiny_model), quantization="awq"))


def test_a_batch_of_lora_requests(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    llm = LLM(model=str(tiny_model), enable_lora=True, max_loras=4, max_lora_rank=16, **SMALL)
    sampling_params = SamplingParams(temperature=0, max_tokens=6, stop=["[/assistant]"], ignore_eos=True)
    requests = [LoRARequest(name, number, str(tiny_adapters[name])) for number, name in enumerate(["r4", "r16"], 1)]
    one = [llm.generate(PROMPTS[2], sampling_params, lora_request=request)[0] for request in requests]
    together = llm.generate([PROMPTS[2]] * 3, sampling_params, lora_request=[requests[0], requests[1], None])
    assert [output.outputs[0].text for output in together[:2]] == [output.outputs[0].text for output in one]
    assert len({output.outputs[0].text for output in together}) == 3
    same = llm.generate(PROMPTS, sampling_params, lora_request=requests[0])
    assert same[2].outputs[0].text == one[0].outputs[0].text


def test_priority(tiny_model: Path) -> None:
    llm = LLM(model=str(tiny_model), scheduling_policy="priority", max_num_seqs=1, **SMALL)
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.8, max_tokens=3, ignore_eos=True), priority=[2, 0, 1])
    first = [output.metrics.first_token_ts for output in outputs if output.metrics is not None]
    assert first[1] < first[2] < first[0]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_current_weather",
            "description": "The weather in a place",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
TOOLS_TEMPLATE = """{% if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}
{%- for message in messages %}[{{ message.role }}{% if message.tool_call_id %} {{ message.tool_call_id }}{% endif %}]
{{- message.content }}{% endfor %}"""


@pytest.fixture(scope="module")
def tools_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("tools"), max_position_embeddings=1024)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TOOLS_TEMPLATE}))
    return folder


def test_chat_with_tools(tools_model: Path) -> None:
    llm = LLM(model=str(tools_model), **SMALL)
    sampling_params = SamplingParams(max_tokens=8192, temperature=0.0)  # at most: the model has room for fewer
    messages: list[dict[str, Any]] = [{"role": "user", "content": "How warm is Dallas?"}]
    outputs = llm.chat(messages, sampling_params=sampling_params, tools=TOOLS)
    assert outputs[0].outputs[0].finish_reason in ("stop", "length")
    messages.append(
        {"role": "assistant", "content": '[{"name": "get_current_weather", "arguments": {"city": "Dallas"}}]'}
    )
    messages.append({"role": "tool", "content": "85 degrees", "tool_call_id": "abc123def"})
    outputs = llm.chat(messages, sampling_params, tools=TOOLS)
    shown = llm.get_tokenizer().decode(outputs[0].prompt_token_ids)
    assert shown.startswith('[TOOLS][{"type": "function"') and shown.endswith("[tool abc123def]85 degrees")


async def stream_response(engine: AsyncLLM, prompt: str, request_id: str) -> str:
    sampling_params = SamplingParams(
        max_tokens=10, temperature=0.8, top_p=0.95, seed=42, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    text = ""
    async for output in engine.generate(request_id=request_id, prompt=prompt, sampling_params=sampling_params):
        assert output.request_id == request_id
        for completion in output.outputs:
            text += completion.text
        if output.finished:
            break
    return text


@pytest.mark.slow
def test_async_streaming(tiny_model: Path) -> None:
    async def main() -> list[str]:
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(tiny_model), enforce_eager=True, **SMALL))
        try:
            return [await stream_response(engine, prompt, f"stream-{i}") for i, prompt in enumerate(PROMPTS, 1)]
        finally:
            await engine.shutdown()

    texts = asyncio.run(main())
    llm = LLM(model=str(tiny_model), **SMALL)
    sampling_params = SamplingParams(max_tokens=10, temperature=0.8, top_p=0.95, seed=42, ignore_eos=True)
    assert texts == [output.outputs[0].text for output in llm.generate(PROMPTS, sampling_params)]
