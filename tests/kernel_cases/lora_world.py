"""One linear layer and adapters that change it, in an arena that is NaN outside the adapters; and the result by
definition, with a bound on the kernel's error."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blora.adapters import Checkpoint, TargetModule, pack
from blora.adapters.cpu import CpuLoRA, CpuLoRAMetadata
from blora.adapters.device_pool import DevicePool
from blora.adapters.image import AdapterImage
from blora.adapters.layout import LINE_BYTES, LINES, PANEL, Layout
from blora.adapters.lora import Segment
from blora.adapters.peft.checkpoint import LoRAModule
from blora.engine.kernels.library import Epilogue, Kernels

SITE, NUM_SITES = 1, 3  # SITE: the layer's; the sites around it have modules of other adapters, or none
POISON = 0xFF  # bytes of NaN
SUM_ERROR = 2**-20  # of a float32 sum, relative to the sum of its absolute terms

Uses = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Site:
    """The shape of a linear layer, and the (first column, width) of each module whose outputs are fused in it."""

    in_: int
    out: int
    slices: tuple[tuple[int, int], ...]
    has_bias: bool = False


@dataclass(frozen=True)
class Adapter:
    """ranks: one for each slice of the site; 0: the adapter does not change the slice."""

    ranks: tuple[int, ...]
    scaling: float = 0.5
    has_gain_shift: bool = False  # every slice gets a shift, a gain, or both


class LoRAWorld:
    def __init__(
        self,
        kernels: Kernels,
        dtype: torch.dtype,
        site: Site,
        adapters: dict[str, Adapter],
        page_bytes: int = 1024,
        seed: int = 0,
    ) -> None:
        self.kernels, self.dtype, self.site = kernels, dtype, site
        self._rng = np.random.default_rng(seed)
        self._make_layer()
        self.checkpoints = {name: self._make_checkpoint(name, adapter) for name, adapter in adapters.items()}
        self.images = {
            name: pack(checkpoint, _name(dtype), page_bytes) for name, checkpoint in self.checkpoints.items()
        }
        num_pages = sum(image.table.num_pages for image in self.images.values()) + 2
        self.pages = torch.full((num_pages, page_bytes), POISON, dtype=torch.uint8)
        self.pool = DevicePool(self.pages, dtype)
        self.lora = CpuLoRA(self.pool, NUM_SITES)
        self._free = self._rng.permutation(num_pages).tolist()
        self.page_ids: dict[str, list[int]] = {}
        for image in self.images.values():
            self._place(image)

    def _make_layer(self) -> None:
        out, in_ = self.site.out, self.site.in_
        weight = torch.empty(-(-out // PANEL) * PANEL, in_, dtype=self.dtype)[:out]
        weight.copy_(self._normal(out, in_) / in_**0.5)
        bias = self._normal(out).to(self.dtype) if self.site.has_bias else None
        self.weight = weight.double()
        self.bias = torch.zeros(out).double() if bias is None else bias.double()
        self.linear = self.kernels.pack_linear(weight, bias, SITE)

    def _normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32))

    def _make_checkpoint(self, name: str, adapter: Adapter) -> Checkpoint:
        """An adapter with a decoy at the site before, so that the slices of this site are not its first ones."""
        modules = [self._make_module(TargetModule("decoy", 8, 16, SITE - 1, 0), 3, adapter.scaling)]
        for (column, width), rank in zip(self.site.slices, adapter.ranks, strict=True):
            target = TargetModule(f"at {column}", self.site.in_, width, SITE, column)
            if adapter.has_gain_shift:
                modules.append(self._with_gain_shift(self._make_module(target, rank, adapter.scaling)))
            elif rank:
                modules.append(self._make_module(target, rank, adapter.scaling))
        return Checkpoint("", name, tuple(modules), ())

    def _make_module(self, target: TargetModule, rank: int, scaling: float) -> LoRAModule:
        a = self._rng.standard_normal((rank, target.in_features), dtype=np.float32) / target.in_features**0.5
        b = self._rng.standard_normal((target.out_features, rank), dtype=np.float32) / max(rank, 1) ** 0.5
        return LoRAModule(target, scaling, a, b)

    def _with_gain_shift(self, module: LoRAModule) -> LoRAModule:
        shift, gain = self._rng.standard_normal((2, module.target.out_features), dtype=np.float32)
        number = module.target.offset % 3  # a shift, a gain, or both
        return replace(module, shift=shift if number != 1 else None, gain=gain if number != 0 else None)

    def _place(self, image: AdapterImage) -> None:
        table = image.table
        _poison_rest(image, self.dtype.itemsize)
        self.pool.add(table, torch.from_numpy(image.pages))
        page_ids = [self._free.pop() for _ in range(table.num_pages)]
        self.pool.copy(table.digest, 0, page_ids)
        self.page_ids[table.digest] = page_ids

    def poison(self, name: str) -> None:
        self.pages[torch.tensor(self.page_ids[name])] = POISON

    def rows(self, num_tokens: int) -> Tensor:
        return self._normal(num_tokens, self.site.in_).to(self.dtype)

    def plan(self, segments: Sequence[Segment]) -> CpuLoRAMetadata:
        used = {name for segment in segments for name, _ in segment.adapters}
        return self.lora.plan(segments, {name: self.page_ids[name] for name in used})

    def run(self, x: Tensor, epilogue: Epilogue, segments: Sequence[Segment] | None, before: Tensor) -> Tensor:
        """Runs one call and returns y. before: the content of y before it. segments: None: a call without a plan."""
        y = before.clone()
        self.kernels.linear(self.linear, x, y, epilogue, None if segments is None else self.plan(segments))
        return y

    def solo(self, x: Tensor, epilogue: Epilogue, uses: Sequence[Uses], before: Tensor) -> Tensor:
        """Computes every token in a call of its own. uses: the adapters of each token."""
        rows = []
        for token, own in enumerate(uses):
            segments = [Segment(0, 1, own)] if own else None
            rows.append(self.run(x[token : token + 1].clone(), epilogue, segments, before[token : token + 1]))
        return torch.cat(rows) if rows else before.clone()

    def before(self, num_tokens: int, epilogue: Epilogue) -> Tensor:
        """The content of y before a call: random for ADD, NaN for every other epilogue."""
        width = self.site.out // 2 if epilogue is Epilogue.SILU_MUL else self.site.out
        dtype = torch.float32 if epilogue is Epilogue.STORE_FLOAT else self.dtype
        if epilogue is Epilogue.ADD:
            return self._normal(num_tokens, width).to(dtype)
        return torch.full((num_tokens, width), torch.nan, dtype=dtype)

    def expected(
        self, x: Tensor, epilogue: Epilogue, segments: Sequence[Segment], before: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The result by definition in float64, with weights rounded to the dtype, and the allowed error of each."""
        x = x.double()
        total, error = x @ self.weight.T + self.bias, SUM_ERROR * (x.abs() @ self.weight.abs().T + self.bias.abs())
        for segment in segments:
            rows = slice(segment.start, segment.end)
            for name, scale in segment.adapters:
                self._add_change(name, scale, x[rows], total[rows], error[rows])
        total, error = _finish(epilogue, total, error, before)
        is_rounded = self.dtype == torch.bfloat16 and epilogue is not Epilogue.STORE_FLOAT
        return total, error + 1e-30 + (2**-8 if is_rounded else 2**-23) * (total.abs() + error)

    def _add_change(self, name: str, scale: float, x: Tensor, total: Tensor, error: Tensor) -> None:
        for module in self.checkpoints[name].modules:
            if module.target.site != SITE:
                continue
            a, b = (torch.from_numpy(matrix).to(self.dtype).double() for matrix in (module.a, module.b))
            columns = slice(module.target.offset, module.target.offset + module.target.out_features)
            factor = scale * module.scaling
            h, h_terms = factor * (x @ a.T), abs(factor) * (x.abs() @ a.abs().T)
            total[:, columns] += h @ b.T
            # h is rounded to the dtype before it is multiplied by B.
            off = SUM_ERROR * h_terms + (2**-8 * h.abs() if self.dtype == torch.bfloat16 else 0)
            error[:, columns] += off @ b.abs().T + SUM_ERROR * (h.abs() @ b.abs().T)
            if module.gain is not None:
                gain = torch.from_numpy(module.gain).double()
                total[:, columns] *= gain
                # The kernel adds the base's bias with the gain and without it, and subtracts it.
                off = SUM_ERROR * (total[:, columns].abs() + (2 + gain.abs()) * self.bias[columns].abs())
                error[:, columns] = error[:, columns] * gain.abs() + off
            if module.shift is not None:
                total[:, columns] += scale * torch.from_numpy(module.shift).double()
                error[:, columns] += SUM_ERROR * total[:, columns].abs()

    def check(self, x: Tensor, epilogue: Epilogue, segments: Sequence[Segment]) -> None:
        """Compares one call with the definition."""
        before = self.before(len(x), epilogue)
        self.assert_near(x, epilogue, segments, before, self.run(x, epilogue, segments, before))

    def assert_near(
        self, x: Tensor, epilogue: Epilogue, segments: Sequence[Segment], before: Tensor, y: Tensor
    ) -> None:
        assert_within(y, *self.expected(x, epilogue, segments, before))


