"""FlashInferAttention: paged attention on a GPU by FlashInfer's wrappers, in place in the arena.

Inside a layer's slab, K and V are stored as [2, num_kv_heads, block_size, head_dim], which FlashInfer calls HND; its
"page" is our block. FlashInfer is given the strides, so that a layer is a view of all pages and nothing is copied.

Rows that compute one token (decode) and rows that compute more (prefill) are two calls. FlashInfer pads all queries of
a call to one number, chosen by the average length: beside a long prompt, every decode row would be computed as 64 or
128 rows of padding, and differently than without the prompt. In a call of their own, decode rows always get the least
padding, with the same kernel that is captured in a CUDA graph. In a step with both, the queries of each call are
gathered, which costs two passes over q and y; any other batch is taken as it is.

Decode rows that begin with the same long prefix read it once, in layers without a window. One call computes the queries
of a group against their prefix, the decode call computes the rest of every row, and the two results are merged by their
sums of exponentials. This is done where it saves WORTHWHILE_BYTES; such a step is not replayed from a graph.
FlashInfer's own cascade is not used: it would apply a window to each level separately.

Everything is planned once per step from integers on the host, once for each window width of the layers.
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

WORKSPACE_BYTES = 128 << 20  # FlashInfer's recommendation for partial results of long sequences; all wrappers share it
# The KV reads that shared prefixes must save per layer on average: 60 microseconds on an A100, 40 on an H100. Two more
# calls and a merge cost a quarter of that; launching the kernels of a layer one by one instead of replaying them costs
# the rest.
WORTHWHILE_BYTES = 128 << 20
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
HEAD_DIMS = (64, 128, 256, 512)
LAYOUT = "HND"
KERNEL = "fa2"  # the only generation for all our GPUs, dtypes and strides; "auto" may choose another by shape

Window = int | None
Wrapper = Any  # a planned wrapper of FlashInfer's


@dataclass(frozen=True, slots=True)
class PageTable:
    """The places of some rows' sequences, as FlashInfer reads them: int32, on the host or on the device."""

    indptr: Any  # [num_rows + 1] first entry of each row in indices
    indices: Any  # [indptr[-1]] pages
    last_page_len: Any  # [num_rows] tokens in a row's last page: 1 to block_size


