"""Whole engines on the CUDA backend: their tokens are the reference's, unless two tokens are nearly equally good."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cuda_models import WINDOWED, YARN, save_model
from fake_flashinfer import FakeFlashInfer
from recording_device import RecordingDevice
from tiny import make_adapter
from watched import count_calls

from blora.adapters.triton.lora import TritonLoRA
from blora.engine import LLM, CompletionOutput, SamplingParams
from blora.engine.attention import flashinfer as attention
from blora.engine.errors import EngineBroken
from blora.engine.memory.arena import Arena
from blora.engine.model.decoder import CausalLM

pytestmark = pytest.mark.slow

Pair = Callable[..., tuple[LLM, LLM]]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)
PAGE_BYTES = 4096 * 2  # of wide_model: K and V of 4 tokens in 2 layers, 2 heads of 64
CLOSE = 0.1  # difference of log-probabilities: the logits are wide, and float16 is rounded in other places


def generate(llm: LLM, prompts: Sequence[Any], adapters: Sequence[Any], sampling: SamplingParams = GREEDY) -> Any:
    outputs = llm.generate(list(prompts), sampling, lora_request=list(adapters), use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def assert_same(expected: Sequence[CompletionOutput], actual: Sequence[CompletionOutput], close: float = CLOSE) -> None:
    """Compares each row up to a token where the reference's two best are close. Most rows have to reach their end."""
    num_whole = 0
    for row, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        for at, (token, wanted) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=True)):
            best, second = sorted((entry.logprob for entry in theirs.logprobs[at].values()), reverse=True)[:2]
            if token != wanted:
                assert best - second < close, (row, at, best, second)
                break
            assert abs(ours.logprobs[at][token].logprob - best) < close, (row, at)
        else:
            num_whole += 1
    assert num_whole > len(expected) * 0.7


PROMPTS = ["a", "some words", "a longer prompt that takes more blocks than one", "and so on", "b" * 30, "the end"]


