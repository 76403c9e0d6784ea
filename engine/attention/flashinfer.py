"""FlashInferAttention: paged attention on a GPU by FlashInfer's wrappers, over the arena where it lies.

Inside a layer's slab K and V stand as [2, num_kv_heads, block_size, head_dim], which FlashInfer calls HND; its "page"
is our block. The library is told the strides, so that a layer is a view of all pages and nothing is copied.

Rows that compute one token (decode) and rows that compute more (prefill) are two calls. FlashInfer takes one tile of
queries for a whole call, from the average length: beside a long prompt every decode row would be computed as 64 or 128
rows of padding, and differently than without the prompt. On their own decode rows always get the smallest tile, the
same kernel that is captured in a CUDA graph. Where a step has both, their queries are gathered, which costs two passes
over q and y; else the batch is taken as it stands.

Decode rows that begin with the same long prefix read it once, in layers without a window: one call computes the queries
of a group of them against their prefix, the decode call what is left of every row, and the two results are merged by
their sums of exponentials. It is done where it saves WORTHWHILE_BYTES; a step that does is not replayed from a graph.
FlashInfer's own cascade would apply a window to each level by itself.

Everything is planned once per step from integers of the host, once for each width of window that the layers have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blora.adapters.lora import Send

from ..memory.arena import Arena, KVLayout
from ..model_files.config import ModelConfig
from .base import Array, AttentionBackend, AttentionMetadata, Bounds, PagedRows
from .shared_prefix import SharedPrefix, find_shared_prefixes

WORKSPACE_BYTES = 128 << 20  # what FlashInfer recommends for partial results of long sequences, shared by all wrappers
# KV that shared prefixes must save a layer on average: 60 microseconds of reading on an A100, 40 on an H100. Two more
# calls and a merge take a fourth of it, kernels of a layer launched one by one instead of replayed the rest.
WORTHWHILE_BYTES = 128 << 20
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
HEAD_DIMS = (64, 128, 256, 512)
LAYOUT = "HND"
KERNEL = "fa2"  # the one generation that serves every GPU, type and stride we have; "auto" may choose another by shape

Window = int | None
Wrapper = Any  # a planned wrapper of FlashInfer's


@dataclass(frozen=True, slots=True)
class PageTable:
    """Where the sequences of some rows are, as FlashInfer reads it: int32, of the host or of the device."""

    indptr: Any  # [num_rows + 1] first entry of each row in indices
    indices: Any  # [indptr[-1]] pages
    last_page_len: Any  # [num_rows] tokens in a row's last page: 1 to block_size


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Where the K and V of the step's tokens go."""

    rows: Tensor  # [num_tokens] int32: of the table
    positions: Tensor  # [num_tokens] int32
    table: PageTable


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What the first rows of a part share: read by itself, and left out of what the part's own call reads."""

    num_rows: int
    wrapper: Wrapper


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that one call computes."""

    wrappers: Mapping[Window, Wrapper]
    tokens: Tensor | None  # [num_queries] int64: their places in the batch; None is all of it
    prefixes: Prefixes | None = None  # in layers without a window


@dataclass(frozen=True, slots=True)
class FlashInferMetadata(AttentionMetadata):
    plan: int  # the wrappers hold what was planned last, and nothing else
    new: NewTokens
    parts: Sequence[Part]


@dataclass(slots=True)
class FixedDecode(AttentionMetadata):
    """Buffers for steps of `num_rows` decode rows, as a CUDA graph is captured with."""

    num_rows: int
    new: NewTokens
    wrappers: Mapping[Window, Wrapper]

    @property
    def parts(self) -> Sequence[Part]:
        return (Part(self.wrappers, None),)


class FlashInferAttention(AttentionBackend):
    def __init__(
        self,
        flashinfer: Any,
        arena: Arena,
        config: ModelConfig,
        dtype: torch.dtype,
        send: Send,
        soft_cap: float | None = None,
    ) -> None:
        """flashinfer: the module. dtype: of q and what is returned; KV is the arena's, of 8 bits or the same.
        soft_cap: scores become soft_cap * tanh(score / soft_cap)."""
        check_shape(config, dtype)
        layout, device = arena.layout, arena.pages.device
        if (layout.num_layers, layout.num_kv_heads, layout.head_dim) != (
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
        ):
            raise ValueError("the arena is laid out for other layers or heads than the model's")
        if layout.dtype not in (dtype, *FP8):
            raise ValueError(f"KV of {layout.dtype} for queries of {dtype}")
        self._flashinfer = flashinfer
        self._config = config
        self._dtype = dtype
        self._layout = layout
        self._send = send
        self._soft_cap = soft_cap
        self._device = device
        self._bounds = Bounds(arena.num_pages, layout.block_size, config.max_position_embeddings)
        # [num_layers] of K and V, [num_pages, num_kv_heads, block_size, head_dim] each, of the same strides
        self._layers = [arena.kv_layer(layer).unbind(1) for layer in range(layout.num_layers)]
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._windows = sorted(set(config.sliding_windows), key=lambda window: window or 0)
        self._decode = {window: self._decode_wrapper() for window in self._windows}
        self._prefill = {
            window: flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace, LAYOUT, backend=KERNEL)
            for window in self._windows
        }
        self._prefixes = flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace, LAYOUT, backend=KERNEL)
        self._least_shared = _least_shared_pages(layout, config.sliding_windows)
        self._num_plans = 0

    def _decode_wrapper(self, **buffers: Tensor) -> Wrapper:
        # With tensor cores, whatever the number of query heads to a KV head: without, few numbers have a kernel.
        return self._flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            LAYOUT,
            use_cuda_graph=bool(buffers),
            use_tensor_cores=True,
            backend=KERNEL,
            **buffers,
        )

    def warm_up(self) -> None:
        """Compiles what the largest step, which is tried at the start, does not use: else the first rows that share a
        prefix would wait for it, a minute, and all others with them."""
        if self._least_shared is not None:
            num_heads, _, head_dim, _ = self._shape
            y = torch.zeros(2, 1, num_heads, head_dim, dtype=self._dtype, device=self._device)
            sums = torch.zeros(2, 1, num_heads, dtype=torch.float32, device=self._device)
            self._flashinfer.merge_state_in_place(y[0], sums[0], y[1], sums[1])

    def plan(self, rows: PagedRows) -> FlashInferMetadata:
        """Raises ValueError for rows that reach beyond their tables, the arena or the rope table."""
        self._check(rows)
        # Decode rows come first in the tables, whatever the order of the batch, of these the ones that share a prefix.
        order = sorted(range(len(rows.query_lens)), key=lambda row: rows.query_lens[row] > 1)
        num_decode = sum(length == 1 for length in rows.query_lens)
        table = self._table(rows, order)
        shared = self._find_shared(table, num_decode)
        if shared:
            order = _with_first(order, [row for prefix in shared for row in prefix.rows])
            table = self._table(rows, order)
        new_rows, positions = _new_tokens(rows, order)
        on_device = self._send(new_rows, positions, table.indptr, table.indices, table.last_page_len)
        new = NewTokens(on_device[0], on_device[1], PageTable(*on_device[2:]))
        decode_at, prefill_at = self._places(rows, order, num_decode)
        parts = []
        if num_decode:
            prefixes = self._plan_decode(self._decode, _rows_of(table, new.table, 0, num_decode), shared)
            parts.append(Part(self._decode, decode_at, prefixes))
        if num_decode < len(order):
            lengths = [rows.query_lens[row] for row in order[num_decode:]]
            self._plan_prefill(lengths, _rows_of(table, new.table, num_decode, len(order)))
            parts.append(Part(self._prefill, prefill_at))
        self._num_plans += 1
        return FlashInferMetadata(self._num_plans, new, parts)

    def _find_shared(self, table: PageTable, num_rows: int) -> list[SharedPrefix]:
        """Of the first rows, which compute one token each."""
        if self._least_shared is None or num_rows < 2:
            return []
        return find_shared_prefixes(table.indptr[: num_rows + 1], table.indices, self._least_shared)

    def _places(self, rows: PagedRows, order: Sequence[int], num_decode: int) -> Sequence[Tensor | None]:
        """Of decode and of prefill tokens in the batch; None where they are all of it, in order."""
        at = _tokens_of(rows, order)
        if 0 < num_decode < len(order):
            return self._send(at[:num_decode], at[num_decode:])
        is_in_order = (at == np.arange(len(at))).all()  # prefill alone always is
        return None if is_in_order else self._send(at)[0], None

    def _check(self, rows: PagedRows) -> None:
        query_lens, seq_lens = (np.array(part, dtype=np.int64) for part in (rows.query_lens, rows.seq_lens))
        tables = np.fromiter(chain.from_iterable(rows.block_tables), dtype=np.int64)
        table_lens = np.array([len(table) for table in rows.block_tables], dtype=np.int64)
        self._bounds.check(query_lens, seq_lens, tables, table_lens)

    def plan_fixed(self, num_rows: int, num_pages: int) -> FixedDecode:
        """What a CUDA graph is captured with: buffers for steps of exactly `num_rows` decode rows whose sequences lie
        in up to `num_pages` pages together. `refill` comes before the first use and decides what a replay computes."""
        indptr, indices, last_page_len, rows, positions = (
            torch.zeros(size, dtype=torch.int32, device=self._device)
            for size in (num_rows + 1, num_pages, num_rows, num_rows, num_rows)
        )
        rows.copy_(torch.arange(num_rows))
        buffers = {
            "paged_kv_indptr_buffer": indptr,
            "paged_kv_indices_buffer": indices,
            "paged_kv_last_page_len_buffer": last_page_len,
        }
        self._make_room(self._decode_wrapper(**buffers), num_rows)
        wrappers = {window: self._decode_wrapper(**buffers) for window in self._windows}
        return FixedDecode(num_rows, NewTokens(rows, positions, PageTable(indptr, indices, last_page_len)), wrappers)

    def _make_room(self, wrapper: Wrapper, num_rows: int) -> None:
        """In a graph there is a partial result of every row, however short it is. Wrappers made before keep theirs."""
        indptr, ones = torch.arange(num_rows + 1, dtype=torch.int32), torch.ones(num_rows, dtype=torch.int32)
        num_bytes, _ = wrapper.workspace_size(indptr, ones, ones, *self._shape, **self._options(None))
        if num_bytes > len(self._workspace):
            self._workspace = torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def refill(self, fixed: FixedDecode, rows: PagedRows) -> bool:
        """Writes a step into the buffers of `plan_fixed`, in the order of the stream. Rows that only fill up have a
        page that nobody reads. Returns False, and changes nothing, for a step that they do not hold: other than
        num_rows rows, more than one token of a row, more pages, or prefixes that are better read once for all."""
        self._check(rows)
        table = self._table(rows, range(len(rows.query_lens)))
        is_held = len(table.indices) <= len(fixed.new.table.indices)
        if not is_held or len(rows.query_lens) != fixed.num_rows or any(length != 1 for length in rows.query_lens):
            return False
        if self._find_shared(table, fixed.num_rows):
            return False
        _, positions = _new_tokens(rows, range(len(rows.query_lens)))
        on_device, indices = self._send(positions, table.indices)
        fixed.new.positions.copy_(on_device)
        # The wrappers write the tables into the buffers that they share with `new`.
        self._plan_decode(fixed.wrappers, _on_host(table, indices))
        return True

    def _table(self, rows: PagedRows, order: Sequence[int]) -> PageTable:
        """Of the host. Pages behind a row's sequence are left out."""
        block_size = self._layout.block_size
        seq_lens = np.array([rows.seq_lens[row] for row in order], dtype=np.int32)
        num_pages = -(-seq_lens // block_size)
        pages = (rows.block_tables[row][:count] for row, count in zip(order, num_pages.tolist(), strict=True))
        return PageTable(
            indptr=np.array([0, *accumulate(num_pages.tolist())], dtype=np.int32),
            indices=np.fromiter(chain.from_iterable(pages), dtype=np.int32),
            last_page_len=(seq_lens - 1) % block_size + np.int32(1),
        )

    def _plan_decode(
        self, wrappers: Mapping[Window, Wrapper], table: PageTable, shared: Sequence[SharedPrefix] = ()
    ) -> Prefixes | None:
        """shared: what the first rows of the table share, in its order."""
        rest = self._without(shared, table) if shared else table
        for window, wrapper in wrappers.items():
            left = rest if window is None else table
            wrapper.plan(left.indptr, left.indices, left.last_page_len, *self._shape, **self._options(window))
        return self._plan_prefixes(shared, table) if shared else None

    def _without(self, shared: Sequence[SharedPrefix], table: PageTable) -> PageTable:
        """What is left of each row."""
        counts = np.diff(table.indptr.numpy())
        skipped = np.zeros_like(counts)
        sizes, lengths = zip(*((len(prefix.rows), prefix.num_pages) for prefix in shared), strict=True)
        skipped[: sum(sizes)] = np.repeat(lengths, sizes)
        places = np.arange(counts.sum()) - np.repeat(table.indptr.numpy()[:-1], counts)
        (kept,) = self._send(np.flatnonzero(places >= np.repeat(skipped, counts)))
        indptr = np.array([0, *accumulate((counts - skipped).tolist())], dtype=np.int32)
        return PageTable(torch.from_numpy(indptr), table.indices[kept], table.last_page_len)

    def _plan_prefixes(self, shared: Sequence[SharedPrefix], table: PageTable) -> Prefixes:
        sizes, num_pages = [len(prefix.rows) for prefix in shared], [prefix.num_pages for prefix in shared]
        indptr = table.indptr.tolist()
        firsts = [indptr[row] for row in accumulate([0, *sizes[:-1]])]  # of each group, where its first row's pages are
        pages = [table.indices[first : first + count] for first, count in zip(firsts, num_pages, strict=True)]
        self._prefixes.plan(
            torch.tensor([0, *accumulate(sizes)], dtype=torch.int32),
            torch.tensor([0, *accumulate(num_pages)], dtype=torch.int32),
            torch.cat(pages),
            torch.full((len(shared),), self._layout.block_size, dtype=torch.int32),
            *self._shape,
            causal=False,  # all of it is before every query
            **self._options(None),
        )
        return Prefixes(sum(sizes), self._prefixes)

    def _plan_prefill(self, query_lens: Sequence[int], table: PageTable) -> None:
        for window, wrapper in self._prefill.items():
            wrapper.plan(
                torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32),
                table.indptr,
                table.indices,
                table.last_page_len,
                *self._shape,
                causal=True,  # bottom-right: the last query sees the whole sequence
                **self._options(window),
            )

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        config = self._config
        return config.num_heads, config.num_kv_heads, config.head_dim, self._layout.block_size

    def _options(self, window: Window) -> dict[str, Any]:
        return {
            "window_left": -1 if window is None else window - 1,  # tokens before a token, itself not counted
            "logits_soft_cap": self._soft_cap,
            "q_data_type": self._dtype,
            "kv_data_type": self._layout.dtype,
            "o_data_type": self._dtype,
            "sm_scale": self._config.head_dim**-0.5,
        }

    def run(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, window: int | None
    ) -> Tensor:
        if not isinstance(metadata, FlashInferMetadata | FixedDecode):
            raise TypeError(f"metadata of another backend: {type(metadata).__name__}")
        if isinstance(metadata, FlashInferMetadata) and metadata.plan != self._num_plans:
            raise RuntimeError("another step was planned meanwhile")
        kv, new = self._layers[layer], metadata.new
        self._flashinfer.append_paged_kv_cache(
            self._stored(k),
            self._stored(v),
            new.rows,
            new.positions,
            kv,
            new.table.indices,
            new.table.indptr,
            new.table.last_page_len,
            kv_layout=LAYOUT,
        )
        y = q.new_empty(q.shape)
        for part in metadata.parts:
            if part.tokens is None:
                self._attend(part, window, q, kv, out=y)
            else:
                y[part.tokens] = self._attend(part, window, q[part.tokens], kv)
        return y.flatten(1)

    def _attend(self, part: Part, window: Window, q: Tensor, kv: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        wrapper, prefixes = part.wrappers[window], part.prefixes
        if prefixes is None or window is not None:
            y: Tensor = wrapper.run(q, kv, out=out)
            return y
        y, sums = wrapper.run(q, kv, out=out, return_lse=True)
        shared = slice(prefixes.num_rows)
        y_shared, sums_shared = prefixes.wrapper.run(q[shared], kv, return_lse=True)
        self._flashinfer.merge_state_in_place(y[shared], sums[shared], y_shared, sums_shared)
        return y

    def _stored(self, x: Tensor) -> Tensor:
        """As the arena has it. What is too large for 8 bits is the largest, where a cast would make it NaN or inf."""
        dtype = self._layout.dtype
        if x.dtype == dtype:
            return x
        limit = torch.finfo(dtype).max
        return x.clamp(-limit, limit).to(dtype)


def check_shape(config: ModelConfig, dtype: torch.dtype) -> None:
    """Raises ValueError for what FlashInfer has no kernel for."""
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"it computes in bfloat16 and float16, not in {str(dtype).removeprefix('torch.')}")
    if config.head_dim not in HEAD_DIMS:
        raise ValueError(f"heads of {config.head_dim}; it has kernels for {', '.join(map(str, HEAD_DIMS))}")
    if config.num_heads % config.num_kv_heads:
        raise ValueError(f"{config.num_heads} query heads do not share {config.num_kv_heads} KV heads evenly")


