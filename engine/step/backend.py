"""The types of a backend: the parts that a step uses, and the facts that a start needs before it builds them.

Names no implementation: `cpu/` and `cuda/` build theirs, `startup/choose_backend.py` chooses one.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    vocab_size: int  # the base model's

    def forward(self, batch: ForwardBatch) -> Tensor: ...

    def compute_logits(self, hidden: Tensor, lora: LoRAMetadata | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A model, the planners of its steps, and the pickers of tokens from its logits."""

    model: Model
    attention: AttentionPlanner
    lora: LoRAPlanner
    picker: Picker
    unseeded: UnseededPicker | None = None  # draws for rows without a seed, if the backend has a faster way
    send: Send = on_host  # copies the integers of a step to the model's device
    threads: AbstractContextManager[None] = nullcontext()  # around each step, one after the other


class StepGraphs(Protocol):
    """Steps that were captured before; each is launched as a whole."""

    def capture(self, sizes: Iterable[int], progress: bool) -> None:
        """Captures one graph for each size. sizes: numbers of rows. progress: shows a bar on stderr."""

    def run(self, rows: Sequence[ScheduledRow], adapter_pages: Mapping[str, Sequence[int]]) -> Tensor | None:
        """Returns the logits of the rows, [num_rows, vocab_size] float32; or None, with nothing launched, if no graph
        fits the step. rows, adapter_pages: as for `build_batch`."""


BuildBackend = Callable[[ModelConfig, ModelTensors, Arena, DevicePool, ShardGroup], Backend]


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A chosen backend, and the facts about it that are needed before an arena and a model exist to build it from."""

    build: BuildBackend
    layout: Layout = Layout.CPU  # how adapters lie in a page
    device: Device | None = None  # where the arena and the model are; None is the CPU's memory
    # Arguments: the backend, a page that no request gets, the pages of the longest row, those of all rows of a step.
    prepare_graphs: Callable[[Backend, int, int, int], StepGraphs] | None = None
    is_batch_invariant: bool = False  # whether a row's bits do not depend on how its prompt is cut, nor on other rows
    kv_dtypes: Collection[torch.dtype] = ()  # data types that KV may have instead of the model's

    @property
    def torch_device(self) -> torch.device:
        return CPU if self.device is None else self.device.torch_device
