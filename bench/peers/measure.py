"""Rounds: every peer measures every case in turn, so that a disturbance of the machine disturbs all of them.

A peer's turn at a case is a pass that wakes it up, a pass of one token (T1) and a pass of all tokens (Tn).
Prefill is rows * prompt_len / T1, decode is rows * (output_len - 1) / (Tn - T1), in tokens per second.
"""

from collections import defaultdict
from dataclasses import dataclass

from .field import Field, progress
from .protocol import Answer, Tokens
from .work import Case, Work

WAKING_TOKENS = 2  # tokens of the untimed pass, after which caches and threads are warm


@dataclass(frozen=True)
class Figures:
    """The figures of one turn. seconds_*: T1 and Tn. agreement: share of rows whose first token is the first peer's."""

    seconds_first_token: float
    seconds: float
    prefill: float  # tokens per second
    decode: float  # tokens per second
    agreement: float


Measured = dict[str, dict[Case, dict[int, Figures]]]  # by peer, case and round


def measure(field: Field, work: Work, rounds: int) -> Measured:
    """Runs all rounds. A peer that fails keeps the figures measured so far."""
    measured: Measured = defaultdict(lambda: defaultdict(dict))
    for turn in range(rounds):
        for case in work.cases():
            _run_case(field, work, case, turn, measured)
            progress(f"round {turn + 1} of {rounds}, {case}: {_brief(measured, case, turn)}")
    return measured


def _run_case(field: Field, work: Work, case: Case, turn: int, measured: Measured) -> None:
    passes = (WAKING_TOKENS, 1, work.output_len)
    jobs = [work.job(case, turn, max_tokens) for max_tokens in passes]
    first_tokens: Tokens = []
    for entry in field.entries(case.mode):
        answers = field.ask(entry, jobs)
        if answers is None:
            continue
        _, first, whole = answers
        first_tokens = first_tokens or first.tokens
        try:
            measured[entry.peer][case][turn] = figures(work, case, first, whole, first_tokens)
        except ValueError as error:
            progress(f"{entry.name}, {case}, round {turn + 1} does not count: {error}")


def figures(work: Work, case: Case, first: Answer, whole: Answer, first_tokens: Tokens) -> Figures:
    """Returns the figures of one turn. Raises ValueError if the machine was too busy to measure."""
    if whole.seconds <= first.seconds:
        raise ValueError(f"{work.output_len} tokens took {whole.seconds:.2f} s, one took {first.seconds:.2f} s")
    same = sum(own == other for own, other in zip(first.tokens, first_tokens, strict=True))
    return Figures(
        first.seconds,
        whole.seconds,
        case.rows * work.prompt_len / first.seconds,
        case.rows * (work.output_len - 1) / (whole.seconds - first.seconds),
        same / case.rows,
    )


def _brief(measured: Measured, case: Case, turn: int) -> str:
    parts = []
    for peer, cases in measured.items():
        if turn in cases.get(case, {}):
            parts.append(f"{peer} {cases[case][turn].decode:.0f} tok/s")
    return ", ".join(parts)
