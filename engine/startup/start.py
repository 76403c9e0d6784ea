"""Builds an engine core from a configuration: sizes the arena, loads the model, joins the parts."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from blora.adapters import Layout, ModuleParts
from blora.scheduler import AdapterResidency, BlockPool, Fairness, KVManager, Scheduler

from ..config import EngineConfig
from ..errors import EngineStartError
from ..facts import Facts
from ..memory.budget import is_fraction, parse_memory, usable_memory
from ..model.rank_group import RankGroup
from ..model.shard import module_parts
from ..model_files.config import ModelConfig
from ..parallel.shards import Ranks, start_ranks
from ..step.backend import BackendChoice
from ..step.core import EngineCore
from .assembly import Assembly, Parts, ShardPlan, plan_shard

logger = logging.getLogger(__name__)
DEFAULT_SHARE = 0.5  # share of the host's free memory, which other processes need, too


@dataclass(frozen=True)
class StartedEngine:
    core: EngineCore
    model_config: ModelConfig
    facts: Facts
    dtype: str
    page_bytes: int
    layout: Layout  # how adapters lie in a page
    ranks: Ranks

    @cached_property
    def parts(self) -> tuple[ModuleParts, ...]:
        """Each rank's parts of the modules, which adapters are packed for; empty if the model is in one process."""
        return module_parts(self.model_config, self.ranks.size)


def start_engine(config: EngineConfig, model: Path) -> StartedEngine:
    """Starts the engine. model: a folder or a .gguf file. Raises EngineStartError for too little memory, and the errors
    of loading a model."""
    plan = plan_shard(config, model, 0)
    max_model_len, device = plan.max_model_len, plan.choice.device
    num_pages = 0
    if device is None:  # a model that cannot fit is refused before it is read
        num_pages = _num_pages(plan)
    taken = 0 if device is None else device.memory().taken
    ranks = start_ranks(config.tensor_parallel_size)
    try:
        ranks.load(replace(config, backend=_name_of(plan.choice)), model)
        assembly = plan.load()
        ranks.wait_until_loaded()
        group = _connect(assembly, ranks)
        ranks.attach(group)
        if device is not None:  # comes after the group is connected, because that takes memory of the GPU
            num_pages = assembly.choose_num_pages(taken)
        ranks.build(num_pages)
        parts = assembly.build(num_pages, group, ranks)
        ranks.wait_until_ready()
        parts.capture_all(plan.graph_sizes)
    except BaseException:
        ranks.close()
        raise
    page_bytes = plan.page_bytes
    logger.info("%d pages of %d bytes (%.2f GiB)", num_pages, page_bytes, num_pages * page_bytes / (1 << 30))
    core = _make_core(plan, parts, num_pages, ranks)
    facts = Facts(plan.whole.vocab_size, max_model_len, config.block_size, num_pages)
    return StartedEngine(core, plan.whole, facts, plan.dtype, page_bytes, plan.choice.layout, ranks)


def _make_core(plan: ShardPlan, parts: Parts, num_pages: int, ranks: Ranks) -> EngineCore:
    config, pool = plan.config, BlockPool(num_pages)
    residency = AdapterResidency(pool, plan.num_copied_pages, parts.copies.is_beside)
    kv = KVManager(pool, config.block_size, config.enable_prefix_caching)
    fairness = Fairness(config.max_passed_over)
    scheduler = Scheduler(plan.limits, pool, kv, residency, config.scheduling_policy, fairness)
    return EngineCore(parts.arena, scheduler, residency, parts.adapters, parts.runner, ranks)


def _connect(assembly: Assembly, ranks: Ranks) -> RankGroup:
    """Returns the group of all ranks. Raises EngineStartError if a rank does not come."""
    try:
        return assembly.connect(ranks.store, ranks.check_coming)
    except RuntimeError as error:
        ranks.check_coming()
        raise EngineStartError(f"the ranks did not find each other: {error}") from error


def _name_of(choice: BackendChoice) -> str:
    """Returns the name of the chosen backend for the other ranks. Only the first rank resolves "auto", because ranks
    with different backends would not fit together."""
    return "reference" if choice.device is None else "cuda"


def _num_pages(plan: ShardPlan) -> int:
    """Returns the pages that a rank's budget pays for. A fraction counts from the memory left beside the weights, and
    gives no more pages than all requests can use."""
    usable = max(usable_memory() // plan.shard.size - plan.num_weight_bytes, 0)
    wish = DEFAULT_SHARE if plan.config.memory is None else plan.config.memory
    budget = parse_memory(wish, usable)
    if is_fraction(wish):
        budget = min(budget, plan.num_useful_pages * plan.page_bytes)
    if not 2 * plan.page_bytes <= budget <= usable:
        raise EngineStartError(
            f"memory: {budget} bytes is not between two pages ({2 * plan.page_bytes}) and the free memory ({usable})"
        )
    return budget // plan.page_bytes
