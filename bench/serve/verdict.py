"""Verdict: what makes the figures of a run not those of the server. A run with a fault exits with 1."""

from collections import Counter

from ..load import Record, Sent
from ..load.driver import CANCELLED
from ..load.record import OK
from ..load.summary import REFUSED, percentile

LATE_SECONDS = 0.05  # 99th percentile of the generator's own lag from which its figures are not the server's
BUSY_SHARE = 0.9  # of a core, that a worker used
SHOWN = 3  # kinds of failures


def faults_of(sent: Sent) -> list[str]:
    """Returns sentences, none for a valid run."""
    faults = []
    if is_generator_late(sent):
        lag, share = _lag(sent), max(sent.cpu_shares, default=0.0)
        faults.append(
            f"the generator was the limit, not the server: it sent {lag * 1e3:.0f} ms late (p99) and used"
            f" {share:.0%} of a core; start more --workers, or send less"
        )
    if not sent.is_whole:
        return [*faults, "the run was broken off; the figures are of its beginning"]
    return faults + [
        f"{count} of {len(sent.records)} requests failed with {status}: {details}"
        for (status, details), count in _failures(sent.records).most_common(SHOWN)
    ]


def is_generator_late(sent: Sent) -> bool:
    return _lag(sent) > LATE_SECONDS or max(sent.cpu_shares, default=0.0) > BUSY_SHARE


def _lag(sent: Sent) -> float:
    lags = sorted(record.lag for record in sent.records if record.lag is not None)
    return percentile(lags, 99) if lags else 0.0


def _failures(records: list[Record]) -> Counter[tuple[str, str]]:
    return Counter((record.status, record.details) for record in records if not _is_explained(record))


def _is_explained(record: Record) -> bool:
    """Whether the request ended well, or as a server may refuse more load than it takes, or as the plan asks."""
    planned = record.planned
    if record.status == CANCELLED:
        return planned.cancel_after is not None or planned.cancel_seconds is not None
    return record.status in (OK, REFUSED) or (record.status == "DEADLINE_EXCEEDED" and planned.deadline is not None)
