"""An embedding and a head with adapters that change them, in an arena that is NaN outside the adapters; and the results
by definition, with a bound on the kernels' error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blora.adapters import Checkpoint, TargetModule, pack
from blora.adapters.cpu import CpuLoRA, CpuLoRAMetadata
from blora.adapters.device_pool import DevicePool
from blora.adapters.layout import PANEL
from blora.adapters.lora import Segment
from blora.adapters.lora_module import LoRAModule, TrainedRows
from blora.adapters.targets import TargetKind
from blora.engine.kernels.library import Epilogue, Kernels

from .lora_world import POISON, SUM_ERROR, assert_within

HEAD, EMBEDDING, NUM_SITES = range(3)


@dataclass(frozen=True)
class TokenRowsAdapter:
    """An adapter that changes the embedding and the head in the same way."""

    rank: int = 0
    row_ids: tuple[int, ...] | None = None  # ascending; empty: 0, 1, ...; None: no token rows
    num_rows: int = 0  # where row_ids is empty
    has_gain: bool = False
    scaling: float = 0.5

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens that it has rows for."""
        return () if self.row_ids is None else self.row_ids or tuple(range(self.num_rows))


class TokenRowsWorld:
    def __init__(
        self,
        kernels: Kernels,
        dtype: torch.dtype,
        vocab: int,
        hidden: int,
        adapters: dict[str, TokenRowsAdapter],
        page_bytes: int = 1024,
        seed: int = 0,
    ) -> None:
        self.kernels, self.dtype, self.vocab, self.hidden, self.adapters = kernels, dtype, vocab, hidden, adapters
        self._rng = np.random.default_rng(seed)
        weight = torch.empty(-(-vocab // PANEL) * PANEL, hidden, dtype=dtype)[:vocab]
        weight.copy_(self._normal(vocab, hidden) / hidden**0.5)
        self._weight = weight.double()
        self.head = kernels.pack_linear(weight, None, HEAD)
        self._modules = {name: self._make_modules(adapter) for name, adapter in adapters.items()}
        images = {
            name: pack(Checkpoint("", name, modules, ()), str(dtype).removeprefix("torch."), page_bytes)
            for name, modules in self._modules.items()
        }
        num_pages = sum(image.table.num_pages for image in images.values()) + 2
        self.pages = torch.full((num_pages, page_bytes), POISON, dtype=torch.uint8)
        self.pool = DevicePool(self.pages, dtype)
        self.lora = CpuLoRA(self.pool, NUM_SITES)
        free = self._rng.permutation(num_pages).tolist()
        self.page_ids: dict[str, list[int]] = {}
        for name, image in images.items():
            self.pool.add(image.table, torch.from_numpy(image.pages))
            self.page_ids[name] = [free.pop() for _ in range(image.table.num_pages)]
            self.pool.copy(name, 0, self.page_ids[name])

    def _normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32))

    def _make_modules(self, adapter: TokenRowsAdapter) -> tuple[LoRAModule, ...]:
        head = TargetModule("head", self.hidden, self.vocab, HEAD, 0, kind=TargetKind.HEAD)
        embedding = TargetModule("embedding", self.vocab, self.hidden, EMBEDDING, 0, kind=TargetKind.EMBEDDING)
        return self._make_module(head, adapter), self._make_module(embedding, adapter)

    def _make_module(self, target: TargetModule, adapter: TokenRowsAdapter) -> LoRAModule:
        a = self._normal(adapter.rank, target.in_features).numpy() / target.in_features**0.5
        b = self._normal(target.out_features, adapter.rank).numpy()
        rows = TrainedRows(adapter.row_ids or (), self._normal(len(adapter.ids), self.hidden).numpy())
        return LoRAModule(
            target,
            adapter.scaling,
            a,
            b,
            gain=self._normal(target.out_features).numpy() if adapter.has_gain else None,
            rows=None if adapter.row_ids is None else rows,
        )

    def plan(self, segments: Sequence[Segment]) -> CpuLoRAMetadata:
        used = {name for segment in segments for name, _ in segment.adapters}
        return self.lora.plan(segments, {name: self.page_ids[name] for name in used})

    def rows(self, num_tokens: int) -> Tensor:
        """Random hidden states, or embeddings of the base model."""
        return self._normal(num_tokens, self.hidden).to(self.dtype)

    def width(self, segments: Sequence[Segment]) -> int:
        """The width of the logits."""
        used = {name for segment in segments for name, _ in segment.adapters}
        return max([self.vocab, *(max(self.adapters[name].ids, default=0) + 1 for name in used)])

    def embed(self, ids: Tensor, base: Tensor, segments: Sequence[Segment]) -> Tensor:
        y = base.clone()
        self.kernels.embed(EMBEDDING, ids, y, self.plan(segments))
        return y

    def logits(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        """The logits; NaN where nothing is written."""
        y, plan = torch.full((len(x), self.width(segments)), torch.nan), self.plan(segments)
        self.kernels.linear(self.head, x, y, Epilogue.STORE_FLOAT, plan)
        self.kernels.replace_logits(self.head, x, y, plan)
        return y

    def check_embed(self, ids: Tensor, base: Tensor, segments: Sequence[Segment], y: Tensor) -> None:
        """Compares y with the definition in float64, with weights rounded to the dtype."""
        total, error = base.double(), torch.zeros(base.shape, dtype=torch.float64)
        for segment in segments:
            for token in range(segment.start, segment.end):
                for name, scale in segment.adapters:
                    self._embed(name, scale, int(ids[token]), total[token], error[token])
        assert_within(y, total, error + self._rounding * (total.abs() + error))

    def _embed(self, name: str, scale: float, token: int, total: Tensor, error: Tensor) -> None:
        a, b, rows, gain = self._tensors(name, 1)
        if token in self.adapters[name].ids:
            total[:], error[:] = rows[self.adapters[name].ids.index(token)], 0
            return
        h = scale * self.adapters[name].scaling * a[:, token]
        total += b @ h
        error += b.abs() @ h.abs() * (self._rounding + SUM_ERROR) + SUM_ERROR * total.abs()
        total *= gain
        error *= gain.abs()

    @property
    def _rounding(self) -> float:
        return 2**-8 if self.dtype == torch.bfloat16 else 2**-22

    def _tensors(self, name: str, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A, B, token rows and gain of the head (0) or of the embedding (1), rounded as they are stored."""
        module = self._modules[name][number]
        rows = np.zeros((0, self.hidden)) if module.rows is None else module.rows.rows
        a, b, own = (torch.from_numpy(matrix).to(self.dtype).double() for matrix in (module.a, module.b, rows))
        return a, b, own, torch.ones(len(b)).double() if module.gain is None else torch.from_numpy(module.gain).double()

    def check_logits(self, x: Tensor, segments: Sequence[Segment], y: Tensor) -> None:
        """Compares y with the definition. Columns beyond the rows of a token's adapters are not compared."""
        x = x.double()
        total, error = torch.zeros(y.shape).double(), torch.full(y.shape, torch.inf).double()
        total[:, : self.vocab], error[:, : self.vocab] = x @ self._weight.T, x.abs() @ self._weight.abs().T * SUM_ERROR
        for segment in segments:
            part = slice(segment.start, segment.end)
            for name, scale in segment.adapters:
                self._add_product(name, scale, x[part], total[part, : self.vocab], error[part, : self.vocab])
            for name, _ in segment.adapters:
                _, _, rows, _ = self._tensors(name, 0)
                ids = torch.tensor(self.adapters[name].ids, dtype=torch.int64)
                total[part, ids] = x[part] @ rows.T
                error[part, ids] = x[part].abs() @ rows.abs().T * SUM_ERROR
        is_written = error < torch.inf
        assert_within(y[is_written], total[is_written], error[is_written] + 2**-22 * total[is_written].abs())

    def _add_product(self, name: str, scale: float, x: Tensor, total: Tensor, error: Tensor) -> None:
        a, b, _, gain = self._tensors(name, 0)
        factor = scale * self.adapters[name].scaling
        h, terms = factor * (x @ a.T), abs(factor) * (x.abs() @ a.abs().T)
        total += h @ b.T
        error += (SUM_ERROR * terms + self._rounding * h.abs()) @ b.abs().T + SUM_ERROR * (h.abs() @ b.abs().T)
        total *= gain
        error *= gain.abs()
        error += SUM_ERROR * total.abs()
