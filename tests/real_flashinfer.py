"""The installed FlashInfer without a GPU: its Python, with torch in place of the kernels that it would compile.

All code between blora's call and the kernel is the library's: its checks, its copies, and the arguments of the kernel.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_flashinfer
import pytest
import torch
from torch import Tensor

CAUSAL, HND = 1, 1  # values of the library's enumerations


def load(folder: Path) -> ModuleType:
    """Imports the library. `folder` takes the files that it writes then: a folder for kernels and a log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASHINFER_WORKSPACE_BASE", str(folder))
        import flashinfer
    return flashinfer


class PlannedKernel:
    """The arguments that the library gives its compiled module for one plan and one run."""

    def __init__(self, dtypes: tuple[torch.dtype, ...], uses_window: bool, uses_soft_cap: bool) -> None:
        self._dtypes, self._uses_window, self._uses_soft_cap = dtypes, uses_window, uses_soft_cap
        self._seq_lens: list[int] = []

    def plan(
        self, workspace: Tensor, _ints: Tensor, _pinned: Tensor, qo_indptr: Tensor, indptr: Tensor, seq_lens: Tensor,
        num_queries: int, num_rows: int, num_heads: int, num_kv_heads: int, page_size: int, _is_graph: bool,
        head_dim: int, _head_dim_vo: int, is_causal: bool, window_left: int, *_options: int,
    ) -> list[int]:  # fmt: skip
        assert num_queries == int(qo_indptr[-1]) and num_rows == len(seq_lens) == len(indptr) - 1
        assert workspace.numel() >= 128 << 20 and self._uses_window == (window_left >= 0)
        self._seq_lens, self._page_size, self._is_causal, self._window_left = (
            seq_lens.tolist(), page_size, is_causal, window_left,
        )  # fmt: skip
        self._heads = num_heads, num_kv_heads, head_dim
        return [1]

    def workspace_size(
        self, _workspace: Tensor, qo_indptr: Tensor, indptr: Tensor, seq_lens: Tensor, num_queries: int, num_rows: int,
        num_heads: int, num_kv_heads: int, _page_size: int, is_graph: bool, head_dim: int, *_options: int,
    ) -> list[int]:  # fmt: skip
        assert is_graph and num_queries == num_rows == len(seq_lens) == len(indptr) - 1 == int(qo_indptr[-1])
        return [fake_flashinfer.graph_workspace_bytes(num_rows, num_heads, num_kv_heads, head_dim), 1 << 20]

    def paged_run(
        self, _workspace: Tensor, _ints: Tensor, _plan: list[int], q: Tensor, k: Tensor, v: Tensor, qo_indptr: Tensor,
        indptr: Tensor, indices: Tensor, last_page_len: Tensor, out: Tensor, lse: Tensor | None, mask: int, layout: int,
        window_left: int, _pdl: bool, *rest: Any,
    ) -> None:  # fmt: skip
        assert (q.dtype, k.dtype, out.dtype) == self._dtypes and layout == HND
        assert (mask == CAUSAL) == self._is_causal and window_left == self._window_left
        wrapper: Any = object.__new__(fake_flashinfer.BatchPrefillWithPagedKVCacheWrapper)
        wrapper._layout, wrapper._page_size, wrapper._causal = "HND", self._page_size, self._is_causal
        wrapper._num_heads, wrapper._num_kv_heads, wrapper._head_dim = self._heads
        wrapper._window_left, (wrapper._soft_cap, wrapper._scale) = window_left, self._scalars(rest)
        wrapper._now = (qo_indptr, indptr, indices, last_page_len)
        lengths = ((indptr.diff() - 1) * self._page_size + last_page_len).tolist()
        assert lengths == self._seq_lens
        y, sums = wrapper._compute(q, k, v, 1.0, 1.0)
        out.copy_(y)
        if lse is not None:
            lse.copy_(sums)

    def _scalars(self, rest: tuple[Any, ...]) -> tuple[float, float]:
        """Returns soft cap and scale: the first numbers after the optional tensors."""
        soft_cap, scale = [value for value in rest if isinstance(value, float)][:2]
        assert self._uses_soft_cap == (soft_cap > 0)
        return soft_cap, scale


def _module(
    backend: str, q: torch.dtype, kv: torch.dtype, o: torch.dtype, ids: torch.dtype, head_dim: int, head_dim_vo: int,
    pos_encoding: int, uses_window: bool, uses_soft_cap: bool, uses_half_sums: bool,
) -> PlannedKernel:  # fmt: skip
    assert backend == "fa2" and ids == torch.int32 and head_dim == head_dim_vo
    assert pos_encoding == 0 and not uses_half_sums
    return PlannedKernel((q, kv, o), uses_window, uses_soft_cap)


def with_torch_kernels(real: ModuleType, patch: pytest.MonkeyPatch) -> Any:
    """The library's attention wrappers on the CPU; all else is the fake's."""
    for name in ("flashinfer.decode", "flashinfer.prefill"):
        patch.setattr(f"{name}.get_batch_prefill_module", _module)
    patch.setattr(torch, "empty", _without_pinning(torch.empty))
    fake = fake_flashinfer.FakeFlashInfer()
    wrappers = ("BatchDecodeWithPagedKVCacheWrapper", "BatchPrefillWithPagedKVCacheWrapper")
    return SimpleNamespace(**vars(fake) | {name: getattr(real, name) for name in wrappers})


def _without_pinning(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        return empty(*args, **{name: value for name, value in kwargs.items() if name != "pin_memory"})

    return make
