"""A mix makes one plan of samples and arrivals; one option changes nothing else."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from blora.bench.load import Planned, arrival_seconds, read_plan, write_plan
from blora.bench.load.datasets import RandomTokens, Sample
from blora.bench.load.mix import Mix

TOKENS = RandomTokens(vocab_size=50, input_len=8, output_len=4, range_ratio=0.5, prefix_len=3, first_id=10)
MIX = Mix(adapters=("a", "b"), base_share=0.3, tenants={"x": 3.0, "y": 1.0}, deadline=2.0)


def plan(mix: Mix = MIX, seed: int = 0, tokens: RandomTokens = TOKENS, count: int = 2000) -> list[Planned]:
    return mix.plan(tokens.draw(count, seed), arrival_seconds(count, 10.0, seed=seed), seed)


def test_the_same_seed_gives_the_same_plan_byte_for_byte(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "other", "another seed")]
    for file, seed in zip(files, (7, 7, 8), strict=True):
        write_plan(file, plan(seed=seed, count=50))
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert read_plan(files[0]) == plan(seed=7, count=50)


def test_shares_of_tenants_adapters_and_the_base_model() -> None:
    planned = plan()
    tenants = Counter(request.tenant for request in planned)
    adapters = Counter(request.adapter for request in planned)
    assert tenants["x"] / len(planned) == pytest.approx(0.75, abs=0.04)
    assert adapters[""] / len(planned) == pytest.approx(0.3, abs=0.04)
    assert adapters["a"] / adapters["b"] == pytest.approx(1.0, abs=0.15)


def test_one_option_changes_nothing_else() -> None:
    before = plan()
    after = plan(replace(MIX, tenants={"z": 1.0}))
    assert [replace(request, tenant="") for request in before] == [replace(request, tenant="") for request in after]
    other = plan(replace(MIX, popularity="zipf", alpha=2.0))
    assert [(r.prompt, r.seconds, r.tenant) for r in before] == [(r.prompt, r.seconds, r.tenant) for r in other]


def test_random_prompts_share_a_prefix_and_keep_to_their_lengths() -> None:
    samples = TOKENS.draw(500, 1)
    assert len({tuple(sample.prompt[:3]) for sample in samples}) == 1
    assert {len(sample.prompt) - 3 for sample in samples} == set(range(4, 13))
    assert {sample.max_tokens for sample in samples} == set(range(2, 7))
    assert {token for sample in samples for token in sample.prompt} == set(range(10, 50))  # type: ignore[comparison-overlap]


def test_a_sample_that_says_its_adapter_and_time_has_them() -> None:
    samples = [
        Sample(prompt="late", max_tokens=1, adapter="", seconds=5.0, sampling={"n": 2}, expected="yes"),
        Sample(prompt="early", max_tokens=1),
    ]
    early, late = replace(MIX, base_share=0.0, sampling={"n": 1, "temperature": 0.0}).plan(samples, [0.0, 1.0], 0)
    assert (early.prompt, early.seconds, early.adapter in ("a", "b"), early.sampling["n"]) == ("early", 1.0, True, 1)
    assert (late.adapter, late.seconds, late.expected) == ("", 5.0, "yes")
    assert late.sampling == {"n": 2, "temperature": 0.0}


@pytest.mark.parametrize(("field", "value"), [("range_ratio", 1.0), ("range_ratio", -0.1), ("first_id", 50)])
def test_what_has_no_meaning_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError):
        replace(TOKENS, **{field: value}).draw(1, 0)
