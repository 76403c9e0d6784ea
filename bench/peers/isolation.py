"""Isolation: checks whether base rows give the base model's tokens in a batch that also has adapters."""

from collections.abc import Sequence
from dataclasses import dataclass

from .entry import Entry
from .field import Field
from .protocol import Job, Tokens
from .work import Work

TOKENS = 16  # tokens of each compared row


@dataclass(frozen=True)
class Isolation:
    """The result of one mixed batch. wrong: base rows with other tokens than in a batch of base rows only. as_adapter:
    wrong rows whose tokens are exactly those of one of the batch's adapters."""

    base_rows: int
    wrong: int
    as_adapter: int


def check_isolation(field: Field, entry: Entry, work: Work) -> Isolation | None:
    """Checks a batch with one base row beside each adapter's row. Returns None if the worker fails.

    All batches have one size, and the base rows in the same places, so rounding is the same and a difference is a leak.
    """
    rows = 2 * work.adapters
    prompts = work.prompts("isolation", rows)
    mixed = [row // 2 if row % 2 else None for row in range(rows)]
    batches: list[list[int | None]] = [[None] * rows]
    for other in range(work.adapters):
        batches.append([other if adapter is None else adapter for adapter in mixed])
    batches.append(mixed)  # comes last, when every adapter has its place in the engine
    answers = field.ask(entry, [Job(prompts, batch, min(TOKENS, work.output_len)) for batch in batches])
    if answers is None:
        return None
    base_rows, *adapter_rows, mixed_rows = [answer.tokens[::2] for answer in answers]
    return compare(mixed_rows, base_rows, adapter_rows)


def compare(mixed: Tokens, base: Tokens, by_adapter: Sequence[Tokens]) -> Isolation:
    """Compares the tokens of the same rows in the mixed batch, on the base model, and with each adapter."""
    wrong = [row for row, tokens in enumerate(mixed) if tokens != base[row]]
    as_adapter = [row for row in wrong if any(mixed[row] == tokens[row] for tokens in by_adapter)]
    return Isolation(len(mixed), len(wrong), len(as_adapter))
