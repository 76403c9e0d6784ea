"""ManyAdapters: messages about thousands of adapters, which are made in several turns of the event loop.

The bytes of a message are those of its parts, one after another.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from google.protobuf.message import Message

from ..ipc.turns import Turns
from ..outputs import AdapterInfo

NUM_IN_PART = 32
ADAPTER_COST = 40  # an estimate in microseconds


class ManyAdapters:
    """A message made of parts."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = parts

    @staticmethod
    async def convert(
        infos: Iterable[AdapterInfo], turns: Turns, part: Callable[[Sequence[AdapterInfo]], Message]
    ) -> "ManyAdapters":
        """part: makes a message of some adapters; called at least once."""
        ordered = iter(sorted(infos, key=lambda info: info.name))
        parts = [part(list(islice(ordered, NUM_IN_PART))).SerializeToString()]
        while some := list(islice(ordered, NUM_IN_PART)):
            await turns.take(ADAPTER_COST * len(some))
            parts.append(part(some).SerializeToString())
        return ManyAdapters(parts)

    def SerializeToString(self) -> bytes:
        """Has the name that messages have."""
        return b"".join(self._parts)
