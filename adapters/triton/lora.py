"""TritonLoRA: the LoRA operation on a GPU, by two kernels per site. Tests run it on the CPU in Triton's interpreter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..device_pool import DevicePool
from ..image import ImageTable
from ..layout import ALIGNMENT, GROUP, Layout
from ..lora import NO_NORMS, LoRABackend, LoRAMetadata, Norms, Segment, Send, check_segments, on_host
from ..norms import NormFinder
from ..targets import TargetModule
from . import kernels
from .adapter_table import MAX_ARENA_BYTES, AdapterTable, make_adapter_table
from .configurations import BLOCK_ROWS, expand_configuration, shrink_configuration
from .sites import Site, lay_out_sites
from .step_table import StepSize, choose_block_rows, make_step_table
from .token_rows import TokenModule, TokenModuleFinder


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    table: AdapterTable
    token_modules: Mapping[int, TokenModule]  # by site: the modules that the kernels do not compute
    vocab_size: int  # one past the last token that the adapter has a row for


@dataclass(slots=True)
class TritonMetadata(LoRAMetadata):
    """A step as the kernels read it."""

    size: StepSize
    content: Tensor  # [4 + num_uses * 5 + num_strips * 4] int64: header, uses, strips
    h: Tensor  # float32 scratch, large enough for every site
    segments: Sequence[Segment]
    adapters: Mapping[str, PlacedAdapter]  # kept alive: the content holds their addresses
    num_programs: int | None = None  # of each kernel; None: one for each piece of work
    vocab_size: int = 0
    norms: Norms = NO_NORMS

    @property
    def is_partial(self) -> bool:
        """Whether the kernels do not compute the whole change: it has rows of tables, or norms."""
        return bool(self.norms) or any(adapter.token_modules for adapter in self.adapters.values())

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The header, the uses and the strips."""
        uses_at, strips_at = np.cumsum(self.size.parts[:2]).tolist()
        return self.content[:uses_at], self.content[uses_at:strips_at], self.content[strips_at:]