def assert_within(y: Tensor, expected: Tensor, error: Tensor) -> None:
    off = (y.double() - expected).abs()
    is_wrong = ~(off <= error)  # NaN counts as wrong
    if is_wrong.any():
        at = is_wrong.nonzero()[0].tolist()
        here = tuple(at)
        raise AssertionError(
            f"{int(is_wrong.sum())} of {y.numel()} are off; first {at}: {y[here].item()} for {expected[here].item()}, "
            f"allowed {error[here].item():.2e}"
        )


def segments_of(runs: Sequence[tuple[int, Uses]]) -> list[Segment]:
    """The segments of runs. runs: the number of tokens and the adapters of each; a base run has no segment."""
    segments, start = [], 0
    for num_tokens, uses in runs:
        if uses and num_tokens:
            segments.append(Segment(start, start + num_tokens, uses))
        start += num_tokens
    return segments


def uses_of(runs: Sequence[tuple[int, Uses]]) -> list[Uses]:
    """The adapters of each token."""
    return [uses for num_tokens, uses in runs for _ in range(num_tokens)]


def _finish(epilogue: Epilogue, total: Tensor, error: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    if epilogue is Epilogue.ADD:
        return before.double() + total, error + SUM_ERROR * before.double().abs()
    if epilogue is not Epilogue.SILU_MUL:
        return total, error
    (gate, up), (gate_error, up_error) = total.chunk(2, dim=1), error.chunk(2, dim=1)
    gated = F.silu(gate)
    # SiLU's slope is at most 1.1.
    off = 1.1 * gate_error * up.abs() + gated.abs() * up_error + 1.1 * gate_error * up_error
    return gated * up, off + 2**-20 * (gated * up).abs()


def _poison_rest(image: AdapterImage, item_bytes: int) -> None:
    """Fills the bytes of an image that no chunk covers with NaN."""
    is_used = np.zeros(image.pages.shape, dtype=bool)
    for module in image.table.modules:
        for width, a, b in zip(Layout.CPU.rank_groups(module.rank), module.a, module.b, strict=True):
            for chunks, piece_bytes in ((a, LINES * LINE_BYTES), (b, PANEL * width * item_bytes)):
                for chunk in chunks:
                    is_used[chunk.page, chunk.offset : chunk.offset + chunk.num_pieces * piece_bytes] = True
        for chunk in (*module.shift, *module.gain):
            is_used[chunk.page, chunk.offset : chunk.offset + chunk.num_pieces * PANEL * 4] = True
    image.pages[~is_used] = POISON


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
