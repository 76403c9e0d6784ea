"""Builds an engine core from a configuration: sizes the arena, loads the model, joins the parts."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from blora.adapters import Layout
from blora.adapters.device_pool import DevicePool
from blora.scheduler import AdapterResidency, BlockPool, Fairness, KVManager, Limits, Scheduler, Step

from .arena import Arena, KVLayout
from .backend import BackendChoice, StepGraphs, choose_backend
from .config import EngineConfig
from .copies import CopiesBefore, StepCopies
from .core import EngineCore
from .cuda.copies import CopiesBeside, PageCopier
from .cuda.sizing import PageNeeds, choose_num_pages, graph_sizes, largest_step, measure
from .errors import EngineStartError
from .memory import is_fraction, parse_memory, usable_memory
from .model.checkpoint import open_checkpoint
from .model.config import ModelConfig, load_model_config
from .model.loader import load_weights
from .model.weights import ModelWeights
from .page_size import page_bytes_of
from .runner import ModelRunner
from .validator import Facts

logger = logging.getLogger(__name__)
DEFAULT_SHARE = 0.5  # of the memory that is left on the host, which others need, too
SPARE_SHARE = 2  # a default arena has room for this many times what all running requests can fill


@dataclass(frozen=True, slots=True)
class StartedEngine:
    core: EngineCore
    model_config: ModelConfig
    facts: Facts
    dtype: str
    page_bytes: int
    layout: Layout  # of adapters


def start_engine(config: EngineConfig, model: Path) -> StartedEngine:
    """model: a folder or a .gguf file. Raises EngineStartError for too little memory, and what loading raises."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model_config = load_model_config(model)
    dtype_name = model_config.dtype if config.dtype == "auto" else config.dtype
    dtype = getattr(torch, dtype_name)
    choice = choose_backend(config.backend, model_config, dtype, config.block_size)
    page_bytes = page_bytes_of(model_config, dtype_name, config.block_size, choice.layout)
    max_model_len = _max_model_len(config, model_config)
    num_useful = config.max_num_seqs * -(-max_model_len // config.block_size) * SPARE_SHARE
    limits = Limits(config.max_num_batched_tokens, config.max_num_seqs)
    num_pages = 0
    if choice.device is None:  # what cannot fit is refused before it is read
        num_pages = _num_pages(config.memory, page_bytes, num_useful, model_config.num_parameters * dtype.itemsize)
    taken = 0 if choice.device is None else choice.device.memory().taken
    started = time.monotonic()
    weights = load_weights(model_config, open_checkpoint(model), dtype, progress=True, device=choice.torch_device)
    logger.info("loaded %s in %.1f s", model, time.monotonic() - started)
    assembly = Assembly(
        choice, model_config, weights, dtype, config.block_size, page_bytes, config.adapter_copy_bytes, max_model_len
    )
    sizes: list[int] = []
    if choice.device is not None:
        sizes = [] if config.enforce_eager else graph_sizes(config.max_num_seqs)
        step, num_trial_pages = largest_step(limits, config.block_size, max_model_len)
        use = measure(
            choice.device, taken, lambda: assembly.build(num_trial_pages), num_trial_pages * page_bytes, step, sizes
        )
        num_pages = choose_num_pages(config.memory, use, PageNeeds(page_bytes, config.block_size, num_useful))
    parts = assembly.build(num_pages)
    parts.capture_all(sizes)
    logger.info("%d pages of %d bytes (%.2f GiB)", num_pages, page_bytes, num_pages * page_bytes / (1 << 30))
    pool = BlockPool(num_pages)
    residency = AdapterResidency(pool, assembly.num_copied_pages, parts.copies.is_beside)
    kv = KVManager(pool, config.block_size, config.enable_prefix_caching)
    scheduler = Scheduler(limits, pool, kv, residency, config.scheduling_policy, Fairness(config.max_passed_over))
    facts = Facts(model_config.vocab_size, max_model_len, config.block_size, num_pages)
    core = EngineCore(parts.arena, scheduler, residency, parts.adapters, parts.runner)
    return StartedEngine(core, model_config, facts, dtype_name, page_bytes, parts.adapters.layout)


@dataclass(frozen=True, slots=True)
class Parts:
    """What computes a step, and where."""

    arena: Arena
    adapters: DevicePool
    copies: StepCopies
    runner: ModelRunner
    graphs: StepGraphs | None  # none of which is captured yet

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
    """Puts parts together around an arena: on a GPU once for a trial, and once for good."""

    choice: BackendChoice
    model_config: ModelConfig
    weights: ModelWeights
    dtype: torch.dtype
    block_size: int  # tokens
    page_bytes: int
    copy_bytes: int  # of adapters, in one step, at most
    max_model_len: int

    @property
    def num_copied_pages(self) -> int:
        return max(self.copy_bytes // self.page_bytes, 1)

    def build(self, num_pages: int) -> Parts:
        """num_pages: for requests and adapters. A GPU's arena has one more, for rows that only fill up a graph."""
        config, device = self.model_config, self.choice.device
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, self.block_size, self.dtype)
        arena = Arena(layout, num_pages + (device is not None), self.page_bytes, self.choice.torch_device)
        if device is None:
            adapters = DevicePool(arena.pages, self.dtype, self.choice.layout)
            copies: StepCopies = CopiesBefore(adapters)
        else:
            copier = PageCopier(device, self.page_bytes, self.num_copied_pages)
            adapters = DevicePool(arena.pages, self.dtype, self.choice.layout, copier)
            copies = CopiesBeside(adapters, device, copier)
        backend = self.choice.build(config, self.weights, arena, adapters)
        graphs = None
        if self.choice.prepare_graphs is not None:
            pages_per_row = -(-self.max_model_len // self.block_size)
            # Pages that rows share are counted for each.
            graphs = self.choice.prepare_graphs(backend, num_pages, pages_per_row, 2 * num_pages)
        return Parts(arena, adapters, copies, ModelRunner(backend, adapters, copies, graphs), graphs)


def _max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    limit = model_config.max_position_embeddings
    wanted = limit if config.max_model_len is None else config.max_model_len
    if not 2 <= wanted <= limit:
        raise EngineStartError(f"max_model_len: {wanted} is not between 2 and the model's {limit}")
    return wanted


def _num_pages(memory: int | float | str | None, page_bytes: int, num_useful: int, num_weight_bytes: int) -> int:
    """Pages that the budget pays for. A fraction is of what is left beside the weights, and no more than is of use."""
    usable = max(usable_memory() - num_weight_bytes, 0)
    wish = DEFAULT_SHARE if memory is None else memory
    budget = parse_memory(wish, usable)
    if is_fraction(wish):
        budget = min(budget, num_useful * page_bytes)
    if not 2 * page_bytes <= budget <= usable:
        raise EngineStartError(
            f"memory: {budget} bytes is not between two pages ({2 * page_bytes}) and what is left ({usable})"
        )
    return budget // page_bytes
