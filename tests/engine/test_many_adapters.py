"""2,000 adapters of mixed ranks in memory for a few tens: every row equals that of its adapter alone."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tiny import make_adapter

from blora.adapters import AdapterImage, ImageTable, pack, read_checkpoint
from blora.engine import LLM, SamplingParams
from blora.engine.adapter_store.host_cache import Source
from blora.engine.model.targets import lora_targets

RANKS = (4, 8, 16, 32, 64, 128)
NUM_ADAPTERS = 2000
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def test_2000_adapters_with_memory_for_40(tiny_model: Path, tmp_path: Path, make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(memory="8MB", block_size=4, max_num_seqs=16, host_cache=None)
    images = [image_of(llm, make_adapter(tiny_model, tmp_path / str(rank), rank, r=rank)) for rank in RANKS]
    for index in range(NUM_ADAPTERS):  # a few sets of weights under many digests
        table, image = images[index % len(RANKS)]
        table = replace(table, digest=f"{index:064x}")
        llm._keep(AdapterImage(table, image.numpy()), table, Source("", ""))
        llm._adapters.publish(f"adapter{index}", "", table)
    num_pages = sum(images[index % len(RANKS)][0].num_pages for index in range(NUM_ADAPTERS))
    assert 20 < NUM_ADAPTERS * llm._core.arena.num_pages / num_pages < 60
    draw = random.Random(0)
    picks = [min(int(draw.paretovariate(0.5)), NUM_ADAPTERS) - 1 for _ in range(400)]
    solo = {index: llm.generate("a prompt", GREEDY, f"adapter{index}", use_tqdm=False)[0] for index in range(6)}
    outputs = llm.generate(["a prompt"] * len(picks), GREEDY, [f"adapter{index}" for index in picks], use_tqdm=False)
    for index, output in zip(picks, outputs, strict=True):
        expected = solo[index % len(RANKS)].outputs[0].token_ids
        assert output.outputs[0].token_ids == expected, index
    counts = llm._core.scheduler.counts
    assert counts.num_evicted_adapters > 40
    assert counts.num_adapter_uses - counts.num_adapter_hits <= len(set(picks)) * 1.5
    llm.check_idle()


def image_of(llm: LLM, folder: Path) -> tuple[ImageTable, torch.Tensor]:
    image = pack(read_checkpoint(folder, lora_targets(llm._engine.model_config)), "float32", llm._engine.page_bytes)
    return image.table, torch.from_numpy(image.pages)
