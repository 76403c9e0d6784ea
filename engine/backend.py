"""Which kernels a model runs on: builds the model with its attention and LoRA, for one choice of backend.

What only a GPU needs is imported when its backend is chosen, and not before.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from blora.adapters import Layout
from blora.adapters.cpu import CpuLoRA
from blora.adapters.device_pool import DevicePool
from blora.adapters.lora import LoRAMetadata, LoRAPlanner, Send, on_host
from blora.adapters.reference import ReferenceLoRA
from blora.scheduler import ScheduledRow

from .attention.base import AttentionPlanner
from .attention.cpu import CpuAttention, check_shape
from .attention.reference import ReferenceAttention
from .cuda.device import Device, has_gpu
from .errors import EngineStartError
from .kernels.decoder import CpuCausalLM
from .kernels.instruction_sets import INSTRUCTION_SETS
from .kernels.library import DTYPES, Kernels, load_kernels
from .kernels.picker import CpuPicker
from .memory.arena import CPU, Arena
from .model.batch import ForwardBatch
from .model.decoder import CausalLM
from .model.ops import TorchOps
from .model.rank_group import RankGroup
from .model.rope import rope_cache
from .model.targets import num_sites
from .model.weights import ModelWeights
from .model_files.config import ModelConfig
from .sampler import TORCH_PICKER, Picker, UnseededPicker

logger = logging.getLogger(__name__)


class Model(Protocol):
    vocab_size: int  # of the base model

    def forward(self, batch: ForwardBatch) -> Tensor: ...

    def compute_logits(self, hidden: Tensor, lora: LoRAMetadata | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A model, what plans its steps, and what picks tokens from its logits."""

    model: Model
    attention: AttentionPlanner
    lora: LoRAPlanner
    picker: Picker
    unseeded: UnseededPicker | None = None  # draws for rows without a seed, where it has a faster way
    send: Send = on_host  # the integers of a step, to where the model is


class StepGraphs(Protocol):
    """Steps that were captured before and are launched whole."""

    def capture(self, sizes: Iterable[int], progress: bool) -> None:
        """sizes: numbers of rows. progress: shows a bar on stderr."""

    def run(self, rows: Sequence[ScheduledRow], adapter_pages: Mapping[str, Sequence[int]]) -> Tensor | None:
        """The logits of the rows: [num_rows, vocab_size] float32; None, with nothing launched, for a step that no graph
        holds. rows, adapter_pages: as `build_batch` takes them."""


BuildBackend = Callable[[ModelConfig, ModelWeights, Arena, DevicePool, RankGroup], Backend]


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend, and what has to be known before there is an arena and a model to build it from."""

    build: BuildBackend
    layout: Layout = Layout.VECTORS  # of adapters
    device: Device | None = None  # of the arena and the weights; None is the CPU's memory
    # Of a backend, a page that no request has, the pages of the longest row and of all rows of a step.
    prepare_graphs: Callable[[Backend, int, int, int], StepGraphs] | None = None
    kv_dtypes: Collection[torch.dtype] = ()  # that KV may have instead of the model's

    @property
    def torch_device(self) -> torch.device:
        return CPU if self.device is None else self.device.torch_device


def choose_backend(
    name: str, config: ModelConfig, dtype: torch.dtype, block_size: int, rank: int = 0, num_ranks: int = 1
) -> BackendChoice:
    """name: "cuda", "cpu", an instruction set for that build of the native kernels, "reference", or "auto" for the
    first of them that can be used. config: of what a rank has of the model. Raises EngineStartError."""
    if name == "reference":
        return BackendChoice(_build_reference)
    if name == "cuda":
        return _choose_cuda(config, dtype, rank)
    if name == "auto" and has_gpu():
        try:
            return _choose_cuda(config, dtype, rank)
        except EngineStartError as error:
            logger.warning("there is a GPU, but it is not used: %s", error)
    return _choose_cpu(name, config, dtype, block_size, num_ranks)


def _choose_cuda(config: ModelConfig, dtype: torch.dtype, rank: int) -> BackendChoice:
    from .cuda.backend import choose_cuda

    return choose_cuda(config, dtype, rank)


def _choose_cpu(name: str, config: ModelConfig, dtype: torch.dtype, block_size: int, num_ranks: int) -> BackendChoice:
    kernels = kernels_of(name)
    obstacle = _obstacle(kernels, config, dtype, block_size, num_ranks)
    if kernels is not None and obstacle is None:
        logger.info("native kernels: %s", kernels.instruction_set)
        return BackendChoice(lambda *parts: _build_cpu(kernels, *parts))
    if name != "auto":
        raise EngineStartError(f"backend: the native kernels cannot be used: {obstacle}")
    logger.warning("falling back to the reference kernels, which are many times slower: %s", obstacle)
    return BackendChoice(_build_reference)


def kernels_of(name: str) -> Kernels | None:
    """The native kernels of a backend, None where there is no build. Raises EngineStartError where they may not run."""
    if name not in INSTRUCTION_SETS:
        return load_kernels()
    try:
        return load_kernels(name)
    except (ValueError, PermissionError) as error:
        raise EngineStartError(f"backend: {error}") from error


def _obstacle(
    kernels: Kernels | None, config: ModelConfig, dtype: torch.dtype, block_size: int, num_ranks: int
) -> str | None:
    if kernels is None:
        return "they were not built from these sources; install blora again, with a C++ compiler"
    if dtype not in DTYPES:
        return f"they compute in float32 and bfloat16, not in {str(dtype).removeprefix('torch.')}"
    if num_ranks > 1:
        return f"they compute all layers in one call, and {num_ranks} ranks have to add up what each layer gives"
    try:
        check_shape(config, block_size)
    except ValueError as error:
        return str(error)
    widths = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    return None if all(width % 2 == 0 for width in widths) else "a layer has an odd number of inputs"


def _build_reference(
    config: ModelConfig, weights: ModelWeights, arena: Arena, adapters: DevicePool, group: RankGroup
) -> Backend:
    attention = ReferenceAttention(arena, config.num_heads, config.head_dim**-0.5)
    lora = ReferenceLoRA(adapters)
    model = CausalLM(config, weights, attention, lora, TorchOps(config), group)
    return Backend(model, attention, lora, TORCH_PICKER)


def _build_cpu(
    kernels: Kernels,
    config: ModelConfig,
    weights: ModelWeights,
    arena: Arena,
    adapters: DevicePool,
    _alone: RankGroup,
) -> Backend:
    cos, sin = rope_cache(config.rope, config.head_dim, config.max_position_embeddings)
    qk_norms = [layer.qk_norm for layer in weights.layers if layer.qk_norm is not None]
    attention = CpuAttention(kernels, arena, config, cos, sin, qk_norms)
    lora = CpuLoRA(adapters, num_sites(config.num_layers))
    return Backend(CpuCausalLM(kernels, config, weights, attention), attention, lora, CpuPicker(kernels))
