"""The target over HTTP notes answers, usage, refusals, errors in a stream, deadlines, and clients that leave."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

from blora.bench.load import Load, Planned, Record
from blora.bench.load.targets.openai import OpenAITarget

Handler = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]


async def asked(handler: Handler, *plan: Planned, **options: Any) -> list[Record]:
    """Sends a plan to a server of one handler."""
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with OpenAITarget(f"http://127.0.0.1:{port}", "base", **options) as target:
            return await Load(plan, target).run()
    finally:
        await runner.cleanup()


def planned(**fields: Any) -> Planned:
    return Planned(**{"seconds": 0.0, "prompt": [1, 2], "max_tokens": 3, **fields})


def event(choices: list[dict[str, Any]], **fields: Any) -> bytes:
    return f"data: {json.dumps({'id': 'r1', 'choices': choices, **fields})}\n\n".encode()


async def stream(request: web.Request, *events: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for sent in events:
        await response.write(sent)
    return response


def test_a_stream_is_an_answer_and_usage_counts_its_tokens() -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json() | {"tenant": request.headers.get("x-tenant-id"), "path": request.path})
        return await stream(
            request,
            event([{"index": 0, "text": "a"}]),
            b": a comment\n\n",
            event([{"index": 0, "text": "bc", "finish_reason": "length"}]),
            event([], usage={"prompt_tokens": 2, "completion_tokens": 5}),
            b"data: [DONE]\n\n",
        )

    request = planned(adapter="a1", tenant="t", priority=2, sampling={"temperature": 0.0})
    (record,) = asyncio.run(asked(handler, request, extra_body={"top_k": 3}))
    assert (record.status, record.answers[0].text, record.answers[0].finish_reason) == ("OK", "abc", "LENGTH")
    assert (record.token_counts, record.num_prompt_tokens, record.request_id) == ([1, 4], 2, "r1")
    (body,) = bodies
    assert body == {
        "model": "a1",
        "prompt": [1, 2],
        "max_tokens": 3,
        "priority": 2,
        "temperature": 0.0,
        "top_k": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tenant": "t",
        "path": "/v1/completions",
    }


def test_a_chat_has_messages_and_deltas() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert request.path == "/v1/chat/completions" and body["max_completion_tokens"] == 3
        said = body["messages"][0]["content"]
        deltas: list[dict[str, Any]] = [{"role": "assistant"}, {"content": said.upper()}]
        return await stream(request, *(event([{"index": 0, "delta": d}]) for d in deltas), b"data: [DONE]\n\n")

    record, *_ = asyncio.run(asked(handler, planned(prompt="hi"), endpoint="/v1/chat/completions"))
    assert (record.status, record.answers[0].text, record.token_counts) == ("OK", "HI", [1])


def test_refusals_and_errors_have_the_names_of_grpc() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        kind = (await request.json())["model"]
        if kind == "full":
            body = {"error": {"message": "too much"}}
            return web.json_response(body, status=429, headers={"Retry-After": "2"})
        if kind == "torn":
            return await stream(request, event([{"index": 0, "text": "a"}]))
        if kind == "late":
            error = {"error": {"message": "the engine ended", "code": 503}}
            return await stream(request, f"data: {json.dumps(error)}\n\n".encode())
        return web.Response(status=404, text="no such model")

    plan = [planned(adapter=name) for name in ("full", "torn", "late", "unknown")]
    full, torn, late, unknown = asyncio.run(asked(handler, *plan))
    assert (full.status, full.details, full.retry_after) == ("RESOURCE_EXHAUSTED", "too much", 2.0)
    assert (torn.status, torn.num_tokens) == ("UNAVAILABLE", 1)
    assert (late.status, late.details) == ("UNAVAILABLE", "the engine ended")
    assert (unknown.status, unknown.details) == ("NOT_FOUND", "no such model")


def test_a_deadline_ends_a_request_and_a_client_leaves() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await stream(request, event([{"index": 0, "text": "a"}]), event([{"index": 0, "text": "b"}]))
        await asyncio.Event().wait()
        return response

    expired, left = asyncio.run(asked(handler, planned(deadline=0.3), planned(cancel_after=2)))
    assert expired.status == "DEADLINE_EXCEEDED" and expired.ended is not None and expired.ended >= 0.29
    assert (left.status, left.num_tokens) == ("CANCELLED", 2)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    async def drive() -> list[Record]:
        async with OpenAITarget("http://127.0.0.1:9", "base") as target:
            return await Load([planned()], target).run()

    (record,) = asyncio.run(drive())
    assert record.status == "UNAVAILABLE"
