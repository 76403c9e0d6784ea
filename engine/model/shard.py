"""Shard: the part of a model that one of several shards has, in ints: its heads, its part of every MLP, its tokens.

q, k, v, gate and up are split by outputs, o and down by inputs, which makes two sums over the shards per layer. Query
heads are divided evenly. Every shard has the key-value heads of its query heads, so a key-value head is in several
shards if there are fewer of them than shards, or if their number cannot be divided. Imports no torch.
"""

from dataclasses import dataclass, replace
from math import gcd

from blora.adapters import ModuleCut, ModuleCuts, TargetModule
from blora.adapters.shard_cut import Range
from blora.adapters.targets import TargetKind

from ..errors import EngineStartError
from ..model_files.config import ModelConfig
from .targets import adapter_targets

UNIT = 16  # sizes that cannot be divided evenly are split at its multiples, which suit the kernels


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens whose rows of the embedding and of the head a shard has: [first, end)."""

    first: int
    end: int
    vocab_size: int  # the model's
    most: int  # the most tokens of any shard

    @property
    def are_last(self) -> bool:
        return self.end == self.vocab_size


def all_tokens(vocab_size: int) -> Tokens:
    return Tokens(0, vocab_size, vocab_size, vocab_size)


@dataclass(frozen=True, slots=True)
class Shard:
    index: int
    size: int  # number of shards
    config: ModelConfig  # the shard's: with its numbers of heads, tokens and intermediate values
    tokens: Tokens
    cuts: ModuleCuts  # of every module that an adapter can change; an embedding is whole


def shards_of(config: ModelConfig, size: int) -> tuple[Shard, ...]:
    """The shards of `size` shards. Raises EngineStartError for a model that cannot be split in this way."""
    if config.num_heads % size:
        raise EngineStartError(
            f"tensor_parallel_size: {config.num_heads} attention heads cannot be divided by {size} shards"
        )
    return tuple(_shard(config, index, size) for index in range(size))


def module_cuts(config: ModelConfig, size: int) -> tuple[ModuleCuts, ...]:
    """The cuts of each shard, for which an adapter is packed; empty where one shard has the whole model."""
    return tuple(shard.cuts for shard in shards_of(config, size)) if size > 1 else ()


def _shard(config: ModelConfig, index: int, size: int) -> Shard:
    intermediate = _range(config.intermediate_size, index, size, "intermediate_size")
    first, end = _range(config.vocab_size, index, size, "vocab_size")
    _, most = _range(config.vocab_size, 0, size, "vocab_size")
    kv_heads = _kv_heads(config, index, size)
    own = replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=len(kv_heads),
        intermediate_size=intermediate[1] - intermediate[0],
        vocab_size=end - first,
    )
    cutter = _Cutter(index, (index * own.num_heads, (index + 1) * own.num_heads), kv_heads, intermediate, (first, end))
    cuts = {
        whole.name: cutter.cut(whole, target, config.head_dim)
        for whole, target in zip(adapter_targets(config), adapter_targets(own), strict=True)
    }
    return Shard(index, size, own, Tokens(first, end, config.vocab_size, most), cuts)


def _range(total: int, index: int, size: int, name: str) -> Range:
    """The shard's range of `total`. Raises EngineStartError if a shard would get none."""
    if total % size == 0:
        width = total // size
    else:
        width = -(-total // (size * UNIT)) * UNIT
    if width * (size - 1) >= total:
        raise EngineStartError(f"tensor_parallel_size: {name} {total} is too small for {size} shards")
    return index * width, min((index + 1) * width, total)


def _kv_heads(config: ModelConfig, index: int, size: int) -> tuple[int, ...]:
    """The key-value heads of the shard's query heads, each with equally many of these. Where the numbers do not fit, a
    key-value head is listed twice."""
    group, num_heads = config.num_heads // config.num_kv_heads, config.num_heads // size
    first, own_group = index * num_heads, gcd(group, num_heads)
    return tuple(head // group for head in range(first, first + num_heads, own_group))


@dataclass(frozen=True, slots=True)
class _Cutter:
    index: int
    heads: Range
    kv_heads: tuple[int, ...]
    intermediate: Range
    tokens: Range

    def cut(self, whole: TargetModule, target: TargetModule, head_dim: int) -> ModuleCut:
        """target: the module in the shard's own model."""
        inputs, outputs = (0, whole.in_features), ((0, whole.out_features),)
        heads = (self.heads[0] * head_dim, self.heads[1] * head_dim)
        match whole.name.rpartition(".")[2]:
            case "q_proj":
                return ModuleCut(target, inputs, (heads,))
            case "k_proj" | "v_proj":
                return ModuleCut(target, inputs, tuple((h * head_dim, (h + 1) * head_dim) for h in self.kv_heads))
            case "gate_proj" | "up_proj":
                return ModuleCut(target, inputs, (self.intermediate,))
            case "o_proj":
                return ModuleCut(target, heads, outputs, has_shift=self.index == 0)
            case "down_proj":
                return ModuleCut(target, self.intermediate, outputs, has_shift=self.index == 0)
        if whole.kind is TargetKind.HEAD:
            return ModuleCut(target, inputs, (self.tokens,))
        return ModuleCut(whole, inputs, outputs)  # the embedding: every shard applies the whole change
