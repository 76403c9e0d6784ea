"""Logprobs for users, with the texts of their tokens. They are made in pieces: a position may have a vocabulary."""

from collections.abc import Iterator, Sequence
from itertools import islice

from blora.scheduler import TokenLogprob

from ..outputs import Logprob, SampleLogprobs
from ..text.tokenizer import Tokenizer

MAX_IN_PIECE = 1000  # logprobs, of which each takes about a microsecond


def name_logprobs(entries: Sequence[TokenLogprob], tokenizer: Tokenizer, named: SampleLogprobs) -> Iterator[int]:
    """Adds to `named` one mapping for each entry. Yields after each piece the number of logprobs in it."""
    num_new = 0
    for entry in entries:
        candidates: dict[int, Logprob] = {}
        named.append(candidates)
        triples = zip(entry.token_ids, entry.logprobs, entry.ranks, strict=True)
        while piece := list(islice(triples, MAX_IN_PIECE - num_new)):
            candidates.update(
                (token_id, Logprob(logprob, rank, tokenizer.decode_token(token_id)))
                for token_id, logprob, rank in piece
            )
            num_new += len(piece)
            if num_new == MAX_IN_PIECE:
                yield num_new
                num_new = 0
    yield num_new
