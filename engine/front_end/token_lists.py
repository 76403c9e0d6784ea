"""TokenLists: the lists of a request that may name the whole vocabulary, which are checked and packed in pieces.

Such a list takes tens of milliseconds as Python objects. Packed, it goes through everything behind as bytes.
"""

from array import array
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from blora.scheduler import LogitEdits, SamplingParams

from ..errors import InvalidRequest
from ..facts import Facts
from .validator import as_token_ids, check_biases, check_token_ids

# Entries of a piece, and an estimate of its microseconds.
IDS_OF_PIECE, IDS_COST = 1 << 14, 1000
BIASES_OF_PIECE, BIASES_COST = 1 << 12, 1000


@dataclass(frozen=True, slots=True)
class TokenLists:
    """As the user gave them; only their types and lengths were checked."""

    allowed: Sequence[int] | None
    biases: Mapping[int, float]

    @staticmethod
    def of(params: SamplingParams) -> "TokenLists":
        return TokenLists(params.allowed_token_ids, params.logit_bias or {})

    def pack(self, facts: Facts) -> Generator[int, None, LogitEdits]:
        """Yields, before each piece of the work, its cost in microseconds. Returns the lists, packed. Raises
        InvalidRequest for an entry that is no token of the model, or no number."""
        allowed = None if self.allowed is None else (yield from self._pack_allowed(self.allowed, facts))
        biased, biases = yield from self._pack_biases(facts)
        return LogitEdits(allowed, biased, biases)

    def pack_at_once(self, facts: Facts) -> LogitEdits:
        """The same without a pause."""
        pieces = self.pack(facts)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                edits: LogitEdits = end.value
                return edits

    def _pack_allowed(self, allowed: Sequence[int], facts: Facts) -> Generator[int, None, bytearray]:
        packed = bytearray()
        for first in range(0, len(allowed), IDS_OF_PIECE):
            yield IDS_COST
            piece = allowed[first : first + IDS_OF_PIECE]
            check_token_ids("allowed_token_ids", piece, facts, facts.vocab_size)
            packed += array("q", as_token_ids("allowed_token_ids", piece))
        return packed

    def _pack_biases(self, facts: Facts) -> Generator[int, None, tuple[bytearray, bytearray]]:
        biased, biases, rest = bytearray(), bytearray(), iter(self.biases.items())
        while True:
            if self.biases:
                yield BIASES_COST
            piece = dict(islice(rest, BIASES_OF_PIECE))
            if not piece:
                return biased, biases
            check_biases(piece, facts)
            biased += array("q", as_token_ids("logit_bias", piece))
            biases += array("f", piece.values())


def check_edits(edits: LogitEdits, facts: Facts) -> None:
    """Checks packed lists against another vocabulary than that which they were packed for. Raises InvalidRequest."""
    for name, ids in (("allowed_token_ids", edits.allowed), ("logit_bias", edits.biased)):
        highest = int(np.frombuffer(ids, np.int64).max()) if ids else 0
        if highest >= facts.vocab_size:
            raise InvalidRequest(name, f"{highest} is not a token id from 0 to {facts.vocab_size - 1}")
