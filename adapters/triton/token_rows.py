"""Adapters' changes of embeddings and token rows, by torch's gathers: a step computes these sites only once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..image import Chunk, ImageTable, PackedModule
from ..layout import PIECE_WIDTH, Layout
from ..targets import TargetKind


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of one size, anywhere in the arena."""

    arena: Tensor  # [elements]
    starts: Tensor  # [num_pieces] int64: the first element of each
    width: int  # elements of a piece

    def gather(self, ids: Tensor) -> Tensor:
        """The pieces with these indices: [n, width] float32. ids: [n] int64."""
        columns = torch.arange(self.width, device=ids.device)
        return self.arena[self.starts[ids][:, None] + columns].float()

    def whole(self) -> Tensor:
        """All pieces: [num_pieces, width] float32."""
        return self.gather(torch.arange(len(self.starts), device=self.starts.device))


@dataclass(frozen=True, slots=True)
class TokenModule:
    """A module whose weights have a row for each token: an embedding, or a head with token rows.

    The kernels compute nothing of an embedding, and everything of a head but its token rows.
    """

    out_features: int
    scaling: float
    a: Sequence[Pieces]  # an embedding's: for each group, a row of ranks for each token
    b: Sequence[Pieces]  # for each group, pieces of [ranks, 128 outputs]
    gain: Pieces | None
    rows: Pieces | None  # token rows
    row_chunks: Sequence[Tensor]  # views of the token rows, each [some rows, width]
    row_ids: Tensor  # [num_rows] int64, ascending; empty: 0, 1, ...

    def embed(self, token_ids: Tensor, y: Tensor, scale: float) -> Tensor:
        """Returns the changed embeddings. token_ids: [num_tokens]. y: [num_tokens, hidden]."""
        total = y.float()
        for a, b in zip(self.a, self.b, strict=True):
            panels = b.whole().view(len(b.starts), a.width, PIECE_WIDTH)
            matrix = panels.transpose(0, 1).flatten(1)[:, : self.out_features]  # [ranks, hidden]
            total = total + (a.gather(token_ids.clamp(max=len(a.starts) - 1)) * (scale * self.scaling)) @ matrix
        if self.gain is not None:
            total = total * self.gain.whole().flatten()[: self.out_features]
        if self.rows is not None:
            total = self._with_rows(token_ids, total)
        return total.to(y.dtype)

    def _with_rows(self, token_ids: Tensor, total: Tensor) -> Tensor:
        assert self.rows is not None
        if not len(self.row_ids):
            return self.rows.gather(token_ids)
        at = torch.searchsorted(self.row_ids, token_ids).clamp(max=len(self.row_ids) - 1)
        return torch.where((self.row_ids[at] == token_ids)[:, None], self.rows.gather(at), total)

    def project(self, x: Tensor, y: Tensor) -> None:
        """Writes the logits of token rows into y. x: [n, hidden]. y: [n, vocabulary]."""
        first = 0
        for rows in self.row_chunks:
            logits, end = x @ rows.T, first + len(rows)
            if len(self.row_ids):
                y[:, self.row_ids[first:end]] = logits
            else:
                y[:, first:end] = logits
            first = end


class TokenModuleFinder:
    """Finds the token modules in the pages of an adapter."""

    def __init__(self, pages: Tensor, dtype: torch.dtype) -> None:
        """pages: the arena, [num_pages, page_bytes] uint8."""
        self._page_bytes = pages.shape[1]
        self._weights, self._floats = pages.view(dtype).flatten(), pages.view(torch.float32).flatten()

    def find(self, table: ImageTable, page_ids: Sequence[int]) -> dict[int, TokenModule]:
        """The token modules of an adapter, by site."""
        tables = (module for module in table.modules if module.kind is not TargetKind.NORM)
        own = (module for module in tables if module.kind is TargetKind.EMBEDDING or module.rows)
        return {module.site: self._find_module(module, page_ids) for module in own}

    def _find_module(self, module: PackedModule, page_ids: Sequence[int]) -> TokenModule:
        is_embedding = module.kind is TargetKind.EMBEDDING
        widths = Layout.GPU.rank_groups(module.rank) if is_embedding else []
        row_width = module.out_features if is_embedding else module.in_features
        rows = self._pieces(module.rows, page_ids, self._weights, row_width) if module.rows else None
        return TokenModule(
            out_features=module.out_features,
            scaling=module.scaling,
            a=[self._pieces(part, page_ids, self._weights, n) for n, part in zip(widths, module.a, strict=False)],
            b=[
                self._pieces(part, page_ids, self._weights, n * PIECE_WIDTH)
                for n, part in zip(widths, module.b, strict=False)
            ],
            gain=self._pieces(module.gain, page_ids, self._floats, PIECE_WIDTH)
            if module.gain and is_embedding
            else None,
            rows=rows,
            row_chunks=[] if is_embedding else [self._view(chunk, page_ids, row_width) for chunk in module.rows],
            row_ids=torch.tensor(module.row_ids, dtype=torch.int64, device=self._weights.device),
        )

    def _pieces(self, chunks: Sequence[Chunk], page_ids: Sequence[int], arena: Tensor, width: int) -> Pieces:
        starts = [
            self._start(chunk, page_ids, arena) + width * np.arange(chunk.num_pieces, dtype=np.int64)
            for chunk in chunks
        ]
        return Pieces(arena, torch.from_numpy(np.concatenate(starts)).to(arena.device), width)

    def _view(self, chunk: Chunk, page_ids: Sequence[int], width: int) -> Tensor:
        """A chunk's pieces: [pieces, width]."""
        start = self._start(chunk, page_ids, self._weights)
        return self._weights[start : start + chunk.num_pieces * width].view(-1, width)

    def _start(self, chunk: Chunk, page_ids: Sequence[int], arena: Tensor) -> int:
        """The index of the chunk's first element in the arena."""
        return (page_ids[chunk.page] * self._page_bytes + chunk.offset) // arena.itemsize
