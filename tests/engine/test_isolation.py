"""The first test: a row of any mixed batch gives what it gives alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from compare import assert_same_tokens

from blora.engine import LLM, CompletionOutput, RequestOutput, SamplingParams

NUM_BATCHES = 40
SHARED_PREFIXES = ["the same beginning of several prompts, ", "another one; "]


@dataclass(frozen=True)
class Row:
    prompt: str
    adapter: str | None
    sampling: SamplingParams


def random_row(rng: random.Random, adapters: list[str]) -> Row:
    prefix = rng.choice(["", *SHARED_PREFIXES])
    prompt = prefix + "".join(rng.choice("abcdefgh ,.") for _ in range(rng.randint(1, 40)))
    sampling = SamplingParams(
        temperature=0, max_tokens=rng.choice([1, 4, 12, 40]), logprobs=2, ignore_eos=rng.random() < 0.8
    )
    return Row(prompt, rng.choice([None, *adapters]), sampling)


class Solo:
    """Each row's own run, in an engine without prefix cache in which nothing else ever runs at the same time."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._known: dict[str, CompletionOutput] = {}

    def run(self, row: Row) -> CompletionOutput:
        key = repr(row)
        if key not in self._known:
            output = self._llm.generate(row.prompt, row.sampling, lora_request=row.adapter, use_tqdm=False)[0]
            self._known[key] = output.outputs[0]
        return self._known[key]


def run_batch(llm: LLM, rows: list[Row], rng: random.Random) -> dict[int, CompletionOutput]:
    """Rows arrive a few at a time while others decode, and some are aborted half-way."""
    done: dict[int, CompletionOutput] = {}
    pending = list(enumerate(rows))
    streams = []
    while pending or streams:
        if pending and (not streams or rng.random() < 0.4):
            size = rng.choice([4, 32])
            part, pending = pending[:size], pending[size:]
            is_aborted = rng.random() < 0.2
            streams.append((part, start(llm, [row for _, row in part]), rng.randint(1, 6) if is_aborted else 1000))
        position = rng.randrange(len(streams))
        part, outputs, patience = streams.pop(position)
        news = next(outputs, None)
        if news is not None and patience > 1:
            done |= {part[int(entry.request_id)][0]: collect(entry) for entry in news if entry.finished}
            streams.append((part, outputs, patience - 1))
        elif news is not None:
            outputs.close()
    return done


def start(llm: LLM, rows: list[Row]):  # type: ignore[no-untyped-def]
    return accumulate(
        llm.stream([row.prompt for row in rows], [row.sampling for row in rows], lora_request=[r.adapter for r in rows])
    )


def accumulate(stream):  # type: ignore[no-untyped-def]
    """Turns deltas into what each row has so far."""
    tokens: dict[str, list[int]] = {}
    try:
        for outputs in stream:
            for output in outputs:
                tokens.setdefault(output.request_id, []).extend(output.outputs[0].token_ids)
                output.outputs[0] = replace(output.outputs[0], token_ids=list(tokens[output.request_id]))
            yield outputs
    finally:
        stream.close()


def collect(output: RequestOutput) -> CompletionOutput:
    return output.outputs[0]


@pytest.mark.timeout(600)
def test_rows_of_random_mixed_batches_equal_their_solo_runs(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    adapters = {name: str(path) for name, path in tiny_adapters.items()}
    solo = Solo(make_llm(adapters=adapters, enable_prefix_caching=False))
    num_compared = num_preempted = num_cached = num_evicted = 0
    for seed in range(NUM_BATCHES):
        rng = random.Random(seed)
        # From ample memory to so little that adapters are swapped, or that requests are preempted.
        memory, names = rng.choice([("2MB", [*adapters]), ("180KB", [*adapters]), ("60KB", ["r1", "r2"])])
        llm = make_llm(
            adapters={name: adapters[name] for name in names},
            memory=memory,
            max_num_batched_tokens=rng.choice([5, 17, 64, 300]),
            max_num_seqs=rng.choice([3, 8, 32]),
            adapter_copy_bytes=rng.choice([1, 50_000, 10_000_000]),
        )
        rows = [random_row(rng, names) for _ in range(rng.randint(2, 32))]
        for index, output in run_batch(llm, rows, rng).items():
            assert output.finish_reason in ("stop", "length")
            assert_same_tokens(solo.run(rows[index]), output, (seed, rows[index]))
            num_compared += 1
        scheduler = llm._core.scheduler
        num_preempted += scheduler.num_preemptions
        num_cached += scheduler._kv.num_prefix_hits
        num_evicted += scheduler._pool.num_evicted_adapters
    assert num_compared >= 500, num_compared
    assert min(num_preempted, num_cached, num_evicted) > 20, (num_preempted, num_cached, num_evicted)


def test_base_rows_equal_an_engine_that_never_saw_an_adapter(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    plain, mixed = make_llm(), make_llm(adapters={name: str(path) for name, path in tiny_adapters.items()})
    prompts = [f"base row {index}" for index in range(8)]
    sampling = SamplingParams(temperature=0, max_tokens=12, logprobs=2, ignore_eos=True)
    expected = plain.generate(prompts, sampling, use_tqdm=False)
    adapters = [None, *tiny_adapters]
    batch = [prompt for prompt in prompts for _ in adapters]
    outputs = mixed.generate(batch, sampling, lora_request=adapters * len(prompts), use_tqdm=False)
    for index, output in enumerate(outputs):
        if index % len(adapters) == 0:
            assert_same_tokens(expected[index // len(adapters)].outputs[0], output.outputs[0])
        else:
            assert output.outputs[0].token_ids != expected[index // len(adapters)].outputs[0].token_ids


def test_seeded_draws_do_not_change_with_the_batch(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    adapters = {name: str(path) for name, path in tiny_adapters.items()}
    sampling = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=16, n=2, ignore_eos=True)
    alone = make_llm(adapters=adapters).generate("a seeded prompt", sampling, lora_request="r4", use_tqdm=False)[0]
    others = [f"other {index}" for index in range(12)]
    crowd = make_llm(adapters=adapters, max_num_batched_tokens=9, memory="300KB").generate(
        ["a seeded prompt", *others], sampling, lora_request=["r4", *[None, "r8", "r64"] * 4], use_tqdm=False
    )[0]
    assert [sample.token_ids for sample in crowd.outputs] == [sample.token_ids for sample in alone.outputs]
    assert alone.outputs[0].token_ids != alone.outputs[1].token_ids
