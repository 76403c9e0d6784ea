"""Adapters on embeddings and logits against their definition in float64. Wrong arguments raise, without a signal."""

from typing import Any

import pytest
import torch
from kernel_cases.lora_world import segments_of
from kernel_cases.token_rows_world import EMBEDDING, NUM_SITES, TokenRowsAdapter, TokenRowsWorld
from torch import Tensor

from blora.adapters.lora import LoRAMetadata, Segment
from blora.engine.kernels.library import Kernels, PackedLinear

VOCAB, HIDDEN = 70, 24  # neither fills whole panels
ADAPTERS = {
    "lora": TokenRowsAdapter(rank=21),
    "some": TokenRowsAdapter(row_ids=(0, 3, 17, 69)),
    "all": TokenRowsAdapter(row_ids=(), num_rows=VOCAB),
    "wide": TokenRowsAdapter(row_ids=(), num_rows=VOCAB + 9),
    "narrow": TokenRowsAdapter(row_ids=(), num_rows=VOCAB - 30),
    "behind": TokenRowsAdapter(rank=5, row_ids=(VOCAB, VOCAB + 1, VOCAB + 2), has_gain=True),
}
RUNS = [(2, ()), *((3, ((name, 1.0),)) for name in ADAPTERS), (1, ()), (2, (("lora", 0.5), ("lora", -1.0)))]
SEGMENTS = segments_of(RUNS)
NUM_TOKENS = sum(number for number, _ in RUNS)


def make_world(kernels: Kernels, dtype: torch.dtype = torch.float32) -> TokenRowsWorld:
    return TokenRowsWorld(kernels, dtype, VOCAB, HIDDEN, ADAPTERS)


def make_ids(world: TokenRowsWorld) -> Tensor:
    """For each run: a token with a row, the last such token, and a token that may have none."""
    ids: list[int] = []
    for number, uses in RUNS:
        own = world.adapters[uses[0][0]].ids if uses else ()
        ids += [*(own[:1] or (5,)), *(own[-1:] or (VOCAB - 1,)), 4][:number]
    return torch.tensor(ids)


def test_embeddings(kernels: Kernels, dtype: torch.dtype, num_threads: int) -> None:
    assert kernels.num_threads == num_threads
    world = make_world(kernels, dtype)
    ids, base = make_ids(world), world.rows(NUM_TOKENS)
    y = world.embed(ids, base, SEGMENTS)
    world.check_embed(ids, base, SEGMENTS, y)
    assert torch.equal(y[:2], base[:2]), "base rows"


def test_logits(kernels: Kernels, dtype: torch.dtype, num_threads: int) -> None:
    assert kernels.num_threads == num_threads
    world = make_world(kernels, dtype)
    x = world.rows(NUM_TOKENS)
    y = world.logits(x, SEGMENTS)
    assert y.shape == (NUM_TOKENS, VOCAB + 9)
    world.check_logits(x, SEGMENTS, y)
    assert torch.equal(y[:2, :VOCAB], world.logits(x[:2], []))


def test_a_token_without_a_row_is_left_as_it_is(kernels: Kernels, dtype: torch.dtype) -> None:
    """Another adapter of the step has a row for it."""
    world = make_world(kernels, dtype)
    ids, base = torch.tensor([VOCAB + 8] * NUM_TOKENS), world.rows(NUM_TOKENS)
    y = world.embed(ids, base, SEGMENTS)
    wide = next(segment for segment in SEGMENTS if segment.adapters[0][0] == "wide")
    is_changed = (y != base).any(dim=1).nonzero().flatten().tolist()
    assert is_changed == list(range(wide.start, wide.end))


@pytest.mark.parametrize("ids", [[VOCAB], [-1], [2**62], [-(2**62)]])
def test_tokens_that_are_not_there(kernels: Kernels, ids: list[int]) -> None:
    world = make_world(kernels)
    with pytest.raises(ValueError, match="^ids: "):
        world.embed(torch.tensor(ids), world.rows(1), [Segment(0, 1, (("lora", 1.0),))])


def spoilt(tensor: Tensor) -> list[Tensor]:
    return [
        tensor[:-1],
        torch.cat((tensor, tensor)),
        tensor[0],
        tensor.double(),
        torch.empty(*tensor.shape[::-1], dtype=tensor.dtype).T if tensor.dim() > 1 else tensor.int(),
        tensor.to("meta"),
    ]


def narrow(tensor: Tensor) -> Tensor:
    return tensor[:, :-1].contiguous()


def test_embeddings_that_do_not_fit(kernels: Kernels) -> None:
    world = make_world(kernels)
    good: dict[str, Any] = {"ids": make_ids(world), "y": world.rows(NUM_TOKENS), "lora": world.plan(SEGMENTS)}
    bads = [("ids", bad) for bad in spoilt(good["ids"])]
    bads += [("y", bad) for bad in (*spoilt(good["y"]), narrow(good["y"]), torch.zeros(NUM_TOKENS, 2 * HIDDEN))]
    bads += [("lora", bad) for bad in (LoRAMetadata(), world.plan([Segment(0, NUM_TOKENS + 1, (("lora", 1.0),))]))]
    bads += [("lora", make_world(kernels, torch.bfloat16).plan(SEGMENTS))]
    for name, bad in bads:
        with pytest.raises((ValueError, TypeError, IndexError, AttributeError, RuntimeError)):
            kernels.embed(EMBEDDING, **{**good, name: bad})
    with pytest.raises(ValueError, match="^lora: "):
        kernels.embed(NUM_SITES, **good)


def test_logits_that_do_not_fit(kernels: Kernels) -> None:
    world = make_world(kernels)
    y = torch.zeros(NUM_TOKENS, VOCAB + 9)
    good: dict[str, Any] = {"x": world.rows(NUM_TOKENS), "y": y, "lora": world.plan(SEGMENTS)}
    bads = [("x", bad) for bad in (*spoilt(good["x"]), narrow(good["x"]))]
    bads += [("y", bad) for bad in (*spoilt(y), narrow(y))]
    bads += [("lora", world.plan([Segment(0, NUM_TOKENS + 1, (("all", 1.0),))]))]
    for name, bad in bads:
        with pytest.raises((ValueError, TypeError, IndexError, RuntimeError)):
            kernels.replace_logits(world.head, **{**good, name: bad})
    other: PackedLinear = kernels.pack_linear(torch.zeros(80, HIDDEN + 2)[:VOCAB], None, 0)
    with pytest.raises(ValueError, match="^lora: "):
        kernels.replace_logits(other, torch.zeros(NUM_TOKENS, HIDDEN + 2), y, good["lora"])


@pytest.mark.parametrize("sizes", [[3], [3, 0], [3, 9], [3, -1], [3, 2**40], [3, 3, 3]])
def test_rows_of_logits_that_are_not_there(kernels: Kernels, sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="^logits: "):
        kernels.scan(torch.zeros(2, 8), sizes)


def test_rows_of_different_lengths_are_scanned_to_their_ends(kernels: Kernels) -> None:
    logits = torch.arange(40.0).repeat(3, 1)
    logits[1, 20:] = torch.nan
    ids, is_finite = kernels.scan(logits, [40, 20, 17])
    assert (ids.tolist(), is_finite.tolist()) == ([39, 19, 16], [True] * 3)
