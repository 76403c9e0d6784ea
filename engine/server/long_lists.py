"""Lists of a request that may name the whole vocabulary: converted in several turns of the event loop.

Packed, such a list is small on the wire; as Python objects it takes tens of milliseconds.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from blora.proto.v1 import generation_pb2

from ..front_end.validator import check_count
from ..ipc.turns import Turns

LONG_LISTS = ("allowed_token_ids", "logit_bias")
# Entries of a piece, and an estimate of its microseconds.
PIECE, COST = 1 << 13, 1000


async def long_lists(
    message: generation_pb2.SamplingParams, most_listed: Mapping[str, int], turns: Turns
) -> dict[str, Any]:
    """Returns the lists that the client has set, by name. most_listed: the most entries of each. Raises
    InvalidRequest."""
    for name in LONG_LISTS:
        check_count(name, len(getattr(message, name)), most_listed[name])
    allowed: list[int] = []
    for first in range(0, len(message.allowed_token_ids), PIECE):
        await turns.take(COST)
        allowed += message.allowed_token_ids[first : first + PIECE]
    field, biases, rest = message.logit_bias, dict[int, float](), iter(message.logit_bias)
    while len(biases) < len(field):
        await turns.take(COST)
        biases |= {token_id: field[token_id] for token_id in islice(rest, PIECE)}
    return {name: value for name, value in zip(LONG_LISTS, (allowed, biases), strict=True) if value}
