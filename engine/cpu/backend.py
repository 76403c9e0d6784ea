"""The CPU backend: one model on our native kernels for linears, attention, LoRA and sampling."""

import torch

from blora.adapters.cpu import CpuLoRA
from blora.adapters.device_pool import DevicePool

from ..attention.cpu import CpuAttention, check_shape
from ..errors import EngineStartError
from ..kernels.instruction_sets import INSTRUCTION_SETS
from ..kernels.library import DTYPES, Kernels, load_kernels
from ..memory.arena import Arena
from ..model.rope import rope_cache
from ..model.shard_group import ShardGroup
from ..model.targets import num_sites
from ..model.tensors import ModelTensors
from ..model_files.config import ModelConfig
from ..step.backend import Backend
from .decoder import CpuCausalLM
from .picker import CpuPicker
from .threads import StepThreads


def kernels_of(name: str) -> Kernels | None:
    """The native kernels of a backend; None: no build is installed. Raises EngineStartError where they may not run."""
    if name not in INSTRUCTION_SETS:
        return load_kernels()
    try:
        return load_kernels(name)
    except (ValueError, PermissionError) as error:
        raise EngineStartError(f"backend: {error}") from error


def find_obstacle(
    kernels: Kernels | None, config: ModelConfig, dtype: torch.dtype, block_size: int, num_shards: int
) -> str | None:
    """The reason why the native kernels cannot compute a model; None: they can."""
    if kernels is None:
        return "they were not built from these sources; install blora again, with a C++ compiler"
    if num_shards > 1:
        return f"they compute all layers in one call, and {num_shards} shards have to add up the results of each layer"
    try:
        check_shape(config, block_size)
    except ValueError as error:
        return str(error)
    widths = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    if any(width % 2 for width in widths):
        return "a layer has an odd number of inputs"
    return None if dtype in DTYPES else f"they compute in float32 and bfloat16, not in {type_name(dtype)}"


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def build_cpu(
    kernels: Kernels,
    config: ModelConfig,
    tensors: ModelTensors,
    arena: Arena,
    adapters: DevicePool,
    _alone: ShardGroup,
) -> Backend:
    cos, sin = rope_cache(config.rope, config.head_dim, config.max_position_embeddings)
    qk_norms = [layer.qk_norm for layer in tensors.layers if layer.qk_norm is not None]
    attention = CpuAttention(kernels, arena, config, cos, sin, qk_norms)
    lora = CpuLoRA(adapters, num_sites(config.num_layers))
    model = CpuCausalLM(kernels, config, tensors, attention)
    threads = StepThreads(kernels, torch.get_num_threads())  # the start has chosen the number
    return Backend(model, attention, lora, CpuPicker(kernels), threads=threads)
