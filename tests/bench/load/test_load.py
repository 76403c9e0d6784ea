"""The load driver sends on time whatever happens to answers, and counts from the planned arrival."""

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import numpy
import pytest

from blora.bench.load import Load, Objective, Planned, Record, Traffic, make_plan, read_plan, summarize, write_plan
from blora.bench.load.driver import Clock
from blora.bench.load.summary import percentile
from blora.bench.load.targets.blora import BloraTarget
from blora.bench.trace import TraceShape
from blora.proto.v1 import generation_pb2

SHAPE = TraceShape(adapters=2, rate=100, seconds=2, alpha=1.0, input_len=(1, 9), output_len=(1, 9), prefix_len=3)


def test_the_same_seed_gives_the_same_plan_byte_for_byte(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "other", tmp_path / "another seed"]
    for file, seed in zip(files, (7, 7, 8), strict=True):
        shape = replace(SHAPE, seed=seed)
        one = Traffic(shape=shape, vocab_size=50, adapters=("a", "b"), tenant="x", deadline=2.0)
        write_plan(file, make_plan(one, replace(one, tenant="y", start=1.0)))
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    plan = read_plan(files[0])
    assert plan == sorted(plan, key=lambda planned: planned.seconds)
    assert {(planned.tenant, planned.adapter) for planned in plan} == {(t, a) for t in "xy" for a in "ab"}
    assert min(planned.seconds for planned in plan if planned.tenant == "y") >= 1.0
    prefixes = {(planned.tenant, planned.adapter, tuple(planned.prompt[:3])) for planned in plan}
    assert len(prefixes) == 4  # all prompts of an adapter begin alike


class StandingTarget:
    """Answers nothing until all requests have been sent."""

    def __init__(self, num_requests: int) -> None:
        self.waiting = asyncio.Barrier(num_requests)

    async def ask(self, record: Record, clock: Clock) -> None:
        record.sent = clock()
        await self.waiting.wait()
        record.note_tokens(clock(), 1)
        record.note_end(clock(), "OK")


def test_no_request_waits_for_an_answer_and_waiting_counts_from_the_plan() -> None:
    plan = [Planned(seconds=number * 0.01, prompt=[1], max_tokens=1) for number in range(20)]

    async def drive() -> list[Record]:
        return await Load(plan, StandingTarget(len(plan))).run()

    records = asyncio.run(drive())  # would hang if a request waited
    last = plan[-1].seconds
    assert all((record.lag or 0.0) >= 0 for record in records)
    assert all((record.ttft or 0.0) >= last - record.planned.seconds for record in records)


def test_a_cancelled_run_keeps_what_was_measured() -> None:
    async def drive() -> list[Record]:
        load = Load([Planned(seconds=0, prompt=[1], max_tokens=1)] * 2, StandingTarget(3))
        running = asyncio.create_task(load.run())
        while len(load.records) < 2:
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        return load.records

    assert [record.status for record in asyncio.run(drive())] == ["CANCELLED", "CANCELLED"]


def answered(seconds: float, times: list[float], counts: list[int], status: str = "OK") -> Record:
    record = Record(Planned(seconds=seconds, prompt=[1], max_tokens=1), sent=seconds)
    for time, count in zip(times, counts, strict=True):
        record.note_tokens(time, count)
    record.note_end(times[-1] if times else seconds + 0.01, status)
    return record


def test_goodput_is_of_requests_that_meet_both_objectives() -> None:
    records = [
        answered(1.0, [1.5, 1.6, 1.8], [1, 1, 2]),  # 0.1 s a token
        answered(1.0, [2.1], [1]),  # first token late
        answered(1.0, [1.1, 1.5], [1, 1]),  # second token late
        answered(1.0, [], [], "RESOURCE_EXHAUSTED"),
        answered(1.0, [1.1], [1], "UNAVAILABLE"),
    ]
    summary = summarize(records, 2.0, Objective(ttft=1.0, itl=0.1000001))
    assert (summary["completed"], summary["failed"], summary["good"]) == (3, 2, 1)
    assert summary["request_goodput"] == 0.5
    assert summary["p99_refusal_ms"] == pytest.approx(10)
    assert summary["max_itl_ms"] == pytest.approx(400)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_are_numpys(count: int) -> None:
    values = sorted(numpy.random.default_rng(count).exponential(size=count))
    for percent in (0, 50, 90, 95, 99, 100):
        assert percentile(values, percent) == pytest.approx(numpy.percentile(values, percent))


class Generation:
    """A server that answers with the prompt's tokens, one a message, or with a status."""

    async def answer(self, message: generation_pb2.GenerateStreamRequest, context: grpc.aio.ServicerContext) -> None:
        request = message.request
        if request.adapter == "missing":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such adapter")
        for place, token in enumerate(request.token_ids.ids):
            sample = generation_pb2.Sample(token_ids=[token], text=str(token))
            if place + 1 == len(request.token_ids.ids):
                sample.finish_reason = generation_pb2.FINISH_REASON_LENGTH
            await context.write(generation_pb2.GenerateStreamResponse(samples=[sample]))
        if request.adapter == "endless":
            await asyncio.Event().wait()


async def ask_generation(plan: list[Planned]) -> list[Record]:
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(
        Generation().answer,
        request_deserializer=generation_pb2.GenerateStreamRequest.FromString,
        response_serializer=generation_pb2.GenerateStreamResponse.SerializeToString,
    )
    handlers = grpc.method_handlers_generic_handler("blora.v1.GenerationService", {"GenerateStream": handler})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with BloraTarget(f"127.0.0.1:{port}", num_connections=2) as target:
        records = await Load(plan, target).run()
    await server.stop(None)
    return records


def test_answers_failures_deadlines_and_clients_that_leave() -> None:
    prompt = [5, 6, 7]
    ways: list[Planned] = [
        Planned(seconds=0, prompt=prompt, max_tokens=3),
        Planned(seconds=0, prompt=prompt, max_tokens=3, adapter="missing"),
        Planned(seconds=0, prompt=prompt, max_tokens=3, adapter="endless", deadline=0.3),
        Planned(seconds=0, prompt=prompt, max_tokens=3, adapter="endless", cancel_after=2, read_pause=0.001),
    ]
    answer, missing, expired, left = asyncio.run(ask_generation(ways))
    assert (answer.status, answer.answers[0].token_ids, answer.answers[0].finish_reason) == ("OK", prompt, "LENGTH")
    assert (answer.answers[0].text, answer.token_counts) == ("567", [1, 1, 1])
    assert (missing.status, missing.details) == ("NOT_FOUND", "no such adapter")
    assert expired.status == "DEADLINE_EXCEEDED" and expired.ended is not None and expired.ended >= 0.29
    assert (left.status, left.num_tokens) == ("CANCELLED", 2)