class TritonLoRA(LoRABackend):
    def __init__(self, pool: DevicePool, targets: Sequence[TargetModule], send: Send = on_host) -> None:
        """Raises ValueError for a pool that the kernels cannot read.

        targets: all modules of the model that LoRA can change.
        send: copies the integers of a step to the pool's device.
        """
        pages = pool.pages
        if pool.layout is not Layout.GPU:
            raise ValueError(f"the pool holds weights in the layout {pool.layout}, not {Layout.GPU}")
        if pages.shape[1] % ALIGNMENT or not pages.is_contiguous() or pages.numel() > MAX_ARENA_BYTES:
            raise ValueError(
                f"the lines of an arena of {list(pages.shape)} bytes cannot be numbered: it has to be contiguous, of"
                f" pages of a multiple of {ALIGNMENT} bytes, and of at most {MAX_ARENA_BYTES} bytes"
            )
        if kernels.is_interpreted() and pool.dtype is torch.bfloat16:
            raise ValueError("Triton's interpreter has no bfloat16: it would compute wrong values")
        self._pool, self._send = pool, send
        self._norms = NormFinder(pool)
        self._sites = lay_out_sites(targets, pages.device)
        self._weights, self._floats = pages.view(pool.dtype), pages.view(torch.float32)
        self._token_modules = TokenModuleFinder(pages, pool.dtype)

    def warm_up(self) -> None:
        """Compiles every kernel that `run` may launch, by steps without work. Otherwise the first request with an
        adapter, and every other request, would wait seconds for the compiler."""
        kinds = {(site.in_features, site.out_features, site.alignment): site for site in self._sites.by_site.values()}
        for block_rows in BLOCK_ROWS:
            nothing = self.plan_fixed(StepSize(block_rows, 1, 1, 1, 1), num_programs=1)
            for site in kinds.values():
                self._change(site, self._zeros(1, site.in_features), self._zeros(1, site.out_features), nothing)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._pool.dtype, device=self._pool.pages.device)

    def changes_head(self, digest: str) -> bool:
        return self._pool.changes_head(digest)

    def plan(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> TritonMetadata:
        """Raises ValueError for segments that overlap or are out of order, and for pages outside the arena."""
        check_segments(segments)
        digests = {digest for segment in segments for digest, _ in segment.adapters}
        adapters = {digest: self._pool.derive(digest, adapter_pages[digest], self._place) for digest in digests}
        planned = self._plan(segments, adapters, choose_block_rows(segments))
        planned.norms = self._norms.find(segments, adapter_pages)
        return planned

    def _plan(
        self, segments: Sequence[Segment], adapters: Mapping[str, PlacedAdapter], block_rows: int
    ) -> TritonMetadata:
        addresses = {digest: adapter.table.address for digest, adapter in adapters.items()}
        num_groups = max((adapter.table.num_groups for adapter in adapters.values()), default=0)
        step = make_step_table(segments, addresses, num_groups, block_rows)
        (content,) = self._send(step.content)
        vocab_size = max((adapter.vocab_size for adapter in adapters.values()), default=0)
        return TritonMetadata(step.size, content, self._scratch(step.size), segments, adapters, vocab_size=vocab_size)

    def plan_fixed(self, size: StepSize, num_programs: int) -> TritonMetadata:
        """Makes the buffers that a CUDA graph is captured with: for steps up to `size`, at first without work, and for
        grids of `num_programs`. `refill` sets the step that a replay computes."""
        content = torch.zeros(sum(size.parts), dtype=torch.int64, device=self._pool.pages.device)
        return TritonMetadata(size, content, self._scratch(size), (), {}, num_programs)

    def refill(self, fixed: TritonMetadata, planned: LoRAMetadata) -> bool:
        """Writes a planned step into the buffers of `plan_fixed`, in the order of the stream.

        Returns False, and changes nothing, for a step that does not fit the buffers, or that the kernels do not compute
        as a whole. Such a step has to run without a graph.
        """
        planned = _own(planned)
        if planned.is_partial:
            return False
        if planned.size.block_rows != fixed.size.block_rows:
            planned = self._plan(planned.segments, planned.adapters, fixed.size.block_rows)
        size = planned.size
        is_held = size.num_uses <= fixed.size.num_uses and size.num_strips <= fixed.size.num_strips
        if not is_held or self._scratch_size(size, fixed.size) > len(fixed.h):
            return False
        for part, content in zip(fixed.parts, planned.parts, strict=True):
            part[: len(content)].copy_(content)
        fixed.segments, fixed.adapters = planned.segments, planned.adapters
        return True

    def run(self, site: int, x: Tensor, y: Tensor, metadata: LoRAMetadata) -> None:
        metadata = _own(metadata)
        shape = self._sites.by_site.get(site)
        if shape is None:
            return
        self._check(shape, x, y)
        self._change(shape, x, y, metadata)
        for segment in metadata.segments:
            rows = slice(segment.start, segment.end)
            for digest, _ in segment.adapters:
                module = metadata.adapters[digest].token_modules.get(site)
                if module is not None:
                    module.project(x[rows], y[rows])

    def _change(self, site: Site, x: Tensor, y: Tensor, metadata: TritonMetadata) -> None:
        size, num_planes = metadata.size, metadata.size.num_planes(site)
        header, uses, strips = metadata.parts
        kernels.shrink[(metadata.num_programs or size.num_uses * site.num_modules * num_planes,)](
            x, metadata.h, self._weights, header, uses,
            x.stride(0), site.in_features, site.first_module, site.num_modules, site.num_splits, site.split_pieces,
            num_planes, **shrink_configuration(size.block_rows).arguments,
        )  # fmt: skip
        kernels.expand[(metadata.num_programs or size.num_strips * len(site.panels),)](
            y, metadata.h, self._weights, self._floats, header, uses, strips, site.panels,
            y.stride(0), len(site.panels), site.first_module, site.num_modules, num_planes,
            **expand_configuration(size.block_rows, site.alignment).arguments,
        )  # fmt: skip

    def embed(self, site: int, token_ids: Tensor, y: Tensor, metadata: LoRAMetadata) -> None:
        metadata = _own(metadata)
        for segment in metadata.segments:
            rows = slice(segment.start, segment.end)
            for digest, scale in segment.adapters:
                module = metadata.adapters[digest].token_modules.get(site)
                if module is not None:
                    y[rows] = module.embed(token_ids[rows], y[rows], scale)

    def _place(self, table: ImageTable, page_ids: Sequence[int]) -> PlacedAdapter:
        pages = self._pool.pages
        if len(page_ids) != table.num_pages or not all(page in range(len(pages)) for page in page_ids):
            raise ValueError(f"pages {page_ids} are not {table.num_pages} of the arena's {len(pages)}")
        content = make_adapter_table(table, page_ids, self._sites, self._pool.dtype.itemsize, pages.device)
        return PlacedAdapter(content, self._token_modules.find(table, page_ids), table.vocab_size or 0)

    def _scratch(self, size: StepSize) -> Tensor:
        return torch.empty(self._scratch_size(size, size), dtype=torch.float32, device=self._pool.pages.device)

    def _scratch_size(self, step: StepSize, planned: StepSize) -> int:
        """The elements of h at the site that needs most. planned: the size that decides the number of planes."""
        sites = self._sites.by_site.values()
        planes = max((planned.num_planes(site) * site.num_modules for site in sites), default=0)
        return planes * step.num_rows * step.num_groups * GROUP

    def _check(self, site: Site, x: Tensor, y: Tensor) -> None:
        is_row_major = x.stride(1) == y.stride(1) == 1
        if x.dtype != self._pool.dtype or y.dtype != x.dtype or x.shape[1] != site.in_features or not is_row_major:
            raise ValueError(
                f"x {list(x.shape)} of {x.dtype} and y {list(y.shape)} of {y.dtype} do not fit a site of"
                f" {site.in_features} inputs in {self._pool.dtype}, row by row"
            )


def _own(metadata: LoRAMetadata) -> TritonMetadata:
    if not isinstance(metadata, TritonMetadata):
        raise TypeError(f"metadata of another backend: {type(metadata).__name__}")
    return metadata