def test_mixed_adapters(make_pair: Pair, wide_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, so few tokens: base rows, two adapters and both of them with scales."""
    adapters = {
        "first": make_adapter(wide_model, tmp_path / "first", 1, r=4, target_modules=["q_proj", "down_proj"]),
        "second": make_adapter(wide_model, tmp_path / "second", 2, r=20, target_modules=["o_proj", "up_proj"]),
    }
    uses = [None, "first", "second", {"first": 0.5, "second": -1.0}]
    reference, cuda = make_pair(wide_model)
    for llm in (reference, cuda):
        for name, folder in adapters.items():
            llm.load_adapter(name, folder)
    planned = count_calls(monkeypatch, TritonLoRA, "plan")
    few = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=2)
    expected = generate(reference, PROMPTS[:4], uses, few)
    assert_same(expected, generate(cuda, PROMPTS[:4], uses, few))
    assert planned
    assert len({tuple(output.token_ids) for output in expected}) == 4


@pytest.mark.parametrize("max_num_batched_tokens", [8, 64])
def test_chunked_prefill_beside_decode(
    make_pair: Pair, wide_model: Path, flashinfer: FakeFlashInfer, max_num_batched_tokens: int
) -> None:
    reference, cuda = make_pair(wide_model, max_num_batched_tokens=max_num_batched_tokens)
    nobody = [None] * len(PROMPTS)
    assert_same(generate(reference, PROMPTS, nobody), generate(cuda, PROMPTS, nobody))
    assert {
        "BatchDecodeWithPagedKVCacheWrapper.run",
        "BatchPrefillWithPagedKVCacheWrapper.run",
    } <= flashinfer.log.names()


ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-yarn": ("LlamaForCausalLM", {"rope_parameters": YARN, "num_key_value_heads": 1}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 7}),
    "qwen2-bias": ("Qwen2ForCausalLM", {"num_attention_heads": 2, "hidden_size": 128}),
    "qwen3-norms-window": ("Qwen3ForCausalLM", WINDOWED),
}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_architectures(make_pair: Pair, tmp_path: Path, case: str) -> None:
    architecture, fields = ARCHITECTURES[case]
    reference, cuda = make_pair(save_model(tmp_path, architecture, **fields), max_num_batched_tokens=24)
    nobody = [None] * len(PROMPTS)
    assert_same(generate(reference, PROMPTS, nobody), generate(cuda, PROMPTS, nobody))


@pytest.mark.usefixtures("blind_forecast")
def test_prefix_hits_and_preemption(make_pair: Pair, wide_model: Path) -> None:
    """The memory holds a part of the rows, and the same prompts come twice."""
    reference, cuda = make_pair(wide_model, memory=24 * PAGE_BYTES, max_num_batched_tokens=48)
    prompts = [f"{start} the same beginning of all" for start in ("so", "so", "no")] + ["c" * 20]
    nobody = [None] * len(prompts)
    for _ in range(2):
        assert_same(generate(reference, prompts, nobody), generate(cuda, prompts, nobody))
    info = cuda.get_info()
    assert info.page_bytes == PAGE_BYTES and info.num_preemptions > 0 and info.num_cached_tokens > 0


@pytest.mark.parametrize("enforce_eager", [True, False])
@pytest.mark.usefixtures("blind_forecast")
def test_prefixes_that_many_rows_share(
    make_pair: Pair, wide_model: Path, flashinfer: FakeFlashInfer, monkeypatch: pytest.MonkeyPatch, enforce_eager: bool
) -> None:
    """There are two prefixes, one of them longer, and rows without. The memory holds a part of the rows, so some are
    preempted. Rows that share a prefix leave the graphs."""
    monkeypatch.setattr(attention, "WORTHWHILE_BYTES", 1)
    reference, cuda = make_pair(wide_model, memory=48 * PAGE_BYTES, max_num_seqs=12, enforce_eager=enforce_eager)
    assert "merge_state_in_place" in flashinfer.log.names()  # compiled before a request may wait for it
    flashinfer.log.calls.clear()
    starts = ["the same beginning of some", "another, and a longer beginning of the others"]
    prompts = [f"{starts[row % 2]} {row}" for row in range(10)] + ["alone", "on its own"]
    nobody = [None] * len(prompts)
    assert generate(cuda, starts, [None, None])  # so that the prefixes are cached
    assert_same(generate(reference, prompts, nobody), generate(cuda, prompts, nobody))
    assert cuda.get_info().num_preemptions > 0
    merged = [len(call.args[0]) for call in flashinfer.log.calls if call.name == "merge_state_in_place"]
    assert max(merged) > 5 and min(merged) >= 2


def test_an_activated_adapter_shares_the_prefix_of_the_base_model(
    make_pair: Pair, wide_model: Path, flashinfer: FakeFlashInfer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before the invocation, the prefix of an aLoRA's rows is the base model's. Rows of an ordinary adapter have KV of
    their own."""
    monkeypatch.setattr(attention, "WORTHWHILE_BYTES", 1)
    reference, cuda = make_pair(wide_model)
    for llm in (reference, cuda):
        llm.load_adapter("plain", make_adapter(wide_model, tmp_path / "plain", 1, r=4, target_modules=["q_proj"]))
        folder = make_adapter(
            wide_model, tmp_path / "late", 2, r=4, target_modules=["v_proj"], alora_invocation_tokens=[33, 63]
        )
        llm.load_adapter("late", folder)
    prompts = [{"prompt_token_ids": [*range(70, 90), 33, 63, 65 + row]} for row in range(4)]
    uses = [None, "late", "plain", "late"]
    few = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=2)
    for llm in (reference, cuda):
        generate(llm, prompts[:1], [None], few)
    assert_same(generate(reference, prompts, uses, few), generate(cuda, prompts, uses, few))
    merged = {len(call.args[0]) for call in flashinfer.log.calls if call.name == "merge_state_in_place"}
    assert max(merged) == 3


