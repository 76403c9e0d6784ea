"""KV of 8 bits and draws without a seed, beside graphs, adapters, long prompts, preemption, several shards."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import first_difference
from fake_flashinfer import FakeFlashInfer
from recording_device import RecordingDevice, check_order
from tiny import make_adapter
from torch import Tensor

from blora.engine import LLM, CompletionOutput, RequestOutput, SamplingParams
from blora.engine.attention.reference import ReferenceAttention
from blora.engine.cuda.graphs import DecodeGraphs
from blora.engine.parallel import shards as shards_module
from blora.engine.step import runner as runner_module
from blora.engine.step import sampler
from blora.engine.step.sampler import gumbel_noise
from blora.scheduler import RowResult, ScheduledRow

from .conftest import PageWatch
from .test_engine import PAGE_BYTES, assert_same, generate

pytestmark = pytest.mark.slow

Pair = Callable[..., tuple[LLM, LLM]]
FP8 = {"fp8": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
MODULES = ["q_proj", "v_proj", "down_proj"]
PROMPTS = ["a", "some words", "a longer prompt that takes more blocks than one", "and so on", "b" * 30, "the end"]
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=2)
CLOSE = 0.3  # log-probabilities: what float16 rounds in another place may be the next of few values in 8 bits
# Scores that other roundings may bring into another order. The logits end between 8 and 16, where float16 goes in steps
# of 2**-7, and some of these add up in layers and heads; K and V of 8 bits may be the next of few values.
AS_GOOD = {"auto": 8 * 2**-7, "fp8": CLOSE}
GRAPHS = {"enforce_eager": False, "max_num_seqs": 6}


@pytest.fixture
def adapters(wide_model: Path, tmp_path: Path) -> dict[str, Path]:
    return {
        "first": make_adapter(wide_model, tmp_path / "first", 1, r=4, target_modules=MODULES),
        "second": make_adapter(wide_model, tmp_path / "second", 2, r=20, target_modules=["o_proj", "up_proj"]),
    }


def load(adapters: dict[str, Path], *engines: LLM) -> None:
    for llm in engines:
        for name, folder in adapters.items():
            llm.load_adapter(name, folder)


@pytest.fixture
def round_kv(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Rounds the reference's K and V to 8 bits from now on."""
    original = ReferenceAttention.run

    def begin(kv_cache_dtype: str) -> None:
        dtype = FP8[kv_cache_dtype]
        limit = torch.finfo(dtype).max

        def run(self: ReferenceAttention, layer: int, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
            k, v = (part.clamp(-limit, limit).to(dtype).to(part.dtype) for part in (k, v))
            return original(self, layer, q, k, v, *others)

        monkeypatch.setattr(ReferenceAttention, "run", run)

    return begin


Scores = dict[tuple[int, ...], Tensor]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Scores:
    """Of the tokens that a row came with, those of all tokens that may come next: the largest is drawn. Of the first
    engine that draws for these."""
    noted: Scores = {}
    original = runner_module.sample

    def sample(logits: Tensor, rows: Sequence[ScheduledRow], *others: Any) -> list[RowResult]:
        for own, row in zip(logits, rows, strict=True):
            noted.setdefault(tuple(row.token_ids), perturbed(own.clone(), row))
        return original(logits, rows, *others)

    monkeypatch.setattr(runner_module, "sample", sample)
    return noted


def perturbed(logits: Tensor, row: ScheduledRow) -> Tensor:
    """Where filters leave one token there is no noise."""
    sampler._apply_constraints(logits, row)
    if row.sampling.temperature == 0:
        return logits.double()
    found = sampler._scores(logits, row.sampling.temperature)
    has_filter = row.sampling.top_k > 0 or row.sampling.top_p < 1
    return found if has_filter else found + gumbel_noise(sampler._draw_key(row), torch.arange(len(found)))


def assert_same_draws(
    expected: Sequence[RequestOutput], actual: Sequence[RequestOutput], scores: Scores, as_good: float
) -> None:
    """Row by row up to where the other token is as good as the reference's; most rows have to come to their end."""
    num_whole = 0
    for wanted, found in zip(expected, actual, strict=True):
        tokens, others = wanted.outputs[0].token_ids, found.outputs[0].token_ids
        at = first_difference(tokens, others)
        if at is None:
            num_whole += 1
            continue
        own = scores[(*wanted.prompt_token_ids, *tokens[:at])]
        assert own[tokens[at]] - own[others[at]] < as_good, (wanted, found)
    assert num_whole > len(expected) * 0.7


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each step that ran as a graph."""
    steps: list[int] = []
    original = DecodeGraphs.run

    def run(self: DecodeGraphs, *args: Any) -> Tensor | None:
        logits = original(self, *args)
        steps.extend([] if logits is None else [len(logits)])
        return logits

    monkeypatch.setattr(DecodeGraphs, "run", run)
    return steps


@pytest.mark.parametrize("kv_cache_dtype", FP8)
def test_small_kv_in_graphs_and_mixed_batches(
    watch: PageWatch,
    make_pair: Pair,
    wide_model: Path,
    device: RecordingDevice,
    adapters: dict[str, Path],
    round_kv: Callable[[str], None],
    counted: list[int],
    kv_cache_dtype: str,
) -> None:
    """Only the rounding differs: in prompts computed in parts, in decode beside them, in replays and their padding."""
    reference, cuda = make_pair(wide_model, kv_cache_dtype=kv_cache_dtype, max_num_batched_tokens=40, **GRAPHS)
    watch.written.clear()
    load(adapters, reference, cuda)
    device.watch(cuda._core.arena.pages)
    uses = [None, "first", "second", None, "first", None]
    exact = generate(reference, PROMPTS, uses, GREEDY)
    round_kv(kv_cache_dtype)
    rounded = generate(LLM(str(wide_model), **EXACT | {"adapters": adapters}), PROMPTS, uses, GREEDY)
    together = generate(cuda, PROMPTS, uses, GREEDY)
    assert_same(rounded, together, CLOSE)
    assert_same(rounded[:3], generate(cuda, PROMPTS[:3], uses[:3], GREEDY), CLOSE)  # with a row of padding
    assert off_by(rounded, together) * 2 < off_by(rounded, exact)
    assert {3, 6} <= set(counted)
    check_order(device.log)


def off_by(expected: Sequence[CompletionOutput], actual: Sequence[CompletionOutput]) -> float:
    """The sum of the differences between log-probabilities of first tokens."""
    pairs = ((one.logprobs[0], other.logprobs[0]) for one, other in zip(expected, actual, strict=True))
    return sum(
        abs(one[token].logprob - other[token].logprob) for one, other in pairs for token in one if token in other
    )


EXACT: dict[str, Any] = {"backend": "reference", "dtype": "float16", "memory": "8MB", "block_size": 4}


@pytest.mark.usefixtures("blind_forecast")
def test_small_kv_is_found_again_and_made_again(make_pair: Pair, wide_model: Path) -> None:
    """With prefix hits and preemption, other rows read KV of 8 bits, and a second computation gives the same."""
    small = {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 48}
    _, roomy = make_pair(wide_model, enable_prefix_caching=False, **small)
    _, cuda = make_pair(wide_model, memory=24 * PAGE_BYTES, **small | GRAPHS)
    prompts = [f"{start} the same beginning of all" for start in ("so", "so", "no")] + ["c" * 20]
    expected = generate(roomy, prompts, [None] * 4)
    for _ in range(2):
        assert_same(expected, generate(cuda, prompts, [None] * 4), CLOSE)
    scheduler = cuda._core.scheduler
    assert scheduler.num_preemptions > 0 and scheduler._kv.num_prefix_hits > 0


def mixed_sampling(max_tokens: int = 4) -> list[SamplingParams]:
    """One row for each way to a token, in one batch. Rows that change logits in place come before rows that draw from
    theirs."""
    common: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": True}
    # Drawn by the library, and with one outcome: what it was given are the logits of that row.
    certain = SamplingParams(temperature=1.5, top_k=1, **common)
    return [
        SamplingParams(temperature=0, logit_bias={65: 5.0}, repetition_penalty=1.3, **common),
        certain,
        SamplingParams(temperature=0.8, seed=5, **common),
        SamplingParams(temperature=0, **common),
        certain,
        SamplingParams(temperature=1.5, top_p=1e-6, **common),
    ]


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_draws_without_a_seed_from_graphs(
    make_pair: Pair,
    wide_model: Path,
    flashinfer: FakeFlashInfer,
    adapters: dict[str, Path],
    round_kv: Callable[[str], None],
    counted: list[int],
    scores: Scores,
    kv_cache_dtype: str,
) -> None:
    reference, cuda = make_pair(wide_model, seed=None, kv_cache_dtype=kv_cache_dtype, **GRAPHS)
    load(adapters, reference, cuda)
    if kv_cache_dtype != "auto":
        round_kv(kv_cache_dtype)
    uses = [None, "first", "second", None, None, "first"]
    flashinfer.log.calls.clear()
    scores.clear()
    expected, actual = (
        llm.generate(PROMPTS, mixed_sampling(), lora_request=uses, use_tqdm=False) for llm in (reference, cuda)
    )
    assert_same_draws(expected, actual, scores, AS_GOOD[kv_cache_dtype])
    drawn = [call for call in flashinfer.log.calls if call.name == "sampling.softmax"]
    assert len(drawn) >= 6 and 6 in counted


def test_draws_without_a_seed_vary(make_pair: Pair, wide_model: Path, counted: list[int]) -> None:
    """They vary although every row of a replay has the same logits."""
    _, cuda = make_pair(wide_model, seed=None, **GRAPHS)
    sampling = SamplingParams(temperature=3.0, max_tokens=5, ignore_eos=True, n=6)
    answers = [tuple(sample.token_ids) for sample in cuda.generate("ab", sampling, use_tqdm=False)[0].outputs]
    assert len(set(answers)) == 6 and 6 in counted


@pytest.fixture
def two_shards_llm(
    flashinfer: FakeFlashInfer, wide_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LLM]]:
    assert flashinfer.log is not None
    for folder in (Path(__file__).parents[2], Path(__file__).parent):
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(shards_module, "MODULE", "fake_gpu_shard")
    made: list[LLM] = []

    def make(**options: Any) -> LLM:
        common: dict[str, Any] = {"dtype": "float16", "memory": "8MB", "block_size": 4, "max_num_batched_tokens": 48}
        made.append(LLM(str(wide_model), backend="cuda", tensor_parallel_size=2, **common | options))
        return made[-1]

    yield make
    for llm in made:
        llm.check_idle()
        llm._engine.shards.close()


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_two_shards(
    two_shards_llm: Callable[..., LLM],
    wide_model: Path,
    adapters: dict[str, Path],
    round_kv: Callable[[str], None],
    scores: Scores,
    kv_cache_dtype: str,
) -> None:
    """Each shard has a GPU of its own, in effect: every way to a token, adapters, prompts in parts."""
    if kv_cache_dtype != "auto":
        round_kv(kv_cache_dtype)
    reference = LLM(str(wide_model), seed=None, **EXACT)
    two = two_shards_llm(seed=None, kv_cache_dtype=kv_cache_dtype)
    load(adapters, reference, two)
    uses = [None, "first", "second", None, None, "first"]
    few = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=2, prompt_logprobs=0)
    assert_same(generate(reference, PROMPTS[:3], uses[:3], few), generate(two, PROMPTS[:3], uses[:3], few), CLOSE)
    scores.clear()
    expected, actual = (
        llm.generate(PROMPTS, mixed_sampling(3), lora_request=uses, use_tqdm=False) for llm in (reference, two)
    )
    assert_same_draws(expected, actual, scores, AS_GOOD[kv_cache_dtype])
