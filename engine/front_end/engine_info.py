"""Engine info: puts together the facts of a running engine, from its options, the engine's load and the front end's
counts."""

from dataclasses import asdict
from importlib.metadata import version

from ..config import EngineConfig
from ..outputs import EngineInfo, EngineLoad
from .front_end import FrontEnd


def engine_info(config: EngineConfig, dtype: str, page_bytes: int, load: EngineLoad, front_end: FrontEnd) -> EngineInfo:
    facts, usage, cache, suspects = front_end.facts, front_end.usage, front_end.ledger, front_end.suspects
    return EngineInfo(
        model=config.model,
        dtype=dtype,
        vocab_size=facts.vocab_size,
        max_model_len=facts.max_model_len,
        block_size=facts.block_size,
        num_pages=facts.num_pages,
        page_bytes=page_bytes,
        num_free_pages=load.num_free_pages,
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        version=version("blora"),
        **asdict(load.counts),
        **load.step_costs._asdict(),
        num_requests=usage.num_requests,
        num_generated_tokens=front_end.observations.num_answer_tokens,
        queue_seconds=usage.queue_seconds,
        num_host_adapters=cache.num_images,
        num_host_bytes=cache.num_bytes,
        max_host_bytes=cache.max_bytes,
        num_host_uses=cache.num_uses,
        num_host_hits=cache.num_hits,
        num_host_reads=cache.num_reads,
        num_host_failures=cache.num_failures,
        num_engine_deaths=suspects.num_deaths,
        num_crashes=suspects.num_crashes,
        num_stalls=suspects.num_stalls,
        num_requests_set_aside=suspects.num_requests_set_aside,
        num_adapters_set_aside=suspects.num_adapters_set_aside,
        **asdict(front_end.admission.facts),
    )
