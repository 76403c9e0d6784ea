"""OpenAITarget: a server with OpenAI's HTTP API, asked with streams: blora's, vLLM's, llama.cpp's or another one."""

import json
from asyncio import sleep
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

import aiohttp

from ..driver import CANCELLED, Clock
from ..plan import Planned
from ..record import OK, Record

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LEAST_TIMEOUT = 1e-3  # seconds; a request whose deadline has passed is sent all the same
SHOWN_CHARACTERS = 500  # of the body of an error
# The names of gRPC's statuses, so that results over all doors have the same ones.
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: CANCELLED,
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
END = b"[DONE]"


class OpenAITarget:
    """Use as `async with OpenAITarget("http://host:port", "model") as target`. Each stream has a connection of its own,
    which the next one takes over."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        endpoint: str = COMPLETIONS,
        api_key: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self._url = base_url.rstrip("/") + endpoint
        self._model = model
        self._is_chat = endpoint.endswith("/chat/completions")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._extra_body = dict(extra_body or {})

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), headers=self._headers
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, record: Record, clock: Clock) -> None:
        planned = record.planned
        body = json.dumps(self.body_of(planned)).encode()
        headers = {"Content-Type": "application/json"}
        if planned.tenant:
            headers["x-tenant-id"] = planned.tenant
        record.sent = now = clock()
        timeout = None
        if planned.deadline is not None:
            timeout = max(planned.seconds + planned.deadline - now, LEAST_TIMEOUT)
            headers["X-Request-Timeout-Ms"] = str(max(round(timeout * 1e3), 1))
        try:
            limit = aiohttp.ClientTimeout(total=timeout)
            async with self._session.post(self._url, data=body, headers=headers, timeout=limit) as response:
                await self._read(response, record, clock)
        except TimeoutError:
            record.note_end(clock(), "DEADLINE_EXCEEDED", "the deadline passed")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            record.note_end(clock(), "UNAVAILABLE", f"{type(error).__name__}: {error}")

    def body_of(self, planned: Planned) -> dict[str, Any]:
        """Returns the body of a request, which asks for a stream and its usage."""
        sampling = dict(planned.sampling)
        model = planned.adapter or self._model
        body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        if self._is_chat:
            body["messages"] = [{"role": "user", "content": planned.prompt}]
            body["max_completion_tokens"] = planned.max_tokens
        else:
            body["prompt"] = planned.prompt if isinstance(planned.prompt, str) else list(planned.prompt)
            body["max_tokens"] = planned.max_tokens
        if planned.priority:
            body["priority"] = planned.priority
        return body | sampling | self._extra_body

    async def _read(self, response: aiohttp.ClientResponse, record: Record, clock: Clock) -> None:
        if response.status != 200:
            text = await response.text(errors="replace")
            record.note_end(clock(), STATUSES.get(response.status, "INTERNAL"), _message(text))
            record.retry_after = _seconds(response.headers.get("Retry-After"))
            return
        total, pause, cancel_after = None, record.planned.read_pause, record.planned.cancel_after
        async for data in _events(response):
            if data == END:
                _settle(record, total)
                record.note_end(clock(), OK)
                return
            event = json.loads(data)
            if "error" in event:
                record.note_end(clock(), _status_of(event["error"]), str(event["error"].get("message", "")))
                return
            if usage := event.get("usage"):
                total = usage.get("completion_tokens")
                record.told_prompt_tokens = usage.get("prompt_tokens")
            note(event, record, clock())
            if cancel_after is not None and record.num_tokens >= cancel_after:
                record.note_end(clock(), CANCELLED, "the client left")
                return
            if pause:
                await sleep(pause)
        record.note_end(clock(), "UNAVAILABLE", "the stream was broken off")


def note(event: Mapping[str, Any], record: Record, now: float) -> None:
    """Adds the news of an event to the record. An event with text counts as one token until the usage says more."""
    record.request_id = record.request_id or str(event.get("id", ""))
    count = 0
    for choice in event.get("choices", ()):
        answer = record.answer(choice.get("index", 0))
        delta = choice.get("delta", choice)
        text = delta.get("content") or delta.get("text") or delta.get("reasoning_content") or ""
        answer.text += text
        answer.token_ids.extend(choice.get("token_ids") or ())
        count += len(choice.get("token_ids") or ()) or int(bool(text))
        if choice.get("finish_reason"):
            answer.finish_reason = choice["finish_reason"].upper()
    if count:
        record.note_tokens(now, count)


def _settle(record: Record, total: int | None) -> None:
    """Counts the tokens that came without a text of their own, such as parts of a character."""
    if total is not None and record.token_counts:
        record.token_counts[-1] += max(total - record.num_tokens, 0)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yields the data of server-sent events."""
    async for line in response.content:
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _status_of(error: Mapping[str, Any]) -> str:
    code = error.get("code")
    return STATUSES.get(code, "INTERNAL") if isinstance(code, int) else "INTERNAL"


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:SHOWN_CHARACTERS]


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
