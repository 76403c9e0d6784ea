"""Whether base rows stay base rows in a batch that also has adapters."""

from collections.abc import Sequence
from dataclasses import dataclass

from .entry import Entry
from .field import Field
from .protocol import Job, Tokens
from .work import Work

TOKENS = 16  # of each row that is compared


@dataclass(frozen=True)
class Isolation:
    """Of one mixed batch. wrong: base rows that differ from what they are among base rows only. as_adapter: those of
    them that are token for token what one of the batch's adapters answers."""

    base_rows: int
    wrong: int
    as_adapter: int


def check_isolation(field: Field, entry: Entry, work: Work) -> Isolation | None:
    """One base row beside each adapter's row. None when the worker failed.

    All batches have one size and the base rows in the same places: they are rounded alike, so a difference is a leak.
    """
    rows = 2 * work.adapters
    prompts = work.prompts("isolation", rows)
    mixed = [row // 2 if row % 2 else None for row in range(rows)]
    batches: list[list[int | None]] = [[None] * rows]
    for other in range(work.adapters):
        batches.append([other if adapter is None else adapter for adapter in mixed])
    batches.append(mixed)  # the last, when every adapter has taken its place in the engine
    answers = field.ask(entry, [Job(prompts, batch, min(TOKENS, work.output_len)) for batch in batches])
    if answers is None:
        return None
    base_rows, *adapter_rows, mixed_rows = [answer.tokens[::2] for answer in answers]
    return compare(mixed_rows, base_rows, adapter_rows)


def compare(mixed: Tokens, base: Tokens, by_adapter: Sequence[Tokens]) -> Isolation:
    """Each holds the same rows: as they were in the mixed batch, on the base model, and with each adapter."""
    wrong = [row for row, tokens in enumerate(mixed) if tokens != base[row]]
    as_adapter = [row for row in wrong if any(mixed[row] == tokens[row] for tokens in by_adapter)]
    return Isolation(len(mixed), len(wrong), len(as_adapter))
