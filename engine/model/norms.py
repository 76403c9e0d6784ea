"""Norms: RMSNorms of a decoder whose weights adapters may replace for their own tokens.

All tokens are normed with the model's weight first, the tokens of such adapters then again with theirs. So a token
without such an adapter is computed as if there were none.
"""

from torch import Tensor

from blora.adapters.lora import LoRAMetadata, NormUse

from .ops import DecoderOps


class Norm:
    def __init__(self, weight: Tensor, site: int, ops: DecoderOps) -> None:
        """weight: [width]."""
        self._weight, self._site, self._ops = weight, site, ops

    def forward(self, x: Tensor, metadata: LoRAMetadata | None) -> Tensor:
        """Returns the norm of x, [num_tokens, width]; x stays unchanged."""
        return self._with_adapters(self._ops.norm(x, self._weight), x, metadata)

    def add(self, x: Tensor, residual: Tensor, metadata: LoRAMetadata | None) -> tuple[Tensor, Tensor]:
        """Returns the norm of residual + x, and that sum. Both arguments are [num_tokens, width]."""
        normed, total = self._ops.add_norm(x, residual, self._weight)
        return self._with_adapters(normed, total, metadata), total

    def _with_adapters(self, normed: Tensor, x: Tensor, metadata: LoRAMetadata | None) -> Tensor:
        for use in () if metadata is None else metadata.norms.at(self._site):
            normed[use.start : use.end] = self._ops.norm(x[use.start : use.end], use.weight)
        return normed


class HeadNorm:
    """The norm of each head of q and of k."""

    def __init__(self, weight: Tensor, sites: tuple[int, int], num_heads: int, ops: DecoderOps) -> None:
        """weight: [heads of q, then of k, head_dim]. sites: q's and k's. num_heads: of q."""
        self._weight, self._ops = weight, ops
        self._parts = ((sites[0], slice(0, num_heads)), (sites[1], slice(num_heads, len(weight))))

    def forward(self, heads: Tensor, metadata: LoRAMetadata | None) -> Tensor:
        """Returns the norms, and may overwrite the heads. heads: [num_tokens, heads of q, then of k, head_dim]."""
        uses = [
            (use, part, heads[use.start : use.end, part].clone())  # before the norms are computed in place
            for site, part in self._parts
            for use in (() if metadata is None else metadata.norms.at(site))
        ]
        normed = self._ops.norm_heads(heads, self._weight)
        for use, part, own in uses:
            normed[use.start : use.end, part] = self._norm(own, use)
        return normed

    def _norm(self, heads: Tensor, use: NormUse) -> Tensor:
        return self._ops.norm(heads.view(-1, heads.shape[-1]), use.weight).view(heads.shape)
