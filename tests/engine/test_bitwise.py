"""Isolation is bitwise on the native kernels: a row's logprobs in any batch equal those of its solo run bit for bit."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mixed_batches import Row, Solo, Troubles, random_row, run_batch
from tiny import make_adapter, make_model

from blora.engine import LLM, CompletionOutput

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blind_forecast")]

# Models wide enough that threads share the work of a step, with gate and up of whole panels or not.
MODELS: dict[str, dict[str, Any]] = {
    "float32": {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96},
    "bfloat16": {"hidden_size": 64, "head_dim": 16, "intermediate_size": 88},
}
BLOCK_SIZES = {"float32": 4, "bfloat16": 3}  # sums are cut at blocks, whose size never changes in an engine
ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 3, "target_modules": ["q_proj", "v_proj"]},
    "all": {"r": 24},
    "mixed": {"r": 16, "rank_pattern": {"q_proj": 5, "down_proj": 64}},
    "first-layer": {"r": 8, "layers_to_transform": [0]},
}
# Pages of the arena and adapters in use: ample pages; then adapters are swapped; then requests are preempted.
MEMORY: dict[str, tuple[tuple[int, list[str]], ...]] = {
    "float32": ((700, [*ADAPTERS]), (140, [*ADAPTERS]), (42, ["attention"])),
    "bfloat16": ((700, [*ADAPTERS]), (140, [*ADAPTERS]), (52, ["attention"])),
}


@pytest.fixture
def backend() -> str:
    return "cpu"


@pytest.mark.grid
@pytest.mark.parametrize("dtype", MODELS)
def test_logprobs_of_random_mixed_batches_are_those_of_solo_runs(
    make_llm: Callable[..., LLM], tmp_path: Path, dtype: str, cases: Callable[[int, int], int]
) -> None:
    num_batches, least, seed = cases(12, 40), cases(5, 21), 0  # 12 have all memories with one thread and two
    model = make_model(tmp_path / "model", **MODELS[dtype])
    adapters = {
        name: str(make_adapter(model, tmp_path / name, seed, **fields))
        for seed, (name, fields) in enumerate(ADAPTERS.items())
    }
    options = {"model": model, "dtype": dtype, "block_size": BLOCK_SIZES[dtype]}
    solo = Solo(make_llm(adapters=adapters, enable_prefix_caching=False, **options))
    page_bytes = solo.llm.get_info().page_bytes
    num_compared, troubles = 0, Troubles()
    while seed < num_batches or (not troubles.are_many(least) and seed < 4 * num_batches):
        rng = random.Random(seed)
        num_pages, names = MEMORY[dtype][seed % 3]
        loaded = {name: adapters[name] for name in names}
        threads = 2 if seed % 4 == 1 else 1
        llm = make_llm(
            adapters=loaded, memory=num_pages * page_bytes, threads=threads, **options, **random_options(rng)
        )
        rows = [random_row(rng, names) for _ in range(rng.randint(8, 32))]
        outputs = run_batch(llm, rows, rng)
        for index, output in outputs.items():
            assert_same_bits(solo.run(rows[index]), output, (seed, rows[index]))
        num_compared += len(outputs)
        troubles.count(llm)
        seed += 1
    assert num_compared >= 12 * num_batches, num_compared
    troubles.assert_many(least)


def random_options(rng: random.Random) -> dict[str, Any]:
    return {
        "max_num_batched_tokens": rng.choice([8, 17, 64, 300]),
        "max_num_seqs": rng.choice([4, 12, 32]),
        "adapter_copy_bytes": rng.choice([20_000, 10_000_000]),
        "step_budget": rng.choice(["time", "tokens"]),
    }


def assert_same_bits(expected: CompletionOutput, actual: CompletionOutput, what: tuple[int, Row]) -> None:
    assert actual.finish_reason == expected.finish_reason, what
    assert actual.token_ids == expected.token_ids, what
    assert actual.logprobs == expected.logprobs, what  # two floats are equal only if their bits are; NaN never is
    assert len(actual.logprobs or ()) == len(actual.token_ids), what
