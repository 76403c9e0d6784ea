"""Spans of OpenTelemetry: one for each request, with vLLM's attributes, below the span of the call."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_llm import FakeLLM, running

from blora.engine import AsyncLLM, SamplingParams
from blora.engine.front_end.trace_context import MOST_CHARACTERS, NONE, TRACE, note_trace
from blora.proto.v1.generation_pb2 import GenerateRequest
from blora.proto.v1.generation_pb2_grpc import GenerationServiceStub

sdk = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.fixture
def trace() -> Iterator[None]:
    """Leaves the context as it was."""
    before = TRACE.get()
    yield
    TRACE.set(before)


@pytest.mark.usefixtures("trace")
def test_only_the_headers_of_a_trace_are_kept_and_bounded() -> None:
    note_trace([("traceparent", PARENT), ("authorization", "secret"), ("tracestate", "x" * (MOST_CHARACTERS + 1))])
    assert TRACE.get() == {"traceparent": PARENT}
    note_trace([("other-bin", b"bytes")])
    assert TRACE.get() is NONE


@pytest.mark.slow
def test_requests_become_spans(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    from blora.engine.telemetry.spans import Spans

    exporter = sdk.InMemorySpanExporter()
    spans = Spans(exporter, "tiny")
    name, path = next(iter(tiny_adapters.items()))
    sampling = SamplingParams(max_tokens=5, ignore_eos=True, temperature=0.5, top_p=0.9, n=2)

    async def call(llm: AsyncLLM, request_id: str, parent: str, most: int, **options: Any) -> None:
        note_trace([("traceparent", parent)] if parent else [])
        outputs = llm.generate({"prompt_token_ids": [1, 2, 3]}, sampling, request_id, **options)
        for _ in range(most):
            await anext(outputs, None)
        await outputs.aclose()

    async def work() -> None:
        async with AsyncLLM(str(tiny_model), memory="2MB", block_size=4, threads=1, adapters={name: str(path)}) as llm:
            llm.on_request_end(spans.note)
            await asyncio.create_task(call(llm, "r1", PARENT, 100, lora_request=name, tenant="gold"))
            await asyncio.create_task(call(llm, "r2", "not a trace", 1))
            await asyncio.create_task(call(llm, "r3", "", 100))

    asyncio.run(work())
    spans.flush()
    first, second, third = exporter.get_finished_spans()
    assert first.name == "llm_request" and first.kind.name == "SERVER"
    assert f"{first.context.trace_id:032x}" == TRACE_ID and f"{first.parent.span_id:016x}" == SPAN_ID
    found = dict(first.attributes)
    assert found["gen_ai.request.id"] == "r1" and found["gen_ai.response.model"] == "tiny"
    assert found["gen_ai.usage.prompt_tokens"] == 3 and found["gen_ai.usage.completion_tokens"] == 10
    assert (found["gen_ai.request.max_tokens"], found["gen_ai.request.top_p"], found["gen_ai.request.n"]) == (5, 0.9, 2)
    assert found["blora.adapters"] == (name,) and found["blora.tenant"] == "gold"
    assert found["gen_ai.response.finish_reasons"] == ("length", "length")
    times = [found[f"gen_ai.latency.{part}"] for part in ("time_in_queue", "time_to_first_token", "e2e")]
    assert times == sorted(times) and first.start_time < first.end_time
    assert second.parent is None and dict(second.attributes)["gen_ai.request.id"] == "r2"
    assert dict(second.attributes)["gen_ai.response.finish_reasons"] == ("abort", "abort")
    assert third.parent is None and third.context.trace_id != first.context.trace_id


def test_the_trace_of_a_call_over_grpc_reaches_its_request() -> None:
    seen: list[dict[str, str]] = []

    class Seeing(FakeLLM):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(dict(TRACE.get()))
            return super().generate(*args, **kwargs)

    def ask_twice(target: str) -> None:
        with grpc.insecure_channel(target) as channel:
            generate = GenerationServiceStub(channel).Generate
            for metadata in ((("traceparent", PARENT),), ()):
                generate(GenerateRequest(text="hi"), timeout=100, metadata=metadata)

    async def conversation() -> None:
        async with running(Seeing()) as server:
            await asyncio.to_thread(ask_twice, server.address)

    asyncio.run(conversation())
    assert seen == [{"traceparent": PARENT}, {}]
