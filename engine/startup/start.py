"""Builds an engine core from a configuration: sizes the arena, loads the model, and joins the parts that execute its
steps."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from blora.adapters import Layout, ModuleCuts
from blora.scheduler import AdapterResidency, BlockPool, Fairness, KVManager, Scheduler

from ..config import EngineConfig
from ..errors import EngineStartError
from ..facts import Facts
from ..ipc.logbook import Logbook
from ..memory.budget import is_fraction, parse_memory, usable_memory
from ..model.shard import module_cuts
from ..model.shard_group import ShardGroup
from ..model_files.config import ModelConfig
from ..parallel.shards import Shards, start_shards
from ..step.backend import BackendChoice
from ..step.core import EngineCore
from ..step.expectation import NO_EXPECTATION, Expectation
from .assembly import Assembly, Executor, ShardPlan, plan_shard

logger = logging.getLogger(__name__)
COMPILING = 12.0  # seconds that a GPU's kernels may take to compile, when a step first uses them
DEFAULT_SHARE = 0.5  # share of the host's free memory, which other processes need, too


@dataclass(frozen=True)
class StartedEngine:
    core: EngineCore
    model_config: ModelConfig
    facts: Facts
    dtype: str
    page_bytes: int
    layout: Layout  # how adapters lie in a page
    shards: Shards

    @cached_property
    def cuts(self) -> tuple[ModuleCuts, ...]:
        """Each shard's parts of the modules, which adapters are packed for; empty if the model is in one process."""
        return module_cuts(self.model_config, self.shards.size)


def start_engine(config: EngineConfig, model: Path, logbook: Logbook | None = None) -> StartedEngine:
    """Starts the engine. model: a folder or a .gguf file. logbook: where it notes what it is at. Raises
    EngineStartError for too little memory, and the errors of loading a model."""
    plan = plan_shard(config, model, 0)
    max_model_len, device = plan.max_model_len, plan.choice.device
    num_pages = 0
    if device is None:  # a model that cannot fit is refused before it is read
        num_pages = _num_pages(plan)
        _check_longest(plan, num_pages)
    taken = 0 if device is None else device.memory().taken
    shards = start_shards(config.tensor_parallel_size)
    try:
        shards.load(replace(config, backend=_name_of(plan.choice)), model)
        assembly = plan.load()
        shards.wait_until_loaded()
        group = _connect(assembly, shards)
        shards.attach(group)
        if device is not None:  # comes after the group is connected, because that takes memory of the GPU
            num_pages = assembly.choose_num_pages(taken)
            _check_longest(plan, num_pages)
        shards.build(num_pages)
        executor = assembly.build(num_pages, group, shards)
        shards.wait_until_ready()
        executor.capture_all(plan.graph_sizes)
    except BaseException:
        shards.close()
        raise
    page_bytes = plan.page_bytes
    logger.info("%d pages of %d bytes (%.2f GiB)", num_pages, page_bytes, num_pages * page_bytes / (1 << 30))
    core = make_core(plan, executor, num_pages, shards, logbook=logbook, expectation=_expectation(plan))
    facts = Facts(plan.whole.vocab_size, max_model_len, config.block_size, num_pages)
    return StartedEngine(core, plan.whole, facts, plan.dtype, page_bytes, plan.choice.layout, shards)


def _check_longest(plan: ShardPlan, num_pages: int) -> None:
    """Says whether the longest request fits. Raises EngineStartError where its length was asked for."""
    if plan.pages_per_row <= num_pages:
        return
    length, fitting = plan.max_model_len, num_pages * plan.config.block_size
    told = f"a request of {length} tokens needs {plan.pages_per_row} pages, and the memory has {num_pages}"
    if plan.config.max_model_len is not None:
        raise EngineStartError(f"max_model_len: {told}: raise memory, or set max_model_len to {fitting}")
    logger.warning("%s: longer requests than %d tokens are refused; raise memory to serve them", told, fitting)


def make_core(
    plan: ShardPlan,
    executor: Executor,
    num_pages: int,
    shards: Shards,
    now: Callable[[], float] = time.monotonic,
    logbook: Logbook | None = None,
    expectation: Expectation = NO_EXPECTATION,
) -> EngineCore:
    """Joins the parts that decide with those that execute."""
    config, pool = plan.config, BlockPool(num_pages)
    residency = AdapterResidency(pool, plan.num_copied_pages, executor.copies.is_beside)
    kv = KVManager(pool, config.block_size, config.enable_prefix_caching)
    fairness = Fairness(config.max_passed_over)
    scheduler = Scheduler(plan.limits, pool, kv, residency, config.scheduling_policy, fairness)
    pool_and_runner = executor.adapters, executor.runner
    return EngineCore(executor.arena, scheduler, residency, *pool_and_runner, shards, now, logbook, expectation)


def _expectation(plan: ShardPlan) -> Expectation:
    return Expectation(plan.num_weight_bytes, 0.0 if plan.choice.device is None else COMPILING)


def _connect(assembly: Assembly, shards: Shards) -> ShardGroup:
    """Returns the group of all shards. Raises EngineStartError if a shard does not come."""
    try:
        return assembly.connect(shards.meeting, shards.check_coming)
    except RuntimeError as error:
        shards.check_coming()
        raise EngineStartError(f"the shards did not find each other: {error}") from error


def _name_of(choice: BackendChoice) -> str:
    """Returns the name of the chosen backend for the other shards. Only the first shard resolves "auto", because shards
    with different backends would not fit together."""
    return "reference" if choice.device is None else "cuda"


def _num_pages(plan: ShardPlan) -> int:
    """Returns the pages that a shard's budget pays for. A fraction counts from the memory left beside the model, and
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
