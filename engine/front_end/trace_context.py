"""TraceContext: the span that a call is part of, as the W3C's headers have it: plain texts that nobody here reads.

A door notes it in the context of the call's task, and the request that comes of the call takes it along.
"""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType

NAMES = ("traceparent", "tracestate")
MOST_CHARACTERS = 512  # that the W3C asks to keep
NONE: Mapping[str, str] = MappingProxyType({})
TRACE: ContextVar[Mapping[str, str]] = ContextVar("trace", default=NONE)


def note_trace(headers: Iterable[tuple[str, str | bytes]]) -> None:
    """Notes the trace in the headers or the metadata of a call; none if there is none."""
    found = {name: value for name, value in headers if name in NAMES}
    TRACE.set({name: str(value) for name, value in found.items() if len(value) <= MOST_CHARACTERS} or NONE)
