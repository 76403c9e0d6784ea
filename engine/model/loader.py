"""Loads a checkpoint's tensors into a model's parameters. No needed tensor may be missing, and none may be left over.

Tensors are copied one at a time, straight into their places, so that there is never a second copy of the model.
"""

import torch
from tqdm import tqdm

from ..model_files.config import ModelConfig
from ..model_files.tensor_source import CheckpointError, TensorSource
from .misfits import problems_of
from .shard import Shard
from .tensors import CPU, ModelTensors, Place, allocate, places, shard_places

HARMLESS = ".rotary_emb.inv_freq"  # computed from the config; old checkpoints still contain it
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_tensors(
    config: ModelConfig,
    source: TensorSource,
    dtype: torch.dtype,
    progress: bool,
    device: torch.device = CPU,
    shard: Shard | None = None,
) -> ModelTensors:
    """Loads a model's weights.

    device: where the weights go.
    progress: whether a bar is shown on stderr, if that is a terminal: in a file it would be no line of a log.
    shard: the shard to load; None: the whole model.
    Raises CheckpointError that tells of tensors that are missing, unused, of another shape or not finite.
    """
    tensors = allocate(config, dtype, device, shard)
    wanted = places(tensors, config) if shard is None else shard_places(tensors, config, shard)
    problems = _problems(config, wanted, source)
    if problems:
        raise CheckpointError(problems)
    is_left_out = None if progress else True  # None: where stderr is no terminal
    for name, place in tqdm(wanted.items(), desc="loading weights", unit=" tensors", disable=is_left_out):
        _fill(place, source, name)
    spoilt = [name for name, place in wanted.items() if not _is_finite(place.view)]
    if spoilt:
        raise CheckpointError([f"{name} holds values that are not finite in {dtype}" for name in spoilt])
    return tensors


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite. The smallest and the largest tell: one that is not a number is both."""
    least, most = torch.aminmax(tensor) if tensor.numel() else (tensor.new_zeros(()),) * 2
    return bool(least.isfinite() and most.isfinite())


def _fill(place: Place, source: TensorSource, name: str) -> None:
    if place.rows is None:
        place.view.copy_(source.get(name))
        return
    first = 0
    for rows in place.rows:
        part = source.get_slice(name, rows, place.columns)
        place.view[first : first + len(part)].copy_(part)
        first += len(part)


def _problems(config: ModelConfig, wanted: dict[str, Place], source: TensorSource) -> list[str]:
    names = set(source.names())
    unused = {name for name in names - wanted.keys() if not name.endswith(HARMLESS)}
    if config.tie_word_embeddings and LM_HEAD in unused and _is_copy_of_embedding(source, names):
        unused.remove(LM_HEAD)
    found = {name: source.shape(name) for name in names}
    return problems_of({name: place.shape for name, place in wanted.items()}, found, unused)


def _is_copy_of_embedding(source: TensorSource, names: set[str]) -> bool:
    """Whether the head is a copy of the embedding that it is tied to. Another head must not be dropped silently."""
    return EMBEDDING in names and torch.equal(source.get(LM_HEAD), source.get(EMBEDDING))
