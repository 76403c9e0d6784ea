"""FakeFlashInfer: stands in for the module `flashinfer` on the CPU, with the same names, parameters and meaning, in
plain torch.

It is stricter than the library: it checks the conditions that the library's kernels take for granted, and without which
they would read or write outside memory. tests/engine/cuda/test_contract.py compares its parameters, their order and
their defaults with the library's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
KV_DTYPES = (*HALVES, torch.float8_e4m3fn, torch.float8_e5m2)
HEAD_DIMS = (64, 128, 256, 512)


class ContractError(AssertionError):
    """A call that the library would refuse, or for which it would compute nonsense."""


def require(is_met: object, what: str) -> None:
    if not is_met:
        raise ContractError(what)


@dataclass(frozen=True)
class Call:
    name: str  # its name in the module, such as "Wrapper.plan"
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Log:
    calls: list[Call] = field(default_factory=list)
    num_pages_read: int = 0  # pages that attention read

    def names(self) -> set[str]:
        return {call.name for call in self.calls}


Kernel = Callable[[], Any]


def run_now(kernel: Kernel) -> Any:
    return kernel()


class FakeFlashInfer:
    """The module. launch: runs the code of one kernel of a GPU. Where graphs are captured it is a recording device's
    `kernel`."""

    __version__ = "0.7.2.fake"

    def __init__(self, launch: Callable[[Kernel], Any] = run_now) -> None:
        self.log = Log()
        for function in (
            append_paged_kv_cache,
            merge_state_in_place,
            rmsnorm,
            fused_add_rmsnorm,
            apply_rope_with_cos_sin_cache_inplace,
            silu_and_mul,
        ):
            setattr(self, function.__name__, self._recorded(function, launch))
        self.sampling = SimpleNamespace(
            **{function.__name__: self._recorded(function, launch, "sampling.") for function in SAMPLING}
        )
        for wrapper in (BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper):
            made = type(wrapper.__name__, (wrapper,), {"log": self.log, "launch": staticmethod(launch)})
            setattr(self, wrapper.__name__, made)

    def _recorded(
        self, function: Callable[..., Any], launch: Callable[[Kernel], Any], module: str = ""
    ) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.log.calls.append(Call(module + function.__name__, args, kwargs))
            return launch(lambda: function(*args, **kwargs))

        return call


# Paged attention.


def check_integers(name: str, tensor: Tensor, length: int | None = None) -> None:
    require(isinstance(tensor, Tensor), f"{name}: no tensor")
    require(tensor.dtype == torch.int32, f"{name}: {tensor.dtype}")
    require(tensor.ndim == 1 and tensor.is_contiguous(), f"{name}: {list(tensor.shape)} {tensor.stride()}")
    require(length is None or len(tensor) == length, f"{name}: {len(tensor)} elements, not {length}")


def check_starts(name: str, starts: Tensor) -> None:
    require(len(starts) >= 2 and starts[0] == 0 and (starts.diff() >= 0).all(), f"{name}: {starts.tolist()}")


def graph_workspace_bytes(num_rows: int, num_heads: int, num_kv_heads: int, head_dim: int) -> int:
    """Returns the bytes of the partial results of a decode step in a graph on a GPU of 132 multiprocessors, each
    float32 with its sum (attention/scheduler.cuh of the library, PrefillPlanImpl)."""
    group, per_cta = num_heads // num_kv_heads, 16  # per_cta: queries of a thread block, for groups of up to as many
    num_ctas = max(2 * 132 // num_kv_heads, -(-num_rows * group // per_cta) + num_rows - 1)
    return num_heads * -(-num_ctas * per_cta // group) * (head_dim + 1) * 4


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


class _PagedWrapper:
    log: Log
    launch: Callable[[Kernel], Any]
    has_prefill: bool

    def _init(self, float_workspace_buffer: Tensor, kv_layout: str, use_cuda_graph: bool, backend: str) -> None:
        require(float_workspace_buffer.dtype == torch.uint8, "workspace: not bytes")
        require(float_workspace_buffer.numel() >= 128 << 20, "workspace: smaller than 128 MiB")
        require(not float_workspace_buffer[:: 1 << 12].any(), "workspace: not zero at its first use")
        require(kv_layout in ("NHD", "HND"), f"kv_layout: {kv_layout}")
        require(backend in ("auto", "fa2"), f"backend: {backend} is not on every GPU")
        self._layout, self._use_cuda_graph = kv_layout, use_cuda_graph
        self._float_workspace_buffer = float_workspace_buffer
        self._is_planned = False

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.log.calls.append(Call(f"{type(self).__name__}.{name}", args, kwargs))

    def _plan(
        self, qo_indptr: Tensor, tables: tuple[Tensor, Tensor, Tensor], heads: tuple[int, int, int, int], causal: bool,
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        indptr, indices, last_page_len = tables
        self._num_heads, self._num_kv_heads, self._head_dim, self._page_size = heads
        check_integers("last_page_len", last_page_len)
        check_integers("indptr", indptr, len(last_page_len) + 1)
        check_integers("qo_indptr", qo_indptr, len(last_page_len) + 1)
        for name, starts in (("indptr", indptr), ("qo_indptr", qo_indptr)):
            require(starts.device.type == "cpu", f"{name}: on the device, which the host would wait for")
            check_starts(name, starts)
        check_integers("indices", indices, int(indptr[-1]))
        require(((last_page_len >= 1) & (last_page_len <= self._page_size)).all(), f"last_page_len: {last_page_len}")
        require((indptr.diff() >= 1).all(), "a row without pages")
        require(self._num_heads % self._num_kv_heads == 0, "query heads that do not share KV heads evenly")
        require(self._head_dim in HEAD_DIMS, f"no kernel for heads of {self._head_dim}")
        require(options.get("pos_encoding_mode", "NONE") == "NONE", "positions are encoded before")
        self._q_dtype = dtype_of(options["q_data_type"])
        self._kv_dtype = dtype_of(options["kv_data_type"] or self._q_dtype)
        self._o_dtype = dtype_of(options["o_data_type"] or self._q_dtype)
        require(self._q_dtype in HALVES and self._o_dtype in HALVES, f"q: {self._q_dtype}, o: {self._o_dtype}")
        require(self._kv_dtype in KV_DTYPES, f"KV: {self._kv_dtype}")
        self._window_left, self._causal = options["window_left"], causal
        require(self._window_left >= -1, f"window_left: {self._window_left}")
        self._soft_cap = options["logits_soft_cap"] or 0.0
        self._scale = options["sm_scale"] if options["sm_scale"] is not None else 1 / math.sqrt(self._head_dim)
        self._num_queries = int(qo_indptr[-1])
        self._is_planned = True

    def _attend(
        self, q: Tensor, paged_kv_cache: Any, k_scale: float | None, v_scale: float | None, out: Tensor | None,
        window_left: int | None, return_lse: bool,
    ) -> Any:  # fmt: skip
        k, v = paged_kv_cache if isinstance(paged_kv_cache, tuple | list) else paged_kv_cache.unbind(1)
        self._check_run(q, k, v, window_left)
        require(out is None or (out.shape == q.shape and out.dtype == self._o_dtype), "out: of another shape or type")

        def kernel() -> Any:
            y, lse = self._compute(q, k, v, k_scale or 1.0, v_scale or 1.0)
            self.log.num_pages_read += int(self._buffers()[1][-1])
            result = y.to(self._o_dtype) if out is None else out.copy_(y)
            return (result, lse) if return_lse else result

        return type(self).launch(kernel)

    def _check_run(self, q: Tensor, k: Tensor, v: Tensor, window_left: int | None) -> None:
        require(self._is_planned, "run without a plan")
        require(q.dtype == self._q_dtype, f"q: {q.dtype}, planned for {self._q_dtype}")
        require(k.dtype == v.dtype == self._kv_dtype, f"KV: {k.dtype} {v.dtype}, planned for {self._kv_dtype}")
        require(q.shape == (self._num_queries, self._num_heads, self._head_dim), f"q: {list(q.shape)}")
        inner = (
            (self._num_kv_heads, self._page_size) if self._layout == "HND" else (self._page_size, self._num_kv_heads)
        )
        for name, cache in (("k", k), ("v", v)):
            require(cache.shape[1:] == (*inner, self._head_dim), f"{name}: {list(cache.shape)}")
            require(cache.stride(-1) == 1, f"{name}: strides {cache.stride()}")
            require(cache.data_ptr() % 16 == 0, f"{name}: not aligned to 16 bytes")
        require(k.stride() == v.stride(), f"strides of k {k.stride()} and v {v.stride()}")
        require(q.stride(-1) == 1, f"q: strides {q.stride()}")
        require(window_left in (None, self._window_left), f"window_left: {window_left}, planned {self._window_left}")

    def _compute(self, q: Tensor, k: Tensor, v: Tensor, k_scale: float, v_scale: float) -> tuple[Tensor, Tensor]:
        """Computes from the tables on the device as they are now, as a captured kernel would. y, lse: float32."""
        qo, indptr, indices, last = (buffer.tolist() for buffer in self._buffers())
        y = torch.empty(q.shape, dtype=torch.float32)
        lse = torch.empty(q.shape[:2], dtype=torch.float32)
        for row in range(len(last)):
            pages = torch.tensor(indices[indptr[row] : indptr[row + 1]])
            require(((pages >= 0) & (pages < len(k))).all(), f"pages {pages} outside the cache")
            length = (len(pages) - 1) * self._page_size + last[row]
            queries = slice(qo[row], qo[row + 1])
            y[queries], lse[queries] = self._attend_row(
                q[queries], self._tokens(k, pages, length) * k_scale, self._tokens(v, pages, length) * v_scale
            )
        return y, lse

    def _tokens(self, cache: Tensor, pages: Tensor, length: int) -> Tensor:
        """Returns [length, num_kv_heads, head_dim] float32, without tokens after the length."""
        blocks = cache[pages] if cache.dtype in HALVES else cache.view(torch.uint8)[pages].view(cache.dtype)
        blocks = blocks.float()
        blocks = blocks.transpose(1, 2) if self._layout == "HND" else blocks  # [pages, page_size, heads, head_dim]
        return blocks.flatten(0, 1)[:length]

    def _attend_row(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        num_queries, length = len(q), len(k)
        group = self._num_heads // self._num_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q.float(), k) * self._scale
        if self._soft_cap > 0:
            scores = self._soft_cap * torch.tanh(scores / self._soft_cap)
        at = torch.arange(num_queries)[:, None] + length - num_queries  # bottom-right
        keys = torch.arange(length)
        is_seen = keys <= at if self._causal else torch.ones(num_queries, length, dtype=torch.bool)
        if self._window_left >= 0:
            is_seen = is_seen & (keys >= at - self._window_left)
        scores = scores.masked_fill(~is_seen, -torch.inf)
        y = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        return y, scores.logsumexp(-1).T / math.log(2)


class BatchDecodeWithPagedKVCacheWrapper(_PagedWrapper):
    def __init__(
        self, float_workspace_buffer: Tensor, kv_layout: str = "NHD", use_cuda_graph: bool = False,
        use_tensor_cores: bool = False, paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None, paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
    ) -> None:  # fmt: skip
        self._init(float_workspace_buffer, kv_layout, use_cuda_graph, backend)
        self._note("__init__", (float_workspace_buffer, kv_layout), {"use_tensor_cores": use_tensor_cores})
        buffers = (paged_kv_indptr_buffer, paged_kv_indices_buffer, paged_kv_last_page_len_buffer)
        self._use_tensor_cores = use_tensor_cores
        if use_cuda_graph:
            for buffer in buffers:
                check_integers("buffer", buffer)
            require(len(buffers[0]) == len(buffers[2]) + 1, "buffers of different batches")
        self._fixed = buffers if use_cuda_graph else None

    def plan(
        self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, num_qo_heads: int, num_kv_heads: int,
        head_dim: int, page_size: int, *, pos_encoding_mode: str = "NONE", window_left: int = -1,
        logits_soft_cap: float | None = None, q_data_type: Any = "float16", kv_data_type: Any = None,
        o_data_type: Any = None, sm_scale: float | None = None,
    ) -> None:  # fmt: skip
        options = {
            "pos_encoding_mode": pos_encoding_mode, "window_left": window_left, "logits_soft_cap": logits_soft_cap,
            "q_data_type": q_data_type, "kv_data_type": kv_data_type, "o_data_type": o_data_type, "sm_scale": sm_scale,
        }  # fmt: skip
        heads = (num_qo_heads, num_kv_heads, head_dim, page_size)
        self._note("plan", (indptr, indices, last_page_len, *heads), options)
        tables = (indptr, indices, last_page_len)
        group = num_qo_heads // num_kv_heads
        require(self._use_tensor_cores or group in (1, 2, 3, 4, 6, 8, 16), f"no kernel for groups of {group}")
        self._qo = torch.arange(len(last_page_len) + 1, dtype=torch.int32)
        self._plan(self._qo, tables, heads, False, options)
        if self._fixed is None:
            self._now = tuple(table.clone() for table in tables)
            return
        needed = graph_workspace_bytes(len(last_page_len), num_qo_heads, num_kv_heads, head_dim)
        room = self._float_workspace_buffer.numel()
        require(room >= needed, f"workspace: {room} bytes, {needed} are needed")
        require(len(last_page_len) == len(self._fixed[2]), "another batch than the buffers'")
        require(len(indices) <= len(self._fixed[1]), "more pages than the buffer holds")
        for buffer, table in zip(self._fixed, tables, strict=True):
            buffer[: len(table)].copy_(table)

    def workspace_size(
        self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, num_qo_heads: int, num_kv_heads: int,
        head_dim: int, page_size: int, *, window_left: int = -1, logits_soft_cap: float | None = None,
        q_data_type: Any = "float16", kv_data_type: Any = None, o_data_type: Any = None,
        sm_scale: float | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        options = {
            "window_left": window_left, "logits_soft_cap": logits_soft_cap, "q_data_type": q_data_type,
            "kv_data_type": kv_data_type, "o_data_type": o_data_type, "sm_scale": sm_scale,
        }  # fmt: skip
        heads = (num_qo_heads, num_kv_heads, head_dim)
        self._note("workspace_size", (indptr, indices, last_page_len, *heads, page_size), options)
        require(self._fixed is not None, "workspace_size: of a graph")
        return graph_workspace_bytes(len(last_page_len), *heads), 1 << 20

    def _buffers(self) -> tuple[Tensor, ...]:
        return (self._qo, *(self._fixed or self._now))

    def run(
        self, q: Tensor, paged_kv_cache: Any, *, k_scale: float | None = None, v_scale: float | None = None,
        out: Tensor | None = None, return_lse: bool = False, window_left: int | None = None,
    ) -> Any:  # fmt: skip
        options = {"k_scale": k_scale, "v_scale": v_scale, "out": out, "return_lse": return_lse}
        self._note("run", (q, paged_kv_cache), options | {"window_left": window_left})
        return self._attend(q, paged_kv_cache, k_scale, v_scale, out, window_left, return_lse)


class BatchPrefillWithPagedKVCacheWrapper(_PagedWrapper):
    def __init__(
        self, float_workspace_buffer: Tensor, kv_layout: str = "NHD", use_cuda_graph: bool = False,
        *, backend: str = "auto",
    ) -> None:  # fmt: skip
        self._init(float_workspace_buffer, kv_layout, use_cuda_graph, backend)
        require(not use_cuda_graph, "no graph is captured of it")
        self._note("__init__", (float_workspace_buffer, kv_layout), {"backend": backend})

    def plan(
        self, qo_indptr: Tensor, paged_kv_indptr: Tensor, paged_kv_indices: Tensor, paged_kv_last_page_len: Tensor,
        num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, page_size: int, *, causal: bool = False,
        pos_encoding_mode: str = "NONE", sm_scale: float | None = None, window_left: int = -1,
        logits_soft_cap: float | None = None, q_data_type: Any = "float16", kv_data_type: Any = None,
        o_data_type: Any = None,
    ) -> None:  # fmt: skip
        options = {
            "pos_encoding_mode": pos_encoding_mode, "window_left": window_left, "logits_soft_cap": logits_soft_cap,
            "q_data_type": q_data_type, "kv_data_type": kv_data_type, "o_data_type": o_data_type, "sm_scale": sm_scale,
        }  # fmt: skip
        tables = (paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        heads = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self._note("plan", (qo_indptr, *tables, *heads), options | {"causal": causal})
        self._plan(qo_indptr, tables, heads, causal, options)
        lengths = (paged_kv_indptr.diff() - 1) * page_size + paged_kv_last_page_len
        require(not causal or (lengths >= qo_indptr.diff()).all(), "more queries than tokens of a row")
        self._now = tuple(table.clone() for table in (qo_indptr, *tables))

    def _buffers(self) -> tuple[Tensor, ...]:
        return self._now

    def run(
        self, q: Tensor, paged_kv_cache: Any, *, k_scale: float | None = None, v_scale: float | None = None,
        out: Tensor | None = None, return_lse: bool = False, window_left: int | None = None,
    ) -> Any:  # fmt: skip
        options = {"k_scale": k_scale, "v_scale": v_scale, "out": out, "return_lse": return_lse}
        self._note("run", (q, paged_kv_cache), options | {"window_left": window_left})
        return self._attend(q, paged_kv_cache, k_scale, v_scale, out, window_left, return_lse)


def append_paged_kv_cache(
    append_key: Tensor, append_value: Tensor, batch_indices: Tensor, positions: Tensor, paged_kv_cache: Any,
    kv_indices: Tensor, kv_indptr: Tensor, kv_last_page_len: Tensor, kv_layout: str = "NHD",
) -> None:  # fmt: skip
    k, v = paged_kv_cache if isinstance(paged_kv_cache, tuple | list) else paged_kv_cache.unbind(1)
    check_integers("kv_last_page_len", kv_last_page_len)
    check_integers("kv_indptr", kv_indptr, len(kv_last_page_len) + 1)
    check_integers("kv_indices", kv_indices)
    check_starts("kv_indptr", kv_indptr)
    require(kv_indptr[-1] <= len(kv_indices), "kv_indptr: beyond kv_indices")
    for name, integers in (("batch_indices", batch_indices), ("positions", positions)):
        check_integers(name, integers, len(append_key))
    require(k.stride() == v.stride(), "strides of k and v")
    page_size = k.shape[2] if kv_layout == "HND" else k.shape[1]
    require(((batch_indices >= 0) & (batch_indices < len(kv_last_page_len))).all(), f"batch_indices: {batch_indices}")
    rows = batch_indices.long()
    lengths = (kv_indptr.diff() - 1) * page_size + kv_last_page_len
    require(((positions >= 0) & (positions < lengths[rows])).all(), f"positions: {positions} of rows of {lengths}")
    pages = kv_indices[kv_indptr[rows] + positions // page_size].long()
    require(((pages >= 0) & (pages < len(k))).all(), "pages outside the cache")
    for new, cache in ((append_key, k), (append_value, v)):
        inner = cache.shape[1:].numel() // page_size
        require(new.shape[0] == len(rows) and new.shape[1:].numel() == inner, f"append: {list(new.shape)}")
        require(new.dtype == cache.dtype, f"append: {new.dtype}, its bytes taken for {cache.dtype}")
        require(new.stride(-1) == cache.stride(-1) == 1, "append: strides")
        cells = cache.transpose(1, 2) if kv_layout == "HND" else cache
        if cache.dtype in HALVES:
            cells[pages, positions.long() % page_size] = new
        else:
            cells.view(torch.uint8)[pages, positions.long() % page_size] = new.view(torch.uint8)


def merge_state_in_place(v: Tensor, s: Tensor, v_other: Tensor, s_other: Tensor, mask: Tensor | None = None) -> None:
    """Merges two partial results in place. s, s_other: base 2, as `run` returns them."""
    require(v.ndim == 3 and v.shape == v_other.shape and v.dtype == v_other.dtype, "v: of another shape or type")
    require(s.shape == v.shape[:2] == s_other.shape, "s: of another shape than v's")
    # For sums of another type the library would change a copy.
    require(s.dtype == s_other.dtype == torch.float32, f"s: {s.dtype} {s_other.dtype}")
    require(all(part.is_contiguous() for part in (v, s, v_other, s_other)), "merge: strides")
    require(mask is None, "mask: nobody gives one")
    total = torch.logaddexp2(s, s_other)
    merged = v.float() * torch.exp2(s - total)[..., None] + v_other.float() * torch.exp2(s_other - total)[..., None]
    v.copy_(merged)
    s.copy_(total)


# Operations between attention and sampling.


def check_halves(*tensors: Tensor) -> None:
    for tensor in tensors:
        require(
            tensor.dtype in HALVES and tensor.dtype == tensors[0].dtype, f"{tensor.dtype} beside {tensors[0].dtype}"
        )
        require(tensor.stride(-1) == 1, f"strides {tensor.stride()}")


def rmsnorm(input: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None) -> Tensor:
    check_halves(input, weight, *(() if out is None else (out,)))
    require(input.ndim in (2, 3) and weight.shape == input.shape[-1:], f"{list(input.shape)}, {list(weight.shape)}")
    require(out is None or out.shape == input.shape, "out: of another shape")
    y = _norm(input.float(), weight, eps).to(input.dtype)
    return y if out is None else out.copy_(y)


def fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> None:
    check_halves(input, residual, weight)
    require(input.ndim == 2 and residual.shape == input.shape and weight.shape == input.shape[1:], "shapes")
    require(input.data_ptr() != residual.data_ptr(), "both are written")
    total = input.float() + residual.float()
    residual.copy_(total)
    input.copy_(_norm(total, weight, eps))


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def apply_rope_with_cos_sin_cache_inplace(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox: bool = True
) -> None:
    check_halves(query, key)
    require(cos_sin_cache.dtype == torch.float32, "cos_sin_cache should be float32")
    require(cos_sin_cache.ndim == 2 and cos_sin_cache.is_contiguous() and cos_sin_cache.shape[1] <= head_size, "cache")
    require(positions.dtype in (torch.int32, torch.int64) and positions.is_contiguous(), "positions")
    require(positions.shape == (len(query),) == (len(key),), "positions: of another batch")
    require(((positions >= 0) & (positions < len(cos_sin_cache))).all(), f"positions: {positions} outside the cache")
    require(is_neox, "interleaved halves: no model of ours")
    cos, sin = cos_sin_cache[positions.long(), None].chunk(2, dim=-1)
    half = cos.shape[-1]
    for heads in (part.view(len(part), -1, head_size) for part in (query, key)):
        first, second = heads[..., :half].float(), heads[..., half : 2 * half].float()
        heads[..., :half] = first * cos - second * sin
        heads[..., half : 2 * half] = second * cos + first * sin


def silu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    check_halves(input)
    require(input.shape[-1] % 2 == 0 and input.is_contiguous(), f"{list(input.shape)} {input.stride()}")
    gate, up = input.float().chunk(2, dim=-1)
    y = (torch.nn.functional.silu(gate) * up).to(input.dtype)
    return y if out is None else out.copy_(y)


# Sampling.


def check_rows(values: Tensor, dtype: torch.dtype, probs: Tensor) -> None:
    require(values.dtype == dtype and values.shape == probs.shape[:1], f"{values.dtype} {list(values.shape)}")


def check_probs(probs: Tensor) -> None:
    require(probs.dtype == torch.float32 and probs.ndim == 2 and probs.is_contiguous(), f"probs: {probs.dtype}")
    require(((probs.sum(1) - 1).abs() < 1e-3).all(), "probs: a row that does not sum to 1")


def softmax(logits: Tensor, temperature: Tensor | float | None = None) -> Tensor:
    require(logits.dtype == torch.float32 and logits.ndim == 2, f"logits: {logits.dtype}")
    check_rows(temperature, torch.float32, logits)
    require((temperature > 0).all(), "temperature: nothing to divide by")
    return (logits / temperature[:, None]).softmax(1)


def top_k_renorm_probs(probs: Tensor, top_k: Tensor | int) -> Tensor:
    check_probs(probs)
    check_rows(top_k, torch.int32, probs)
    require(((top_k >= 1) & (top_k <= probs.shape[1])).all(), f"top_k: {top_k}")
    least = probs.sort(1, descending=True).values.gather(1, top_k[:, None].long() - 1)
    return _renormed(probs, probs >= least)


def top_p_renorm_probs(probs: Tensor, top_p: Tensor | float) -> Tensor:
    check_probs(probs)
    check_rows(top_p, torch.float32, probs)
    ordered, ids = probs.sort(1, descending=True)
    is_kept = torch.zeros_like(probs, dtype=torch.bool).scatter(1, ids, ordered.cumsum(1) - ordered < top_p[:, None])
    return _renormed(probs, is_kept)


def _renormed(probs: Tensor, is_kept: Tensor) -> Tensor:
    kept = probs * is_kept
    return kept / kept.sum(1, keepdim=True)


def sampling_from_probs(probs: Tensor, *, seed: Any = None, offset: Any = None) -> Tensor:
    """Draws as the library does: a row's place in the batch is part of its random bits."""
    check_probs(probs)
    check_rows(seed, torch.int64, probs)
    check_rows(offset, torch.int64, probs)
    tokens = [
        int(row.multinomial(1, generator=torch.Generator().manual_seed((int(key) + place * 7919) % (1 << 63))))
        for place, (row, key) in enumerate(zip(probs, seed, strict=True))
    ]
    return torch.tensor(tokens, dtype=torch.int32)


def top_p_sampling_from_probs(probs: Tensor, top_p: Tensor | float, *, seed: Any = None, offset: Any = None) -> Tensor:
    return sampling_from_probs(top_p_renorm_probs(probs, top_p), seed=seed, offset=offset)


def min_p_sampling_from_probs(probs: Tensor, min_p: Tensor | float, *, seed: Any = None, offset: Any = None) -> Tensor:
    check_probs(probs)
    check_rows(min_p, torch.float32, probs)
    is_kept = probs >= min_p[:, None] * probs.max(1, keepdim=True).values
    return sampling_from_probs(_renormed(probs, is_kept), seed=seed, offset=offset)


SAMPLING = (
    softmax,
    top_k_renorm_probs,
    top_p_renorm_probs,
    sampling_from_probs,
    top_p_sampling_from_probs,
    min_p_sampling_from_probs,
)
