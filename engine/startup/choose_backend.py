"""Chooses the backend that computes a model: "cuda", "cpu" or "reference".

Imports modules that only a GPU needs when it chooses "cuda", and not before.
"""

import logging

import torch

from blora.adapters.device_pool import DevicePool
from blora.adapters.reference import ReferenceLoRA

from ..attention.reference import ReferenceAttention
from ..cpu.backend import build_cpu, find_obstacle, kernels_of, type_name
from ..cuda.device import has_gpu
from ..errors import EngineStartError
from ..kernels.library import Kernels
from ..memory.arena import Arena
from ..model.decoder import CausalLM
from ..model.ops import TorchOps
from ..model.shard_group import ShardGroup
from ..model.tensors import ModelTensors
from ..model_files.config import ModelConfig
from ..step.backend import Backend, BackendChoice
from ..step.sampler import TORCH_PICKER

logger = logging.getLogger(__name__)


class UnservedType(EngineStartError):
    """The native kernels could compute this model, but not in this data type."""


def choose_backend(
    name: str, config: ModelConfig, dtype: torch.dtype, block_size: int, shard_index: int = 0, num_shards: int = 1
) -> BackendChoice:
    """Returns the chosen backend. name: "cuda", "cpu", an instruction set for that build of the native kernels,
    "reference", or "auto" for the first of them that works. config: the configuration of one shard's part of the
    model. Raises EngineStartError if the named backend cannot be used, UnservedType for a data type that nobody but
    the user can replace by another."""
    if name == "reference":
        return BackendChoice(_build_reference)
    if name == "cuda":
        return _choose_cuda(config, dtype, shard_index)
    if name == "auto" and has_gpu():
        try:
            return _choose_cuda(config, dtype, shard_index)
        except EngineStartError as error:
            logger.warning("there is a GPU, but it is not used: %s", error)
    return _choose_cpu(name, config, dtype, block_size, num_shards)


def _choose_cuda(config: ModelConfig, dtype: torch.dtype, shard_index: int) -> BackendChoice:
    from ..cuda.backend import choose_cuda

    return choose_cuda(config, dtype, shard_index)


def _choose_cpu(name: str, config: ModelConfig, dtype: torch.dtype, block_size: int, num_shards: int) -> BackendChoice:
    kernels = kernels_of(name)
    obstacle = find_obstacle(kernels, config, dtype, block_size, num_shards)
    if kernels is not None and obstacle is not None:
        _check_type(kernels, config, dtype, block_size, num_shards)
    if kernels is not None and obstacle is None:
        logger.info("native kernels: %s", kernels.instruction_set)
        return BackendChoice(lambda *parts: build_cpu(kernels, *parts), is_batch_invariant=True)
    if name != "auto":
        raise EngineStartError(f"backend: the native kernels cannot be used: {obstacle}; use auto or reference")
    logger.warning("falling back to the reference kernels, which are many times slower: %s", obstacle)
    return BackendChoice(_build_reference)


def _check_type(kernels: Kernels, config: ModelConfig, dtype: torch.dtype, block_size: int, num_shards: int) -> None:
    """Raises UnservedType when only the data type keeps the native kernels from computing a model."""
    if find_obstacle(kernels, config, torch.float32, block_size, num_shards) is None:
        raise UnservedType(
            f"dtype: the native kernels compute in float32 and bfloat16, not in {type_name(dtype)}. Choose one: "
            "dtype=float32 keeps the value of every weight, in twice the memory; dtype=bfloat16 rounds the weights, in "
            f"the same memory; backend=reference computes in {type_name(dtype)}, many times slower"
        )


def _build_reference(
    config: ModelConfig, tensors: ModelTensors, arena: Arena, adapters: DevicePool, group: ShardGroup
) -> Backend:
    attention = ReferenceAttention(arena, config.num_heads, config.head_dim**-0.5)
    lora = ReferenceLoRA(adapters)
    model = CausalLM(config, tensors, attention, lora, TorchOps(config), group)
    return Backend(model, attention, lora, TORCH_PICKER)
