"""Shards of a model: together they compute what the whole model does, with adapters and without, whatever divides."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_kinds import KINDS, make_kinds
from shard_threads import on_shards
from torch import Tensor

from blora.adapters import AdapterImage, pack, read_checkpoint
from blora.adapters.device_pool import DevicePool
from blora.engine import EngineStartError
from blora.engine.ipc.messages import ShardRow
from blora.engine.memory.arena import Arena, KVLayout
from blora.engine.memory.page_size import page_bytes_of
from blora.engine.model.loader import load_tensors
from blora.engine.model.shard import Shard, module_cuts, shards_of
from blora.engine.model.shard_group import ALONE, ShardGroup
from blora.engine.model.targets import adapter_targets
from blora.engine.model_files.base_tensors import BaseTensorFiles
from blora.engine.model_files.config import ModelConfig
from blora.engine.model_files.open_checkpoint import open_checkpoint
from blora.engine.model_files.read_config import load_model_config
from blora.engine.startup.choose_backend import choose_backend
from blora.engine.step.inputs import build_batch

BLOCK_SIZE = 4
NUM_PAGES = 200
NEAR = 2e-4  # what float32 sums in another order may be off
Llama, Qwen2, Qwen3 = "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"

MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "even": (Llama, 2, {}),
    "replicated": (Llama, 4, {"attention_bias": True, "mlp_bias": True}),
    "one-kv-head": (Llama, 2, {"num_key_value_heads": 1}),
    "odd-kv-heads": (Llama, 2, {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}),
    "crossed-groups": (Llama, 3, {"num_attention_heads": 12, "num_key_value_heads": 2, "hidden_size": 48}),
    "rest": (
        Llama,
        3,
        {"num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 48, "intermediate_size": 80},
    ),
    "no-groups": (Llama, 4, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "qwen2": (Qwen2, 2, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3, 2, {"head_dim": 16}),
    "window": (Qwen2, 2, {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
}


def rows_of(prompts: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> list[ShardRow]:
    """A prefill of each prompt, in batch order."""
    rows, free = [], 0
    for prompt, name in sorted(zip(prompts, adapters, strict=True), key=lambda entry: entry[1] or ""):
        blocks = -(-len(prompt) // BLOCK_SIZE)
        uses = () if name is None else ((name, 1.0),)
        rows.append(
            ShardRow(
                new_token_ids=list(prompt),
                start=0,
                block_table=list(range(free, free + blocks)),
                adapters=uses,
                num_base_tokens=0 if uses else len(prompt),
                is_sampled=True,
                num_scored_tokens=0,
            )
        )
        free += blocks
    return rows


def compute(
    path: Path,
    shard: Shard,
    group: ShardGroup,
    rows: Sequence[ShardRow],
    images: Mapping[str, AdapterImage] | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Hidden states, logits and the number of collectives."""
    config, dtype = shard.config, torch.float32
    layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype)
    num_pages = NUM_PAGES + sum(image.table.num_pages for image in (images or {}).values())
    arena = Arena(layout, num_pages, page_bytes_of(config, "float32", BLOCK_SIZE))
    pool, pages, free = DevicePool(arena.pages, dtype), {}, NUM_PAGES
    for image in (images or {}).values():
        table = image.table
        own = torch.from_numpy(image.pages).view(table.num_shards, table.num_pages, -1)[shard.index]
        pool.add(table.of_shard(shard.index), own)
        pages[table.digest] = list(range(free, free + table.num_pages))[::-1]
        pool.copy(table.digest, 0, pages[table.digest])
        free += table.num_pages
    whole = load_model_config(path)
    tensors = load_tensors(whole, open_checkpoint(path), dtype, progress=False, shard=shard)
    backend = choose_backend("reference", config, dtype, BLOCK_SIZE).build(config, tensors, arena, pool, group)
    with torch.inference_mode():
        batch = build_batch(rows, pages, backend.attention, backend.lora)
        hidden = backend.model.forward(batch)
        logits = backend.model.compute_logits(hidden[batch.logits_at], batch.logits_lora)
    assert backend.model.vocab_size == whole.vocab_size
    return hidden, logits, group.num_collectives


def assert_shards_give_the_same(
    path: Path,
    config: ModelConfig,
    size: int,
    rows: Sequence[ShardRow],
    whole: Mapping[str, AdapterImage] | None = None,
    split: Mapping[str, AdapterImage] | None = None,
) -> None:
    expected_hidden, expected_logits, _ = compute(path, shards_of(config, 1)[0], ALONE, rows, whole)
    shards = shards_of(config, size)
    results = on_shards(size, lambda group: compute(path, shards[group.index], group, rows, split))
    for hidden, _, num_collectives in results:
        torch.testing.assert_close(hidden, expected_hidden, rtol=0, atol=NEAR)
        # One for the embedding, two for each layer, one for the logits; whether there are adapters or not.
        assert num_collectives == 2 + 2 * config.num_layers
    torch.testing.assert_close(results[0][1], expected_logits, rtol=0, atol=NEAR)
    assert all(logits.shape == (len(rows), 0) for _, logits, _ in results[1:])


@pytest.mark.parametrize("name", MODELS)
def test_shards_of_every_shape_compute_what_the_whole_model_does(tiny: Any, name: str) -> None:
    architecture, size, fields = MODELS[name]
    tiny.save(architecture, **fields)
    config = load_model_config(tiny.folder)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, config.vocab_size, length).tolist() for length in (1, 9, 5)]
    assert_shards_give_the_same(tiny.folder, config, size, rows_of(prompts, [None] * 3))


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        (2, {}),
        (3, {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48, "intermediate_size": 80}),
        (2, {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48, "tie_word_embeddings": True}),
    ],
)
def test_shards_of_every_kind_of_adapter(tmp_path: Path, size: int, fields: dict[str, Any]) -> None:
    model, kinds = make_kinds(tmp_path, **fields)
    config = load_model_config(model)
    shards, base = shards_of(config, size), BaseTensorFiles(model)
    whole, split = {}, {}
    for name, folder in kinds.items():
        checkpoint = read_checkpoint(folder, adapter_targets(config), base=base)
        whole[name] = pack(checkpoint, "float32", page_bytes_of(shards_of(config, 1)[0].config, "float32", BLOCK_SIZE))
        page_bytes = page_bytes_of(shards[0].config, "float32", BLOCK_SIZE)
        split[name] = pack(checkpoint, "float32", page_bytes, shards=module_cuts(config, size))
        assert split[name].table.digest == whole[name].table.digest
        assert len(split[name].pages) == size * split[name].table.num_pages
    digests = [None, *(image.table.digest for image in whole.values())]
    sizes = [config.vocab_size, *(KINDS[name].get("vocab_size", config.vocab_size) for name in whole)]
    rng = np.random.default_rng(1)
    prompts = [rng.integers(max(size - 40, 0), size, length).tolist() for length, size in enumerate(sizes, 3)]
    assert_shards_give_the_same(model, config, size, rows_of(prompts, digests), whole, split)


@pytest.mark.parametrize(
    ("size", "fields", "message"),
    [
        (3, {}, "4 attention heads cannot be divided by 3 shards"),
        (4, {"intermediate_size": 33}, "intermediate_size 33 is too small for 4 shards"),
        (4, {"vocab_size": 37}, "vocab_size 37 is too small for 4 shards"),
    ],
)
def test_what_cannot_be_split_is_refused_with_its_numbers(
    tiny: Any, size: int, fields: dict[str, Any], message: str
) -> None:
    tiny.save(Llama, **fields)
    with pytest.raises(EngineStartError, match=message):
        shards_of(load_model_config(tiny.folder), size)
