"""Spans: a span of OpenTelemetry for each request, under vLLM's names, whose parent is that of the call.

It needs the extra `otel`, and is imported only where traces are asked for. The exporter has a thread of its own.
"""

import time
from importlib.metadata import version
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..front_end.output_processor import UserRequest

PROTOCOLS = ("grpc", "http/protobuf")
FLUSH_MILLISECONDS = 2000  # at most, for what is not sent yet when the server ends
FAILURES = ("error", "deadline")  # finish reasons


class Spans:
    def __init__(self, exporter: SpanExporter, model: str) -> None:
        resource = Resource.create({"service.name": "blora", "service.version": version("blora")})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("blora.request")
        self._model = model

    def note(self, user: UserRequest) -> None:
        """Notes a request that has ended."""
        parent = TraceContextTextMapPropagator().extract(user.trace)
        began = int(user.metrics.arrival_time * 1e9)
        span = self._tracer.start_span("llm_request", context=parent, kind=SpanKind.SERVER, start_time=began)
        if span.is_recording():
            end = time.time_ns()
            span.set_attributes(attributes_of(user, self._model, (end - began) / 1e9))
            if reasons := [reason for reason in _reasons(user) if reason in FAILURES]:
                span.set_status(Status(StatusCode.ERROR, reasons[0]))
            span.end(end)

    def flush(self) -> None:
        """Sends what is not sent yet, within FLUSH_MILLISECONDS."""
        self._provider.force_flush(FLUSH_MILLISECONDS)


def _reasons(user: UserRequest) -> list[str]:
    return [sample.finish_reason.value if sample.finish_reason else "abort" for sample in user.samples]


def attributes_of(user: UserRequest, model: str, seconds: float) -> dict[str, Any]:
    """Returns the attributes of a request's span. seconds: from its arrival to its end."""
    sampling, times = user.sampling, user.metrics
    attributes: dict[str, Any] = {
        "gen_ai.response.model": model,
        "gen_ai.request.id": user.request_id,
        "gen_ai.request.n": sampling.n,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.usage.num_sequences": len(user.samples),
        "gen_ai.usage.prompt_tokens": len(user.prompt_token_ids),
        "gen_ai.usage.completion_tokens": times.num_generation_tokens,
        "gen_ai.response.finish_reasons": _reasons(user),
        "gen_ai.latency.e2e": seconds,
        "blora.cached_tokens": user.num_cached_tokens,
        "blora.adapters": [name for name, _ in user.adapters],
        "blora.tenant": user.tenant,
        "blora.preemptions": times.num_preemptions,
    }
    if sampling.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = sampling.max_tokens
    if times.scheduled_ts:
        attributes["gen_ai.latency.time_in_queue"] = max(times.scheduled_ts - times.queued_ts, 0.0)
    if times.first_token_ts:
        attributes |= {
            "gen_ai.latency.time_to_first_token": times.first_token_latency,
            "gen_ai.latency.time_in_model_prefill": times.first_token_ts - times.scheduled_ts,
            "gen_ai.latency.time_in_model_decode": times.last_token_ts - times.first_token_ts,
            "gen_ai.latency.time_in_model_inference": times.last_token_ts - times.scheduled_ts,
        }
    return attributes


def otlp_exporter(endpoint: str, protocol: str) -> SpanExporter:
    """protocol: one of PROTOCOLS. Raises ModuleNotFoundError without the extra `otel`."""
    exporter: SpanExporter
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as ByGrpc

        exporter = ByGrpc(endpoint=endpoint, insecure=not endpoint.startswith("https"))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as ByHttp

        exporter = ByHttp(endpoint=endpoint)
    return exporter