def _new_tokens(rows: PagedRows, order: Sequence[int]) -> tuple[Array, Array]:
    """Row in the table and position of each token of the batch."""
    place = {row: place for place, row in enumerate(order)}
    lengths = np.array(rows.query_lens, dtype=np.int32)
    table_rows = np.array([place[row] for row in range(len(lengths))], dtype=np.int32)
    spans = (np.arange(end - length, end) for end, length in zip(rows.seq_lens, rows.query_lens, strict=True))
    return np.repeat(table_rows, lengths), np.concatenate([*spans]).astype(np.int32)


def _tokens_of(rows: PagedRows, order: Sequence[int]) -> Array:
    """The places in the batch of the tokens of the rows in this order: [num_tokens] int64."""
    starts = [0, *accumulate(rows.query_lens)]
    return np.concatenate([np.arange(starts[row], starts[row] + rows.query_lens[row]) for row in order])


def _with_first(order: Sequence[int], places: Sequence[int]) -> list[int]:
    """What is at these places of the order comes first."""
    are_first = set(places)
    return [order[place] for place in places] + [row for place, row in enumerate(order) if place not in are_first]


def _least_shared_pages(layout: KVLayout, windows: Sequence[Window]) -> int | None:
    """How many blocks shared prefixes must save; None where no layer could. Only layers without a window read all of
    a sequence, and they save for all."""
    num_whole = sum(window is None for window in windows)
    return -(-WORTHWHILE_BYTES * len(windows) // (num_whole * layout.layer_bytes)) if num_whole else None


def _rows_of(table: PageTable, on_device: PageTable, first: int, last: int) -> PageTable:
    """Some rows of a table: the pages on the device, the rest on the host, from where FlashInfer plans."""
    start, end = int(table.indptr[first]), int(table.indptr[last])
    part = PageTable(table.indptr[first : last + 1] - start, table.indices, table.last_page_len[first:last])
    return _on_host(part, on_device.indices[start:end])


def _on_host(table: PageTable, indices: Tensor) -> PageTable:
    return PageTable(torch.from_numpy(table.indptr), indices, torch.from_numpy(table.last_page_len))
