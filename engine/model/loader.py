"""Puts a checkpoint's tensors into a model's parameters, strictly: every tensor needed, every tensor used.

One tensor at a time, straight into its place, so that there is never a second copy of the model.
"""

import torch
from tqdm import tqdm

from .checkpoint import CheckpointError, WeightSource
from .config import ModelConfig
from .weights import CPU, ModelWeights, Place, allocate, places

HARMLESS = ".rotary_emb.inv_freq"  # computed from the config; old checkpoints carry it
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_weights(
    config: ModelConfig, source: WeightSource, dtype: torch.dtype, progress: bool, device: torch.device = CPU
) -> ModelWeights:
    """device: of the weights. progress: shows a bar on stderr.

    Raises CheckpointError with all that is missing, unused or of another shape.
    """
    weights = allocate(config, dtype, device)
    wanted = places(weights, config)
    problems = _problems(config, wanted, source)
    if problems:
        raise CheckpointError(problems)
    for name, place in tqdm(wanted.items(), desc="loading weights", unit=" tensors", disable=not progress):
        place.view.copy_(source.get(name))
    return weights


def _problems(config: ModelConfig, wanted: dict[str, Place], source: WeightSource) -> list[str]:
    names = set(source.names())
    unused = {name for name in names - wanted.keys() if not name.endswith(HARMLESS)}
    if config.tie_word_embeddings and LM_HEAD in unused and _is_copy_of_embedding(source, names):
        unused.remove(LM_HEAD)
    problems = [f"missing: {name}" for name in sorted(wanted.keys() - names)]
    problems += [f"unused: {name}" for name in sorted(unused)]
    for name in sorted(wanted.keys() & names):
        shape = source.shape(name)
        if shape != wanted[name].shape:
            problems.append(f"shape of {name}: {list(shape)}, expected {list(wanted[name].shape)}")
    return problems


def _is_copy_of_embedding(source: WeightSource, names: set[str]) -> bool:
    """A head that differs from the embedding it is tied to would be dropped silently."""
    return EMBEDDING in names and torch.equal(source.get(LM_HEAD), source.get(EMBEDDING))
