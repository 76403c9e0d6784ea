"""2,000 adapters of mixed ranks in memory for a few tens: every row equals that of its adapter alone."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import make_adapter

from blora.bench.many_adapters import load_many
from blora.engine import LLM, SamplingParams

RANKS = (4, 8, 16, 32, 64, 128)
NUM_ADAPTERS = 2000
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.mark.slow
def test_2000_adapters_with_memory_for_40(tiny_model: Path, tmp_path: Path, make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(memory="8MB", block_size=4, max_num_seqs=16, host_cache=None)
    folders = [make_adapter(tiny_model, tmp_path / str(rank), rank, r=rank) for rank in RANKS]
    names = load_many(llm, folders, NUM_ADAPTERS)
    num_pages = sum(info.num_pages for info in llm.list_adapters())
    assert 20 < NUM_ADAPTERS * llm.get_info().num_pages / num_pages < 60
    draw = random.Random(0)
    picks = [min(int(draw.paretovariate(0.5)), NUM_ADAPTERS) - 1 for _ in range(400)]
    solo = {index: llm.generate("a prompt", GREEDY, names[index], use_tqdm=False)[0] for index in range(6)}
    outputs = llm.generate(["a prompt"] * len(picks), GREEDY, [names[index] for index in picks], use_tqdm=False)
    for index, output in zip(picks, outputs, strict=True):
        expected = solo[index % len(RANKS)].outputs[0].token_ids
        assert output.outputs[0].token_ids == expected, index
    info = llm.get_info()
    assert info.num_evicted_adapters > 40
    assert info.num_adapter_uses - info.num_adapter_hits <= len(set(picks)) * 1.5
    llm.check_idle()
