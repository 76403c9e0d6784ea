"""Pieces of outputs: no message of a stream gets large, and no piece of the work on one holds up the event loop.

Knows no message of the wire.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..outputs import CompletionOutput, Logprob, PromptLogprobs, RequestOutput, SampleLogprobs

# A piece has at most so many samples; so many reported logprobs, where a position has no more; and so many tokens and
# characters of one sample. It takes about a millisecond, and a message of it has some 100 kB; clients take 4 MiB by
# default.
MAX_SAMPLES, MAX_LOGPROBS, MAX_TOKENS, MAX_CHARACTERS = 32, 1000, 1 << 14, 1 << 16
# Estimates in microseconds of the time to convert and to send.
MESSAGE_COST, SAMPLE_COST, LOGPROB_COST = 200, 30, 2


def pieces(output: RequestOutput) -> Iterator[RequestOutput]:
    """Cuts an output into pieces, which say the same one after another; only the last is finished. Most outputs are one
    piece."""
    small = (piece for part in _few_samples(output) for piece in _small_pieces(part))
    last = next(small)
    for piece in small:
        yield replace(last, finished=False)
        last = piece
    yield last


def _few_samples(output: RequestOutput) -> Iterator[RequestOutput]:
    """Facts about the prompt come with the first samples."""
    if len(output.outputs) <= MAX_SAMPLES:
        yield output
        return
    for at in range(0, len(output.outputs), MAX_SAMPLES):
        told = output.prompt_logprobs if at == 0 else None
        yield replace(output, outputs=output.outputs[at : at + MAX_SAMPLES], prompt_logprobs=told)


def _small_pieces(output: RequestOutput) -> Iterator[RequestOutput]:
    if _is_small(output):
        yield output
        return
    for positions in _parts(output.prompt_logprobs or []):
        yield replace(output, outputs=[], prompt_logprobs=positions)
    for sample in output.outputs:
        for part in _sample_pieces(sample):
            yield replace(output, outputs=[part], prompt_logprobs=None)


def cost(piece: RequestOutput) -> int:
    return MESSAGE_COST + SAMPLE_COST * len(piece.outputs) + LOGPROB_COST * _num_logprobs(piece)


def _is_small(output: RequestOutput) -> bool:
    return _num_logprobs(output) <= MAX_LOGPROBS and all(
        len(sample.token_ids) <= MAX_TOKENS and len(sample.text) <= MAX_CHARACTERS for sample in output.outputs
    )


def _num_logprobs(output: RequestOutput) -> int:
    num_of_samples = sum(_count(sample.logprobs or ()) for sample in output.outputs)
    return num_of_samples + _count(output.prompt_logprobs or ())


def _count(positions: Sequence[dict[int, Logprob] | None]) -> int:
    return sum(len(candidates or ()) for candidates in positions)


def _parts(positions: PromptLogprobs | SampleLogprobs) -> Iterator[Any]:
    """Cuts positions into lists of at most MAX_LOGPROBS logprobs, or of one position."""
    first, num_logprobs = 0, 0
    for index, candidates in enumerate(positions):
        num_logprobs += len(candidates or ())
        if num_logprobs > MAX_LOGPROBS and index > first:
            yield positions[first:index]
            first, num_logprobs = index, len(candidates or ())
    if positions:
        yield positions[first:]


def _sample_pieces(sample: CompletionOutput) -> Iterator[CompletionOutput]:
    """The end of a sample, and the sum of its logprobs, come with its last piece."""
    texts = [sample.text[at : at + MAX_CHARACTERS] for at in range(0, len(sample.text), MAX_CHARACTERS)]
    *first_texts, last_text = texts or [""]
    for text in first_texts:
        yield CompletionOutput(sample.index, text, [])
    *first_tokens, (token_ids, logprobs) = _token_pieces(sample)
    for part, named in first_tokens:
        yield CompletionOutput(sample.index, "", part, logprobs=named)
    yield replace(sample, text=last_text, token_ids=token_ids, logprobs=logprobs)


def _token_pieces(sample: CompletionOutput) -> Iterator[tuple[list[int], SampleLogprobs | None]]:
    """At least one piece."""
    if not sample.logprobs:
        for at in range(0, max(len(sample.token_ids), 1), MAX_TOKENS):
            yield sample.token_ids[at : at + MAX_TOKENS], sample.logprobs
        return
    at = 0
    for positions in _parts(sample.logprobs):
        yield sample.token_ids[at : at + len(positions)], positions
        at += len(positions)