@dataclass(frozen=True, slots=True)
class NewTokens:
    """The places that K and V of the step's tokens are written to."""

    rows: Tensor  # [num_tokens] int32: rows of the table
    positions: Tensor  # [num_tokens] int32
    table: PageTable


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The shared prefixes of a part's first rows. A call of its own reads them; the part's call leaves them out."""

    num_rows: int
    wrapper: Wrapper


@dataclass(frozen=True, slots=True)
class Part:
    """The rows that one call computes."""

    wrappers: Mapping[Window, Wrapper]
    tokens: Tensor | None  # [num_queries] int64: their places in the batch; None: the whole batch
    prefixes: Prefixes | None = None  # in layers without a window


@dataclass(frozen=True, slots=True)
class FlashInferMetadata(AttentionMetadata):
    plan: int  # its number: the wrappers hold only the last plan
    new: NewTokens
    parts: Sequence[Part]


@dataclass(slots=True)
class FixedDecode(AttentionMetadata):
    """The buffers that a CUDA graph is captured with, for steps of `num_rows` decode rows."""

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
        """Raises ValueError for a model or an arena that FlashInfer has no kernel for.

        flashinfer: the module.
        arena: its KV is of `dtype` or of 8 bits.
        dtype: of q and of the result.
        send: copies arrays of the host to the device.
        soft_cap: scores become soft_cap * tanh(score / soft_cap); None: they stay.
        """
        check_shape(config, dtype)
        layout, device = arena.layout, arena.pages.device
        if (layout.num_layers, layout.num_kv_heads, layout.head_dim) != (
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
        ):
            raise ValueError("the arena is laid out for other layers or heads than the model's")
        if layout.dtype not in (dtype, *FP8):
            raise ValueError(f"KV of {layout.dtype} does not go with queries of {dtype}")
        self._flashinfer = flashinfer
        self._config = config
        self._dtype = dtype
        self._layout = layout
        self._send = send
        self._soft_cap = soft_cap
        self._device = device
        self._bounds = Bounds(arena.num_pages, layout.block_size, config.max_position_embeddings)
        # [num_layers] of K and V, each [num_pages, num_kv_heads, block_size, head_dim], of the same strides
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
        # Tensor cores have a kernel for any number of query heads per KV head; without them, few numbers have one.
        return self._flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            LAYOUT,
            use_cuda_graph=bool(buffers),
            use_tensor_cores=True,
            backend=KERNEL,
            **buffers,
        )

    def warm_up(self) -> None:
        """Compiles the kernels that the largest step, which is tried at the start, does not use. Otherwise the first
        rows that share a prefix, and all other rows, would wait a minute for the compiler."""
        if self._least_shared is not None:
            num_heads, _, head_dim, _ = self._shape
            y = torch.zeros(2, 1, num_heads, head_dim, dtype=self._dtype, device=self._device)
            sums = torch.zeros(2, 1, num_heads, dtype=torch.float32, device=self._device)
            self._flashinfer.merge_state_in_place(y[0], sums[0], y[1], sums[1])

    def plan(self, rows: PagedRows) -> FlashInferMetadata:
        """Raises ValueError for rows that reach beyond their block tables, the arena or the rope table."""
        self._check(rows)
        # In any order of the batch, the tables begin with the decode rows, and these with the rows that share a prefix.
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
        """The prefixes that the first rows share. These rows compute one token each."""
        if self._least_shared is None or num_rows < 2:
            return []
        return find_shared_prefixes(table.indptr[: num_rows + 1], table.indices, self._least_shared)

    def _places(self, rows: PagedRows, order: Sequence[int], num_decode: int) -> Sequence[Tensor | None]:
        """The places of the decode and of the prefill tokens; None where they are the whole batch in order."""
        at = _tokens_of(rows, order)
        if 0 < num_decode < len(order):
            return self._send(at[:num_decode], at[num_decode:])
        is_in_order = (at == np.arange(len(at))).all()  # always true for prefill alone
        return None if is_in_order else self._send(at)[0], None

    def _check(self, rows: PagedRows) -> None:
        query_lens, seq_lens = (np.array(part, dtype=np.int64) for part in (rows.query_lens, rows.seq_lens))
        tables = np.fromiter(chain.from_iterable(rows.block_tables), dtype=np.int64)
        table_lens = np.array([len(table) for table in rows.block_tables], dtype=np.int64)
        self._bounds.check(query_lens, seq_lens, tables, table_lens)

    def plan_fixed(self, num_rows: int, num_pages: int) -> FixedDecode:
        """Makes the buffers that a CUDA graph is captured with, for steps of exactly `num_rows` decode rows whose
        sequences lie in up to `num_pages` pages together. `refill` comes before the first use, and sets the step that a
        replay computes."""
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
        """Enlarges the workspace: in a graph, every row has a partial result, however short the row is. Wrappers made
        earlier keep theirs."""
        indptr, ones = torch.arange(num_rows + 1, dtype=torch.int32), torch.ones(num_rows, dtype=torch.int32)
        num_bytes, _ = wrapper.workspace_size(indptr, ones, ones, *self._shape, **self._options(None))
        if num_bytes > len(self._workspace):
            self._workspace = torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def refill(self, fixed: FixedDecode, rows: PagedRows) -> bool:
        """Writes a step into the buffers of `plan_fixed`, in the order of the stream. Rows of padding have a page that
        is never read.

        Returns False, and changes nothing, for a step that does not fit: another number of rows than num_rows, a row of
        several tokens, too many pages, or prefixes that are better read once for all rows.
        """
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
        # The wrappers share their buffers with `new`, and write the tables into them.
        self._plan_decode(fixed.wrappers, _on_host(table, indices))
        return True

    def _table(self, rows: PagedRows, order: Sequence[int]) -> PageTable:
        """The table of the rows in this order, on the host. Pages beyond a row's sequence are left out."""
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
        """shared: the prefixes of the first rows of the table, in its order."""
        rest = self._without(shared, table) if shared else table
        for window, wrapper in wrappers.items():
            left = rest if window is None else table
            wrapper.plan(left.indptr, left.indices, left.last_page_len, *self._shape, **self._options(window))
        return self._plan_prefixes(shared, table) if shared else None

    def _without(self, shared: Sequence[SharedPrefix], table: PageTable) -> PageTable:
        """The table without the pages of the shared prefixes."""
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
        firsts = [indptr[row] for row in accumulate([0, *sizes[:-1]])]  # where the pages of each group's first row are
        pages = [table.indices[first : first + count] for first, count in zip(firsts, num_pages, strict=True)]
        self._prefixes.plan(
            torch.tensor([0, *accumulate(sizes)], dtype=torch.int32),
            torch.tensor([0, *accumulate(num_pages)], dtype=torch.int32),
            torch.cat(pages),
            torch.full((len(shared),), self._layout.block_size, dtype=torch.int32),
            *self._shape,
            causal=False,  # the whole prefix is before every query
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
            "window_left": -1 if window is None else window - 1,  # tokens before a token, without the token itself
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
            raise RuntimeError("another step was planned since this one: the wrappers hold only the last plan")
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
        """x in the arena's dtype. A value beyond 8 bits becomes the largest one; a cast would make it NaN or inf."""
        dtype = self._layout.dtype
        if x.dtype == dtype:
            return x
        limit = torch.finfo(dtype).max
        return x.clamp(-limit, limit).to(dtype)


def check_shape(config: ModelConfig, dtype: torch.dtype) -> None:
    """Raises ValueError for a model or dtype that FlashInfer has no kernel for."""
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype: {str(dtype).removeprefix('torch.')} is neither bfloat16 nor float16")
    if config.head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim: {config.head_dim} is none of {', '.join(map(str, HEAD_DIMS))}")
    if config.num_heads % config.num_kv_heads:
        raise ValueError(f"{config.num_heads} query heads do not share {config.num_kv_heads} KV heads evenly")


def _new_tokens(rows: PagedRows, order: Sequence[int]) -> tuple[Array, Array]:
    """The row in the table and the position of each token of the batch."""
    place = {row: place for place, row in enumerate(order)}
    lengths = np.array(rows.query_lens, dtype=np.int32)
    table_rows = np.array([place[row] for row in range(len(lengths))], dtype=np.int32)
    spans = (np.arange(end - length, end) for end, length in zip(rows.seq_lens, rows.query_lens, strict=True))
    return np.repeat(table_rows, lengths), np.concatenate([*spans]).astype(np.int32)


def _tokens_of(rows: PagedRows, order: Sequence[int]) -> Array:
    """The places in the batch of the rows' tokens, the rows in this order: [num_tokens] int64."""
    starts = [0, *accumulate(rows.query_lens)]
    return np.concatenate([np.arange(starts[row], starts[row] + rows.query_lens[row]) for row in order])


def _with_first(order: Sequence[int], places: Sequence[int]) -> list[int]:
    """The order with the rows at these places first."""
    are_first = set(places)
    return [order[place] for place in places] + [row for place, row in enumerate(order) if place not in are_first]


def _least_shared_pages(layout: KVLayout, windows: Sequence[Window]) -> int | None:
    """The number of blocks that shared prefixes must save; None where no layer can save any. Only layers without a
    window read a whole sequence, and they have to save for all layers."""
    num_whole = sum(window is None for window in windows)
    return -(-WORTHWHILE_BYTES * len(windows) // (num_whole * layout.layer_bytes)) if num_whole else None


def _rows_of(table: PageTable, on_device: PageTable, first: int, last: int) -> PageTable:
    """Rows [first, last) of a table: the pages on the device, the rest on the host, where FlashInfer plans."""
    start, end = int(table.indptr[first]), int(table.indptr[last])
    part = PageTable(table.indptr[first : last + 1] - start, table.indices, table.last_page_len[first:last])
    return _on_host(part, on_device.indices[start:end])


def _on_host(table: PageTable, indices: Tensor) -> PageTable:
    return PageTable(torch.from_numpy(table.indptr), indices, torch.from_numpy(table.last_page_len))
