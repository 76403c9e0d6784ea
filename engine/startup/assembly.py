"""Assembly: builds the parts that compute a step in one process, for the first shard or another one.

Knows no scheduler and no other process.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from blora.adapters.device_pool import DevicePool
from blora.scheduler import Limits, Step

from ..config import EngineConfig
from ..cuda.copies import CopiesBeside, PageCopier
from ..cuda.sizing import PageNeeds, choose_num_pages, graph_sizes, largest_step, measure
from ..errors import EngineStartError
from ..memory.arena import Arena, KVLayout
from ..memory.page_size import ITEM_BYTES, page_bytes_of
from ..model.loader import load_tensors
from ..model.meeting import Meeting
from ..model.shard import Shard, shards_of
from ..model.shard_group import ALONE, ConnectedGroup, MuteGroup, ShardGroup
from ..model.tensors import ModelTensors
from ..model_files.config import ModelConfig
from ..model_files.open_checkpoint import open_checkpoint
from ..model_files.read_config import load_model_config
from ..parallel.shards import NO_SHARDS, Shards
from ..step.backend import Backend, BackendChoice, StepGraphs
from ..step.copies import CopiesBefore, StepCopies
from ..step.runner import ModelRunner
from .choose_backend import UnservedType, choose_backend
from .cores import choose_num_threads

KV_DTYPES = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}  # option -> torch's name
logger = logging.getLogger(__name__)
SPARE_SHARE = 2  # a default arena has this many times the pages that all running requests can fill


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The part of a model that a shard will load, and the backend that will compute it."""

    config: EngineConfig
    model: Path
    whole: ModelConfig
    shard: Shard
    dtype: str
    choice: BackendChoice

    @property
    def kv_dtype(self) -> str:
        return KV_DTYPES.get(self.config.kv_cache_dtype, self.dtype)

    @property
    def page_bytes(self) -> int:
        return page_bytes_of(self.shard.config, self.kv_dtype, self.config.block_size, self.choice.layout)

    @property
    def num_weight_bytes(self) -> int:
        return self.shard.config.num_parameters * ITEM_BYTES[self.dtype]

    @property
    def max_model_len(self) -> int:
        """The limit of a request in tokens. Raises EngineStartError for an option outside the model's range."""
        limit, wished = self.whole.max_position_embeddings, self.config.max_model_len
        wanted = limit if wished is None else wished
        if not 2 <= wanted <= limit:
            raise EngineStartError(f"max_model_len: {wanted} is not between 2 and the model's limit, {limit}")
        return wanted

    @property
    def pages_per_row(self) -> int:
        """Pages of the longest row."""
        return -(-self.max_model_len // self.config.block_size)

    @property
    def num_useful_pages(self) -> int:
        return self.config.max_num_seqs * self.pages_per_row * SPARE_SHARE

    @property
    def limits(self) -> Limits:
        config = self.config
        return Limits(config.max_num_batched_tokens, config.max_num_seqs, self._is_timed, config.target_itl)

    @property
    def _is_timed(self) -> bool:
        """Whether the time of a step is limited, too. Chunks of prompts then depend on the clock."""
        if self.config.step_budget == "auto":
            return self.choice.is_batch_invariant or self.config.target_itl is not None
        return self.config.step_budget == "time"

    @property
    def num_copied_pages(self) -> int:
        """The most pages of adapters copied in one step."""
        return max(self.config.adapter_copy_bytes // self.page_bytes, 1)

    @property
    def graph_sizes(self) -> list[int]:
        """The numbers of rows to capture graphs for; empty with several shards, whose collectives are untested in a
        graph."""
        has_graphs = self.choice.prepare_graphs is not None and not self.config.enforce_eager
        return graph_sizes(self.config.max_num_seqs) if has_graphs and self.shard.size == 1 else []

    def load(self) -> "Assembly":
        """Loads the shard's tensors. Raises the errors of `load_tensors` and `open_checkpoint`."""
        started = time.monotonic()
        tensors = load_tensors(
            self.whole,
            open_checkpoint(self.model),
            getattr(torch, self.dtype),
            progress=self.shard.index == 0,
            device=self.choice.torch_device,
            shard=self.shard if self.shard.size > 1 else None,
        )
        logger.info("loaded %s in %.1f s", self.model, time.monotonic() - started)
        return Assembly(self, tensors)


def plan_shard(config: EngineConfig, model: Path, index: int) -> ShardPlan:
    """Returns the plan of one shard. Raises EngineStartError if the model cannot be split or computed as configured."""
    whole, size = load_model_config(model), config.tensor_parallel_size
    torch.set_num_threads(choose_num_threads(config.threads, size))
    shard = shards_of(whole, size)[index]
    dtype, choice = _choose(config, whole.dtype, shard)
    if config.kv_cache_dtype != "auto" and getattr(torch, KV_DTYPES[config.kv_cache_dtype]) not in choice.kv_dtypes:
        raise EngineStartError(f"kv_cache_dtype: {config.kv_cache_dtype} needs the backend cuda; use auto elsewhere")
    return ShardPlan(config, model, whole, shard, dtype, choice)


def _choose(config: EngineConfig, dtype_of_files: str, shard: Shard) -> tuple[str, BackendChoice]:
    """The data type and the backend. Only a type that keeps every value takes the place of that of the files."""
    choose = partial(choose_backend, config.backend, shard.config)
    dtype = dtype_of_files if config.dtype == "auto" else config.dtype
    try:
        return dtype, choose(getattr(torch, dtype), config.block_size, shard.index, shard.size)
    except UnservedType:
        if config.dtype != "auto":
            raise
    logger.warning(
        "the model is in %s, which the native kernels do not compute in: they compute in float32, with the same value "
        "of every weight and twice the memory; dtype=bfloat16 rounds the weights and keeps the memory",
        dtype,
    )
    return "float32", choose(torch.float32, config.block_size, shard.index, shard.size)


@dataclass(frozen=True, slots=True)
class Executor:
    """The parts that compute a step, and the memory that they compute in."""

    arena: Arena
    adapters: DevicePool
    copies: StepCopies
    backend: Backend
    runner: ModelRunner
    graphs: StepGraphs | None  # not captured yet

    def run(self, step: Step) -> object:
        return self.runner.execute(step)

    def capture(self, size: int) -> None:
        if self.graphs is not None:
            self.graphs.capture([size], progress=False)

    def capture_all(self, sizes: Sequence[int]) -> None:
        if self.graphs is not None and sizes:
            self.graphs.capture(sizes, progress=True)


@dataclass(frozen=True, slots=True)
class Assembly:
    """Builds an Executor around an arena: on a GPU once for a trial and once for good."""

    plan: ShardPlan
    tensors: ModelTensors

    def connect(self, meeting: Meeting | None, check_others: Callable[[], None] = lambda: None) -> ShardGroup:
        """Waits until all shards have met; returns their group.

        meeting: None if there is one shard. check_others: called while it waits; raises if a shard will not come.
        """
        shard = self.plan.shard
        if meeting is None:
            return ALONE
        return ConnectedGroup(shard.index, shard.size, meeting.open(), self.plan.choice.torch_device, check_others)

    def choose_num_pages(self, taken: int) -> int:
        """Returns the number of pages that fit on the GPU, by a trial of this shard. taken: bytes in use before the
        model was loaded. Raises EngineStartError."""
        plan, device = self.plan, self.plan.choice.device
        if device is None:
            raise ValueError("there is no GPU to be measured")
        step, num_trial_pages = largest_step(plan.limits, plan.config.block_size, plan.max_model_len)
        group = MuteGroup(plan.shard.index, plan.shard.size) if plan.shard.size > 1 else ALONE
        use = measure(
            device,
            taken,
            lambda: self.build(num_trial_pages, group),
            num_trial_pages * plan.page_bytes,
            step,
            plan.graph_sizes,
        )
        needs = PageNeeds(plan.page_bytes, plan.config.block_size, plan.num_useful_pages)
        return choose_num_pages(plan.config.memory, use, needs)

    def build(self, num_pages: int, group: ShardGroup, shards: Shards = NO_SHARDS) -> Executor:
        """num_pages: pages for requests and adapters. A GPU's arena has one more, for rows that only fill up a graph.
        shards: the other shards, which receive every step."""
        plan, choice = self.plan, self.plan.choice
        config, dtype, device = plan.shard.config, getattr(torch, plan.dtype), choice.device
        kv_dtype = getattr(torch, plan.kv_dtype)
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, plan.config.block_size, kv_dtype)
        arena = Arena(layout, num_pages + (device is not None), plan.page_bytes, choice.torch_device)
        if device is None:
            adapters = DevicePool(arena.pages, dtype, choice.layout)
            copies: StepCopies = CopiesBefore(adapters)
        else:
            copier = PageCopier(device, plan.page_bytes, plan.num_copied_pages)
            adapters = DevicePool(arena.pages, dtype, choice.layout, copier)
            copies = CopiesBeside(adapters, device, copier, shards)
        backend = choice.build(config, self.tensors, arena, adapters, group)
        if plan.config.seed is not None:  # every request has a seed then, and has to give the same tokens again
            backend = replace(backend, unseeded=None)
        graphs = None
        if choice.prepare_graphs is not None and plan.shard.size == 1:
            # A page that several rows share counts once for each, so all rows together may have more than num_pages.
            graphs = choice.prepare_graphs(backend, num_pages, plan.pages_per_row, 2 * num_pages)
        runner = ModelRunner(backend, adapters, copies, graphs, shards)
        return Executor(arena, adapters, copies, backend, runner, graphs)
