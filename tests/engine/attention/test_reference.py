"""ReferenceAttention against torch's scaled_dot_product_attention, over scattered pages full of NaN."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blora.engine.attention import reference
from blora.engine.attention.base import AttentionMetadata, PagedRows
from blora.engine.attention.reference import ReferenceAttention
from blora.engine.memory.arena import Arena, KVLayout
from blora.engine.memory.page_size import page_bytes_for

HEAD_DIM = 8
NUM_LAYERS = 2
NUM_PAGES = 40


def make_attention(
    num_heads: int, num_kv_heads: int, block_size: int, dtype: torch.dtype = torch.float32
) -> tuple[Arena, ReferenceAttention]:
    layout = KVLayout(NUM_LAYERS, num_kv_heads, HEAD_DIM, block_size, dtype)
    arena = Arena(layout, NUM_PAGES, page_bytes_for(layout.block_bytes, 0) + 64)  # a gap follows each page
    for layer in range(NUM_LAYERS):
        arena.kv_layer(layer).fill_(torch.nan)
    return arena, ReferenceAttention(arena, num_heads, HEAD_DIM**-0.5)


def scattered_tables(num_rows: int) -> list[list[int]]:
    pages = torch.randperm(NUM_PAGES, generator=torch.Generator().manual_seed(3)).tolist()
    return [pages[row::num_rows] for row in range(num_rows)]


def expected(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """The result of torch.

    q: [query_len, num_heads, head_dim], of the last tokens of the sequence.
    k, v: [seq_len, num_kv_heads, head_dim].
    """
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
    if window is not None:
        seen &= ~torch.ones_like(seen).tril(len(k) - len(q) - window)
    q, k, v = (x.float().transpose(0, 1)[None] for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    return y[0].transpose(0, 1).flatten(1)


def check_steps(
    attention: ReferenceAttention, heads: tuple[int, int], steps: Sequence[Sequence[int]], window: int | None
) -> None:
    """steps: [num_steps][num_rows] the new tokens of each row; a row with 0 is not in the step."""
    torch.manual_seed(0)
    num_rows = len(steps[0])
    totals = [sum(step[row] for step in steps) for row in range(num_rows)]
    tables = scattered_tables(num_rows)
    full = [[torch.randn(total, n, HEAD_DIM) for n in (heads[0], heads[1], heads[1])] for total in totals]
    done = [0] * num_rows
    for step in steps:
        active = [row for row in range(num_rows) if step[row]]
        new = {row: slice(done[row], done[row] + step[row]) for row in active}
        done = [count + num_new for count, num_new in zip(done, step, strict=True)]
        rows = PagedRows([step[row] for row in active], [done[row] for row in active], [tables[row] for row in active])
        q, k, v = (torch.cat([full[row][i][new[row]] for row in active]) for i in range(3))
        y = attention.run(1, q, k, v, attention.plan(rows), window)
        for row, part in zip(active, y.split([step[row] for row in active]), strict=True):
            want = expected(full[row][0][new[row]], full[row][1][: done[row]], full[row][2][: done[row]], window)
            torch.testing.assert_close(part, want, rtol=1e-5, atol=1e-5)


STEPS = [(9, 1, 4), (0, 1, 5), (1, 1, 1), (6, 0, 1), (1, 1, 1)]


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
def test_equals_sdpa(heads: tuple[int, int], block_size: int, window: int | None) -> None:
    _, attention = make_attention(*heads, block_size)
    steps = STEPS if block_size > 1 else [(4, 1, 2), (1, 1, 1), (0, 2, 3)]  # as many tokens as 40 pages hold
    check_steps(attention, heads, steps, window)


@pytest.mark.parametrize("window", [None, 5])
def test_long_prompts_are_attended_in_parts(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MAX_QUERIES", 4)
    _, attention = make_attention(4, 2, 4)
    check_steps(attention, (4, 2), [(13, 2, 8), (9, 5, 1)], window)


def test_bfloat16_is_summed_in_float32() -> None:
    _, attention = make_attention(4, 2, 4, torch.bfloat16)
    torch.manual_seed(1)
    q, k, v = (torch.randn(20, heads, HEAD_DIM, dtype=torch.bfloat16) for heads in (4, 2, 2))
    y = attention.run(0, q, k, v, attention.plan(PagedRows([20], [20], scattered_tables(1))), None)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected(q, k, v, None).bfloat16(), rtol=2**-8, atol=1e-6)


def test_writes_only_the_new_tokens() -> None:
    arena, attention = make_attention(2, 1, 4)
    k, v = torch.full((3, 1, HEAD_DIM), 2.0), torch.full((3, 1, HEAD_DIM), 3.0)
    attention.run(1, torch.ones(3, 2, HEAD_DIM), k, v, attention.plan(PagedRows([3], [3], [[7]])), None)
    layer = arena.kv_layer(1)  # [num_pages, 2, num_kv_heads, block_size, head_dim]
    assert (layer[7, 0, 0, :3] == 2).all() and (layer[7, 1, 0, :3] == 3).all()
    layer[7, :, :, :3] = torch.nan
    assert layer.isnan().all() and arena.kv_layer(0).isnan().all()


def test_a_row_of_nan_leaves_the_others_alone() -> None:
    _, attention = make_attention(2, 1, 4)
    tables = scattered_tables(2)
    q, k, v = (torch.randn(6, heads, HEAD_DIM) for heads in (2, 1, 1))
    alone = attention.run(0, q[3:], k[3:], v[3:], attention.plan(PagedRows([3], [3], tables[1:])), None)
    q[:3] = k[:3] = v[:3] = torch.nan
    y = attention.run(0, q, k, v, attention.plan(PagedRows([3, 3], [3, 3], tables)), None)
    assert y[:3].isnan().all()
    assert torch.equal(y[3:], alone)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_that_is_not_finite_leaves_earlier_ones_alone(value: float, window: int | None) -> None:
    _, attention = make_attention(4, 2, 4)
    rows = PagedRows([10], [10], scattered_tables(1))
    q, k, v = (torch.randn(10, heads, HEAD_DIM) for heads in (4, 2, 2))
    before = attention.run(0, q, k, v, attention.plan(rows), window)
    v[6] = value
    y = attention.run(0, q, k, v, attention.plan(rows), window)
    torch.testing.assert_close(y[:6], before[:6])
    assert not y[6:9].isfinite().any()  # no window here reaches further
    if window is not None:
        torch.testing.assert_close(y[9:], before[9:])


def test_refuses_metadata_of_another_backend() -> None:
    _, attention = make_attention(2, 1, 4)
    x = torch.ones(1, 1, HEAD_DIM)
    with pytest.raises(TypeError, match="AttentionMetadata"):
        attention.run(0, x, x, x, AttentionMetadata(), None)
