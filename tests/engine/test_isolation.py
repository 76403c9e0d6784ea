"""The first test: a row of any mixed batch gives the same as alone."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from compare import assert_same_tokens
from mixed_batches import Solo, Troubles, random_row, run_batch

from blora.engine import LLM, SamplingParams


@pytest.mark.grid
@pytest.mark.usefixtures("blind_forecast")
def test_rows_of_random_mixed_batches_equal_their_solo_runs(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], cases: Callable[[int, int], int]
) -> None:
    num_batches, least, seed = cases(8, 40), cases(4, 21), 0
    adapters = {name: str(path) for name, path in tiny_adapters.items()}
    solo = Solo(make_llm(adapters=adapters, enable_prefix_caching=False))
    num_compared, troubles = 0, Troubles()
    while seed < num_batches or (not troubles.are_many(least) and seed < 4 * num_batches):
        rng = random.Random(seed)
        # Ample memory; so little that adapters are swapped; so little that requests are preempted.
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
        troubles.count(llm)
        seed += 1
    assert num_compared >= 12 * num_batches, num_compared
    troubles.assert_many(least)


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
