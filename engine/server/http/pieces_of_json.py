"""Pieces of JSON lists, which are encoded one after another and joined in the end: a long list is encoded in no one
turn of the event loop."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

_encode = msgspec.json.Encoder().encode


def items(values: Sequence[Any]) -> bytes:
    """Returns the entries of a list, without its brackets."""
    return _encode(values)[1:-1]


def joined(parts: Sequence[bytes]) -> Raw:
    """Returns the list of all entries."""
    return Raw(b"[%b]" % b",".join(filter(None, parts)))
