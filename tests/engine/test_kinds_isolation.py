"""Isolation with adapters of every kind, sums and activated ones: a row of a mixed batch gives the same as alone, bit
for bit on the cpu."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from adapter_kinds import make_kinds
from compare import assert_same_tokens
from mixed_batches import Row, Solo, random_row, run_batch
from tiny import make_adapter

from blora.engine import LLM
from blora.engine.text.tokenizer import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blind_forecast")]

INVOCATION = "<go>"
SUMMABLE = ("plain", "bias-all", "bias-lora-only", "lora-bias", "embedding", "head", "both")


def random_use(rng: random.Random, kinds: Sequence[str]) -> Row:
    """Returns a row's use: one adapter of any kind, a sum of two with scales, or the base model."""
    row, choice = random_row(rng, kinds), rng.random()
    if choice < 0.2:
        names = rng.sample(SUMMABLE, 2)
        return replace(row, adapter={name: rng.choice([1.0, 0.5, -0.75, 0.0]) for name in names})
    if choice < 0.3:
        return replace(row, adapter={"activated": rng.choice([1.0, 0.5])}, prompt=f"{row.prompt}{INVOCATION}ab")
    return row


@pytest.mark.grid
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_all_kinds_in_random_batches_equal_their_solo_runs(
    make_llm: Callable[..., LLM], tmp_path: Path, backend: str, dtype: str, cases: Callable[[int, int], int]
) -> None:
    if backend == "reference" and dtype == "bfloat16":
        pytest.skip("torch rounds by shape")
    model, kinds = make_kinds(tmp_path, tie_word_embeddings=dtype == "bfloat16")
    tokens = list(load_tokenizer(model).encode(INVOCATION))
    activated = make_adapter(model, tmp_path / "activated", 7, r=6, alora_invocation_tokens=tokens)
    adapters = {name: str(path) for name, path in [*kinds.items(), ("activated", activated)]}
    options = {"model": model, "dtype": dtype, "adapters": adapters}
    solo = Solo(make_llm(enable_prefix_caching=False, memory="32MB", **options))
    llms = [
        make_llm(memory="32MB", max_num_batched_tokens=200, **options),
        make_llm(memory=scarce(solo.llm), **options),
    ]
    num_compared, rng = 0, random.Random(0)
    while num_compared < cases(120, 1000) or (num_evicted(llms) <= 20 and num_compared < 2000):
        rows = [random_use(rng, [*kinds]) for _ in range(rng.randint(8, 40))]
        for index, output in run_batch(rng.choice(llms), rows, rng).items():
            expected = solo.run(rows[index])
            if backend == "cpu":
                assert (output.token_ids, output.logprobs) == (expected.token_ids, expected.logprobs), rows[index]
            assert_same_tokens(expected, output, rows[index])
            num_compared += 1
    assert num_evicted(llms) > 20
    assert sum(llm.get_info().num_cached_tokens for llm in llms) > 20


def num_evicted(llms: Sequence[LLM]) -> int:
    """How many adapters were evicted so far depends on the speed of copies."""
    return sum(llm.get_info().num_evicted_adapters for llm in llms)


def scarce(llm: LLM) -> int:
    """Returns bytes for the two largest adapters and some rows, so that all others are swapped."""
    sizes = sorted(llm.get_adapter(info.name).num_bytes for info in llm.list_adapters())
    return sizes[-1] + sizes[-2] + 64 * llm.get_info().page_bytes
