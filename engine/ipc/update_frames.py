"""UpdateFrames: cuts a step's updates into messages that the front end's event loop decodes in a millisecond.

Most steps are one message. Only many reported logprobs make more: a prompt's, or those of whole vocabularies.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from blora.scheduler import RowUpdate, TokenLogprob

# Logprobs in a message; the front end decodes one in an eighth of a microsecond. A single position may have more.
MAX_LOGPROBS_PER_FRAME = 1 << 13


def in_frames(rows: Iterable[RowUpdate]) -> list[list[RowUpdate]]:
    """Returns the updates of each message, of at least one."""
    frames: list[list[RowUpdate]] = [[]]
    num_logprobs = 0
    for part in (part for row in rows for part in _parts(row)):
        num_own = _num_logprobs(part.logprobs) + _num_logprobs(part.prompt_logprobs)
        num_logprobs += num_own
        if num_logprobs > MAX_LOGPROBS_PER_FRAME and frames[-1]:
            frames.append([])
            num_logprobs = num_own
        frames[-1].append(part)
    return frames


def _parts(row: RowUpdate) -> Iterator[RowUpdate]:
    """Cuts an update with many logprobs of its prompt. The last part has everything else."""
    first, num_logprobs = 0, 0
    for index, entry in enumerate(row.prompt_logprobs):
        num_logprobs += len(entry.token_ids)
        if num_logprobs > MAX_LOGPROBS_PER_FRAME and index > first:
            told = row.prompt_logprobs[first:index]
            yield replace(row, prompt_logprobs=told, token_ids=(), logprobs=(), finish_reason=None, error=None)
            first, num_logprobs = index, len(entry.token_ids)
    yield replace(row, prompt_logprobs=row.prompt_logprobs[first:]) if first else row


def _num_logprobs(entries: Iterable[TokenLogprob]) -> int:
    return sum(len(entry.token_ids) for entry in entries)