def test_a_row_does_not_change_with_its_neighbours(make_pair: Pair, wide_model: Path) -> None:
    _, cuda = make_pair(wide_model, enable_prefix_caching=False)
    together = generate(cuda, PROMPTS, [None] * len(PROMPTS))
    for prompt, output in zip(PROMPTS, together, strict=True):
        assert_same(generate(cuda, [prompt], [None]), [output])


def test_everything_that_is_sampled(make_pair: Pair, wide_model: Path) -> None:
    """Seeds, filters, penalties, biases and logprobs of prompts give the reference's draws."""
    reference, cuda = make_pair(wide_model)
    samplings = [
        SamplingParams(temperature=0.7, seed=1, max_tokens=6, logprobs=2),
        SamplingParams(temperature=1.0, seed=2, max_tokens=6, top_p=0.8, logprobs=2),
        SamplingParams(temperature=0.9, seed=3, max_tokens=6, top_k=5, min_p=0.1, logprobs=2),
        SamplingParams(temperature=0, max_tokens=6, repetition_penalty=1.3, frequency_penalty=0.5, logprobs=2),
        SamplingParams(temperature=0, max_tokens=6, logit_bias={65: 5.0}, min_tokens=3, prompt_logprobs=1, logprobs=2),
    ]
    prompts = PROMPTS[: len(samplings)]
    ours, theirs = (llm.generate(prompts, samplings, use_tqdm=False) for llm in (cuda, reference))
    tokens = [[list(output.outputs[0].token_ids) for output in outputs] for outputs in (ours, theirs)]
    assert sum(one == other for one, other in zip(*tokens, strict=True)) >= len(samplings) - 1
    assert [row[:2] for row in tokens[0]] == [row[:2] for row in tokens[1]]


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "fp8_e5m2"])
def test_kv_of_8_bits_takes_half_the_memory(
    make_pair: Pair, wide_model: Path, kv_cache_dtype: str, last_arena: Callable[[], Arena]
) -> None:
    """Rounded to 2 or 3 bits of fraction, KV gives a random model's first token more often than not."""
    reference, _ = make_pair(wide_model)
    whole = last_arena().layout
    _, cuda = make_pair(wide_model, kv_cache_dtype=kv_cache_dtype)
    half = last_arena().layout
    assert half.dtype.itemsize == 1 and half.block_bytes * 2 == whole.block_bytes
    one = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)
    ours, theirs = (generate(llm, PROMPTS, [None] * len(PROMPTS), one) for llm in (cuda, reference))
    num_same = sum(one.token_ids[0] == other.token_ids[0] for one, other in zip(ours, theirs, strict=True))
    assert num_same >= len(PROMPTS) // 2
    assert any(
        one.token_ids != other.token_ids for one, other in zip(ours, theirs, strict=True)
    )  # rounding has an effect


def test_rows_that_fail_are_done_with_before_others_are_computed(
    make_pair: Pair, wide_model: Path, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their plan is in pinned memory, which the next plan overwrites."""
    _, cuda = make_pair(wide_model)
    calls: list[str] = []

    def fail(*_: Any) -> None:
        calls.append("rows")
        raise ValueError("rows that cannot be computed")

    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "forward", fail)
        patch.setattr(device, "synchronize", lambda: calls.append("settled"))
        outputs = generate(cuda, PROMPTS[:2], [None, None])
    assert all(output.error is not None for output in outputs)
    assert calls == ["rows", "settled"] * 3  # both rows, then each alone
    assert generate(cuda, PROMPTS[:1], [None])[0].error is None


@pytest.mark.usefixtures("flashinfer")
def test_a_gpu_that_fails_is_the_end_of_the_engine(
    wide_model: Path, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is to blame, and this process can compute none any more."""
    llm = LLM(str(wide_model), backend="cuda", dtype="float16", memory="2MB", block_size=4, enforce_eager=True)

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(CausalLM, "forward", fail)
    monkeypatch.setattr(device, "synchronize", fail)
    with pytest.raises(EngineBroken, match="illegal memory access"):
        llm.generate(PROMPTS[:2], GREEDY, use_tqdm=False)
