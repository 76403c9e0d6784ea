"""Builds an engine core from a configuration: sizes the arena, loads the model, joins the parts."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from blora.adapters import Layout
from blora.adapters.device_pool import DevicePool
from blora.scheduler import AdapterResidency, BlockPool, Fairness, KVManager, Limits, Scheduler

from .arena import Arena, KVLayout
from .backend import BackendChoice, choose_backend
from .config import EngineConfig
from .copies import CopiesBefore, StepCopies
from .core import EngineCore
from .cuda.copies import CopiesBeside, PageCopier
from .errors import EngineStartError
from .memory import is_fraction, parse_memory, usable_memory
from .model.checkpoint import open_checkpoint
from .model.config import ModelConfig, load_model_config
from .model.loader import load_weights
from .page_size import page_bytes_of
from .runner import ModelRunner
from .validator import Facts

logger = logging.getLogger(__name__)
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
    layout = KVLayout(
        model_config.num_layers, model_config.num_kv_heads, model_config.head_dim, config.block_size, dtype
    )
    page_bytes = page_bytes_of(model_config, dtype_name, config.block_size, choice.layout)
    max_model_len = _max_model_len(config, model_config)
    num_weight_bytes = model_config.num_parameters * dtype.itemsize
    num_pages = _num_pages(config, page_bytes, max_model_len, num_weight_bytes)
    arena = Arena(layout, num_pages, page_bytes, choice.torch_device)
    num_copied_pages = max(config.adapter_copy_bytes // page_bytes, 1)
    adapters, copies = _adapters(choice, arena, dtype, num_copied_pages)
    started = time.monotonic()
    weights = load_weights(model_config, open_checkpoint(model), dtype, progress=True, device=choice.torch_device)
    runner = ModelRunner(choice.build(model_config, weights, arena, adapters), adapters, copies)
    logger.info("loaded %s in %.1f s", model, time.monotonic() - started)
    logger.info("%d pages of %d bytes (%.2f GiB)", num_pages, page_bytes, num_pages * page_bytes / (1 << 30))
    pool = BlockPool(num_pages)
    residency = AdapterResidency(pool, num_copied_pages, copies.is_beside)
    kv = KVManager(pool, config.block_size, config.enable_prefix_caching)
    limits = Limits(config.max_num_batched_tokens, config.max_num_seqs)
    scheduler = Scheduler(limits, pool, kv, residency, config.scheduling_policy, Fairness(config.max_passed_over))
    facts = Facts(model_config.vocab_size, max_model_len, config.block_size, num_pages)
    core = EngineCore(arena, scheduler, residency, adapters, runner)
    return StartedEngine(core, model_config, facts, dtype_name, page_bytes, adapters.layout)


def _adapters(
    choice: BackendChoice, arena: Arena, dtype: torch.dtype, num_copied_pages: int
) -> tuple[DevicePool, StepCopies]:
    """num_copied_pages: in one step, at most."""
    device = choice.device
    if device is None:
        pool = DevicePool(arena.pages, dtype, choice.layout)
        return pool, CopiesBefore(pool)
    copier = PageCopier(device, arena.page_bytes, num_copied_pages)
    pool = DevicePool(arena.pages, dtype, choice.layout, copier)
    return pool, CopiesBeside(pool, device, copier)


def _max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    limit = model_config.max_position_embeddings
    wanted = limit if config.max_model_len is None else config.max_model_len
    if not 2 <= wanted <= limit:
        raise EngineStartError(f"max_model_len: {wanted} is not between 2 and the model's {limit}")
    return wanted


def _num_pages(config: EngineConfig, page_bytes: int, max_model_len: int, num_weight_bytes: int) -> int:
    """Pages that the budget pays for. A fraction is of what is left beside the weights, and no more than is of use."""
    usable = max(usable_memory() - num_weight_bytes, 0)
    budget = parse_memory(config.memory, usable)
    if is_fraction(config.memory):
        num_useful = config.max_num_seqs * -(-max_model_len // config.block_size) * SPARE_SHARE
        budget = min(budget, num_useful * page_bytes)
    if not 2 * page_bytes <= budget <= usable:
        raise EngineStartError(
            f"memory: {budget} bytes is not between two pages ({2 * page_bytes}) and what is left ({usable})"
        )
    return budget // page_bytes
