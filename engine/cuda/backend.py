"""The CUDA backend: one model on FlashInfer's attention, norms and sampling, and our LoRA kernels in Triton."""

import logging
from functools import partial
from typing import Any

import torch

from blora.adapters import Layout
from blora.adapters.device_pool import DevicePool

from ..attention.flashinfer import FP8, FlashInferAttention, check_shape
from ..errors import EngineStartError
from ..memory.arena import Arena
from ..model.decoder import CausalLM
from ..model.shard_group import ShardGroup
from ..model.targets import adapter_targets
from ..model.tensors import ModelTensors
from ..model_files.config import ModelConfig
from ..step.backend import Backend, BackendChoice, StepGraphs
from ..step.device import Device
from .device import CudaDevice
from .library import load_flashinfer
from .ops import FlashInferOps
from .picker import CudaPicker, CudaUnseededPicker

logger = logging.getLogger(__name__)


def choose_cuda(config: ModelConfig, dtype: torch.dtype, index: int = 0) -> BackendChoice:
    """Chooses the backend on one GPU.

    shard: the number of this process among those that share a model, and of its GPU.
    Raises EngineStartError if there is no such GPU, a package is missing, or the kernels cannot compute the model.
    """
    try:
        check_shape(config, dtype)
    except ValueError as error:
        raise EngineStartError(f"backend: FlashInfer's kernels cannot be used: {error}") from error
    flashinfer = load_flashinfer()
    device = open_device(index)
    logger.info("FlashInfer %s on %s", flashinfer.__version__, device.describe())
    build, graphs = partial(build_cuda, flashinfer, device), partial(prepare_graphs, device)
    return BackendChoice(build, Layout.GPU, device, graphs, kv_dtypes=FP8)


def open_device(index: int = 0) -> Device:
    """Raises EngineStartError if there is no such GPU."""
    return CudaDevice(index)


def prepare_graphs(
    device: Device, backend: Backend, scratch_page: int, pages_per_row: int, max_pages: int
) -> StepGraphs:
    from .graphs import DecodeGraphs

    return DecodeGraphs(device, backend, scratch_page, pages_per_row, max_pages)


def build_cuda(
    flashinfer: Any,
    device: Device,
    config: ModelConfig,
    tensors: ModelTensors,
    arena: Arena,
    adapters: DevicePool,
    group: ShardGroup,
) -> Backend:
    from blora.adapters.triton.lora import TritonLoRA

    attention = FlashInferAttention(flashinfer, arena, config, adapters.dtype, device.send)
    attention.warm_up()
    lora = TritonLoRA(adapters, adapter_targets(config), device.send)
    lora.warm_up()
    model = CausalLM(config, tensors, attention, lora, FlashInferOps(flashinfer, config, arena.pages.device), group)
    unseeded = CudaUnseededPicker(flashinfer.sampling, device.send)
    return Backend(model, attention, lora, CudaPicker(), unseeded, device.send)
