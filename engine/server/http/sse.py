"""Events of a stream, as OpenAI's clients read them."""

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    return b"data: %b\n\n" % _encode(value)


def raw_event(json: bytes) -> bytes:
    """json: on one line."""
    return b"data: %b\n\n" % json
