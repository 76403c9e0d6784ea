"""The types of a backend: what a step needs of one, and what a start has to know before it builds one.

Names no implementation: `cpu/` and `cuda/` build theirs, `startup/choose_backend.py` chooses.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from blora.adapters import Layout
from blora.adapters.device_pool import DevicePool
from blora.adapters.lora import LoRAMetadata, LoRAPlanner, Send, on_host
from blora.scheduler import ScheduledRow

from ..attention.base import AttentionPlanner
from ..memory.arena import CPU, Arena
from ..model.batch import ForwardBatch
from ..model.shard_group import ShardGroup
from ..model.tensors import ModelTensors
from ..model_files.config import ModelConfig
from .device import Device
from .sampler import Picker, UnseededPicker


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


BuildBackend = Callable[[ModelConfig, ModelTensors, Arena, DevicePool, ShardGroup], Backend]


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend, and what has to be known before there is an arena and a model to build it from."""

    build: BuildBackend
    layout: Layout = Layout.CPU  # of adapters
    device: Device | None = None  # of the arena and the weights; None is the CPU's memory
    # Of a backend, a page that no request has, the pages of the longest row and of all rows of a step.
    prepare_graphs: Callable[[Backend, int, int, int], StepGraphs] | None = None
    kv_dtypes: Collection[torch.dtype] = ()  # that KV may have instead of the model's

    @property
    def torch_device(self) -> torch.device:
        return CPU if self.device is None else self.device.torch_device
