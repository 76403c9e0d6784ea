"""Families: statistics as families of Prometheus metrics, under vLLM's names where vLLM has the same metric.

One table says which metrics there are; the reference page and the test of the board read it, too.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..front_end.observations import UsageByName
from ..front_end.statistics import Statistics
from ..metrics import Tally
from ..outputs import EngineInfo

Values = Mapping[tuple[str, ...], float]  # values of the family's own labels -> number
OWN: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    name: str  # without the prefix
    kind: str  # "gauge", "counter" or "histogram"
    help: str
    read: Callable[[Statistics], Any]  # returns a number, Values or a Tally; None while there is nothing to tell
    labels: tuple[str, ...] = ()  # beside model_name and engine
    is_vllm: bool = True  # whether vLLM has a metric of this name


def gauge(name: str, help: str, read: Callable[[Statistics], Any], *labels: str, is_vllm: bool = False) -> Family:
    return Family(name, "gauge", help, read, labels, is_vllm)


def counter(name: str, help: str, read: Callable[[Statistics], Any], *labels: str, is_vllm: bool = False) -> Family:
    return Family(name, "counter", help, read, labels, is_vllm)


def histogram(name: str, help: str, read: Callable[[Statistics], Tally], *, is_vllm: bool = False) -> Family:
    return Family(name, "histogram", help, read, (), is_vllm)


def of_engine(read: Callable[[EngineInfo], Any]) -> Callable[[Statistics], Any]:
    """What only the engine knows, and nobody while there is none."""
    return lambda statistics: None if statistics.info is None else read(statistics.info)


def by_name(read: Callable[[Statistics], UsageByName], what: str) -> Callable[[Statistics], Values]:
    """A sum over the ended requests of each name."""
    return lambda statistics: {(name,): getattr(usage, what) for name, usage in read(statistics).usage.items()}


def counted(read: Callable[[Statistics], Mapping[str, float]]) -> Callable[[Statistics], Values]:
    return lambda statistics: {(name,): number for name, number in read(statistics).items()}


def step_parts(info: EngineInfo) -> Values:
    return {
        ("base",): info.step_seconds,
        ("row",): info.row_seconds,
        ("prompt_token",): info.token_seconds,
        ("read_token",): info.read_seconds,
        ("pair",): info.pair_seconds,
        ("adapter_page",): info.adapter_page_seconds,
        ("adapted_token",): info.adapted_token_seconds,
        ("scored_token",): info.scored_token_seconds,
    }


def step_seconds(statistics: Statistics) -> Values | None:
    """How the time of all steps was spent: prompts by prediction, copies as measured, the rest on rows that decode."""
    if statistics.info is None:
        return None
    seen, copies = statistics.observations, statistics.info.copy_seconds
    rest = max(seen.step.sum - seen.prompt_seconds, 0.0)
    return {("prompt",): seen.prompt_seconds, ("decode",): rest, ("adapter_copy",): copies}


def prompt_sources(info: EngineInfo) -> Values:
    return {
        ("local_compute",): info.num_prompt_tokens - info.num_cached_tokens,
        ("local_cache_hit",): info.num_cached_tokens,
    }


def lora_info(statistics: Statistics) -> Values:
    adapters = statistics.adapters
    key = (str(adapters.num_fitting), ",".join(adapters.resident), ",".join(adapters.waiting))
    return {key: time.time()}


def cache_info(statistics: Statistics) -> Values:
    is_caching = str(statistics.is_prefix_caching)
    return {(str(statistics.block_size), str(statistics.num_pages), is_caching): 1}


# Metrics of vLLM that mean nothing here -> why.
ABSENT = {
    "num_requests_waiting_by_reason": "a request gets its blocks and its adapters together, and waits for both",
    "engine_sleep_state": "an engine does not sleep",
    "watermark_requests": "answers have no watermark",
    "num_requests_kv_fetch_by_stage": "KV comes from no other server",
    "kv_block_lifetime_seconds": "the age of blocks is not measured",
    "kv_block_idle_before_evict_seconds": "the age of blocks is not measured",
    "kv_block_reuse_gap_seconds": "the age of blocks is not measured",
}

FAMILIES = (
    # Of vLLM: what routers and boards read.
    gauge("num_requests_running", "Requests that hold memory.", of_engine(lambda i: i.num_running), is_vllm=True),
    gauge("num_requests_waiting", "Requests that wait for memory.", of_engine(lambda i: i.num_waiting), is_vllm=True),
    gauge(
        "kv_cache_usage_perc",
        "Share of the arena in use, from 0 to 1; adapters in use included.",
        of_engine(lambda i: 1 - i.num_free_pages / i.num_pages),
        is_vllm=True,
    ),
    gauge(
        "lora_requests_info",
        "Time of this reading; resident adapters, those that requests wait for, and how many of the largest resident "
        "size the arena holds.",
        lora_info,
        *("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        is_vllm=True,
    ),
    gauge(
        "cache_config_info", "Facts of the arena.", cache_info, "block_size", "num_gpu_blocks", "enable_prefix_caching",
        is_vllm=True,
    ),
    counter("num_preemptions", "Preempted requests.", of_engine(lambda i: i.num_preemptions), is_vllm=True),
    counter(
        "prompt_tokens", "Tokens of prompts whose first token has come.", lambda s: s.observations.num_prompt_tokens,
        is_vllm=True,
    ),
    counter(
        "prompt_tokens_cached", "Prompt tokens found in the prefix cache.", of_engine(lambda i: i.num_cached_tokens),
        is_vllm=True,
    ),
    counter(
        "prompt_tokens_by_source", "Prompt tokens of requests with memory: computed, or found in the prefix cache.",
        of_engine(prompt_sources), "source", is_vllm=True,
    ),
    counter("generation_tokens", "Tokens generated.", lambda s: s.observations.num_answer_tokens, is_vllm=True),
    counter(
        "prefix_cache_queries", "Tokens looked up in the prefix cache.", of_engine(lambda i: i.num_prompt_tokens),
        is_vllm=True,
    ),
    counter(
        "prefix_cache_hits", "Of these, tokens that were found.", of_engine(lambda i: i.num_cached_tokens), is_vllm=True
    ),
    counter(
        "request_success", "Samples that have ended, by the reason.", counted(lambda s: s.observations.ends),
        "finished_reason", is_vllm=True,
    ),
    counter(
        "admission_rejections", "Requests refused before they began, by the reason.",
        counted(lambda s: s.observations.refusals), "reason", is_vllm=True,
    ),
    histogram(
        "time_to_first_token_seconds", "From acceptance to the first token.", lambda s: s.observations.first_token,
        is_vllm=True,
    ),
    histogram(
        "inter_token_latency_seconds", "From one message of tokens of a sample to the next.",
        lambda s: s.observations.gap, is_vllm=True,
    ),
    histogram(
        "request_time_per_output_token_seconds", "Mean time of the later tokens of a request.",
        lambda s: s.observations.token, is_vllm=True,
    ),
    histogram(
        "e2e_request_latency_seconds", "From acceptance to the end.", lambda s: s.observations.whole, is_vllm=True
    ),
    histogram(
        "request_queue_time_seconds", "From acceptance until memory was given.", lambda s: s.observations.queue,
        is_vllm=True,
    ),
    histogram(
        "request_inference_time_seconds", "From memory to the last token.", lambda s: s.observations.inference,
        is_vllm=True,
    ),
    histogram(
        "request_prefill_time_seconds", "From memory to the first token.", lambda s: s.observations.prefill,
        is_vllm=True,
    ),
    histogram(
        "request_decode_time_seconds", "From the first token to the last.", lambda s: s.observations.decode,
        is_vllm=True,
    ),
    histogram("request_prompt_tokens", "Tokens of a prompt.", lambda s: s.observations.prompt_tokens, is_vllm=True),
    histogram(
        "request_generation_tokens", "Tokens of an answer.", lambda s: s.observations.answer_tokens, is_vllm=True
    ),
    histogram("request_params_n", "Samples asked for.", lambda s: s.observations.samples, is_vllm=True),
    histogram(
        "request_params_max_tokens", "max_tokens asked for.", lambda s: s.observations.max_tokens, is_vllm=True
    ),
    histogram(
        "request_num_preemptions", "Preemptions of a request.", lambda s: s.observations.preemptions, is_vllm=True
    ),
    histogram(
        "iteration_tokens_total", "Tokens of prompts and answers in a step.", lambda s: s.observations.step_tokens,
        is_vllm=True,
    ),
    # Our own: the server.
    gauge("serving", "1 while requests can begin.", lambda s: int(s.is_serving)),
    gauge("unfinished_samples", "Samples that are unfinished.", lambda s: s.queue.num_unfinished),
    gauge("queued_prompt_tokens", "Tokens of prompts without a first token.", lambda s: s.queue.num_queued_tokens),
    counter("expired_requests", "Requests ended by their deadline.", lambda s: s.queue.num_expired),
    counter("engine_restarts", "Engine processes that ended and were replaced.", lambda s: s.deaths.num_deaths),
    counter("engine_crashes", "Of these, those that nothing outside had ended.", lambda s: s.deaths.num_crashes),
    counter("engine_stalls", "Of these, those that gave no sign of life.", lambda s: s.deaths.num_stalls),
    counter("resumed_samples", "Samples that another engine has gone on with.", lambda s: s.deaths.num_resumed),
    counter(
        "set_aside_requests", "Requests ended because engines crashed over them alone.",
        lambda s: s.deaths.num_requests_set_aside,
    ),
    counter("set_aside_adapters", "Adapters that no engine is given.", lambda s: s.deaths.num_adapters_set_aside),
    # Adapters.
    gauge("adapters_known", "Names of adapters.", lambda s: s.adapters.num_known),
    gauge("adapters_in_host_memory", "Adapters in host memory.", lambda s: s.adapters.num_host),
    gauge("adapters_resident", "Adapters in the arena.", lambda s: s.adapters.num_resident),
    gauge("adapter_host_bytes", "Bytes of adapters in host memory.", of_engine(lambda i: i.num_host_bytes)),
    gauge("arena_bytes", "Bytes of the arena.", of_engine(lambda i: i.num_pages * i.page_bytes)),
    counter("adapter_uses", "Uses of adapters by requests with memory.", of_engine(lambda i: i.num_adapter_uses)),
    counter("adapter_hits", "Of these, those of resident adapters.", of_engine(lambda i: i.num_adapter_hits)),
    counter("adapter_host_uses", "Uses of adapters by accepted requests.", of_engine(lambda i: i.num_host_uses)),
    counter("adapter_host_hits", "Of these, those in host memory.", of_engine(lambda i: i.num_host_hits)),
    counter("adapter_reads", "Adapters read again from their files.", of_engine(lambda i: i.num_host_reads)),
    counter(
        "adapter_copied_bytes", "Bytes of adapters copied into the arena.",
        of_engine(lambda i: i.num_copied_pages * i.page_bytes),
    ),
    counter("adapter_evictions", "Adapters that left the arena.", of_engine(lambda i: i.num_evicted_adapters)),
    counter("evicted_blocks", "Cached blocks that were evicted.", of_engine(lambda i: i.num_evicted_blocks)),
    counter(
        "adapter_requests", "Requests of an adapter that have ended.",
        by_name(lambda s: s.observations.by_adapter, "num_requests"), "adapter",
    ),
    counter(
        "adapter_prompt_tokens", "Tokens of their prompts.",
        by_name(lambda s: s.observations.by_adapter, "num_prompt_tokens"), "adapter",
    ),
    counter(
        "adapter_generation_tokens", "Tokens of their answers.",
        by_name(lambda s: s.observations.by_adapter, "num_generated_tokens"), "adapter",
    ),
    # Tenants.
    counter(
        "tenant_requests", "Requests of a tenant that have ended.",
        by_name(lambda s: s.observations.by_tenant, "num_requests"), "tenant",
    ),
    counter(
        "tenant_prompt_tokens", "Tokens of their prompts.",
        by_name(lambda s: s.observations.by_tenant, "num_prompt_tokens"), "tenant",
    ),
    counter(
        "tenant_generation_tokens", "Tokens of their answers.",
        by_name(lambda s: s.observations.by_tenant, "num_generated_tokens"), "tenant",
    ),
    counter(
        "tenant_queue_seconds", "Seconds that they waited for memory.",
        by_name(lambda s: s.observations.by_tenant, "queue_seconds"), "tenant",
    ),
    # Time.
    histogram("step_time_seconds", "Time of a step.", lambda s: s.observations.step),
    counter(
        "step_seconds", "Seconds of steps by part: prompts as predicted, copies of adapters, the rest.",
        step_seconds, "part",
    ),
    gauge(
        "step_cost_seconds", "Predicted seconds of each part of a step's work.",
        lambda s: None if s.info is None else step_parts(s.info), "part",
    ),
    histogram(
        "predicted_time_to_first_token_seconds", "Predicted when the request came.", lambda s: s.outcomes.predicted
    ),
    histogram(
        "measured_time_to_first_token_seconds", "Measured, of the same requests.", lambda s: s.outcomes.measured
    ),
    histogram(
        "time_to_first_token_measured_to_predicted", "Measured divided by predicted.", lambda s: s.outcomes.ratio
    ),
)  # fmt: skip


def collect(statistics: Statistics, prefix: str) -> Iterator[Metric]:
    """Yields the families that have something to tell, with vLLM's labels model_name and engine first."""
    common = {"model_name": statistics.model, "engine": "0"}
    for family in FAMILIES:
        value = family.read(statistics)
        if value is not None:
            yield _metric(family, f"{prefix}:{family.name}", value, common)


def _metric(family: Family, name: str, value: Any, common: Mapping[str, str]) -> Metric:
    labels, own = [*common, *family.labels], list(common.values())
    if isinstance(value, Tally):
        metric = HistogramMetricFamily(name, family.help, labels=labels)
        bounds = [*map(_text, value.bounds), "+Inf"]
        metric.add_metric(own, list(zip(bounds, accumulate(value.counts), strict=True)), value.sum)
        return metric
    made = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(name, family.help, labels=labels)
    values = value if isinstance(value, Mapping) else {OWN: value}
    for key, number in values.items():
        made.add_metric([*own, *key], number)
    return made


def _text(bound: float) -> str:
    return str(float(bound))
