"""The layers of a decoder: plain objects that hold tensors. They know no checkpoint and no cache."""

import torch.nn.functional as F
from torch import Tensor

from blora.adapters.lora import LoRABackend, LoRAMetadata

from .ops import DecoderOps
from .shard_group import ALONE, ShardGroup
from .tensors import Projection


class Linear:
    """y = x W^T + b + the change of the step's adapters at this site, summed over the shards if each has some inputs.

    The change of adapters is part of that sum. A term that counts once, such as the bias, comes from the first shard.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        site: int | None,
        lora: LoRABackend,
        summed_over: ShardGroup = ALONE,
    ) -> None:
        """weight: [out, in]. bias: [out].
        site: None: no adapter can change the layer.
        summed_over: the shards that each have some inputs of the layer.
        """
        self._weight = weight
        self._bias = bias if summed_over.is_first else None
        self._site = site
        self._lora = lora
        self._summed_over = summed_over

    def forward(self, x: Tensor, metadata: LoRAMetadata | None) -> Tensor:
        """x: [num_tokens, in]. metadata: None: no token of the step has an adapter. Returns [num_tokens, out]."""
        y = F.linear(x, self._weight, self._bias)
        if metadata is not None and self._site is not None:
            self._lora.run(self._site, x, y, metadata)
        self._summed_over.all_reduce(y)
        return y


class GatedMLP:
    """y = down(silu(gate(x)) * up(x)). Gate and up are computed together."""

    def __init__(
        self,
        gate_up: Projection,
        down: Projection,
        sites: tuple[int, int],
        lora: LoRABackend,
        ops: DecoderOps,
        group: ShardGroup = ALONE,
    ) -> None:
        """sites: gate_up's and down's. group: the shards among which the intermediate values are divided."""
        self._gate_up = Linear(gate_up.weight, gate_up.bias, sites[0], lora)
        self._down = Linear(down.weight, down.bias, sites[1], lora, group)
        self._ops = ops

    def forward(self, x: Tensor, metadata: LoRAMetadata | None) -> Tensor:
        """x: [num_tokens, hidden]. Returns a tensor of the same shape."""
        return self._down.forward(self._ops.silu_and_mul(self._gate_up.forward(x, metadata)), metadata)
