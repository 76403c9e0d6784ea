"""Groups: figures by adapter and by tenant, and how evenly they were served."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .answers import is_right
from .record import OK, Record
from .result import Goal, figures_of

PERCENTS = (50.0, 95.0, 99.0)
METRICS = ("ttft", "itl", "e2el")


def by_group(records: Sequence[Record], key: Callable[[Record], str], goal: Goal, seconds: float) -> dict[str, Any]:
    """Returns the figures of each group, such as an adapter. seconds: of the whole run, over which rates are taken."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return {
        name: {"share": len(group) / len(records), **figures_of(group, goal, seconds, METRICS, PERCENTS)}
        for name, group in sorted(groups.items())
    }


def fairness_of(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Returns how evenly the groups' requests were answered: of each group, the share that ended well.

    jain: (sum x)^2 / (n sum x^2), 1 where all have the same share (Jain, Chiu, Hawe 1984); max_min: the largest by the
    smallest, None where a group got nothing.
    """
    shares = [group["completed"] / (group["completed"] + group["failed"]) for group in groups.values()]
    squares = sum(share * share for share in shares)
    return {
        "jain": sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0,
        "max_min": max(shares) / min(shares) if min(shares, default=0.0) else None,
    }


def refusals_of(records: Sequence[Record]) -> dict[str, int]:
    """Counts what did not end well, by status and reason, in which numbers, such as seconds to wait, do not count."""
    reasons = Counter(f"{record.status}: {_kind(record.details)}" for record in records if record.status != OK)
    return dict(reasons.most_common())


def answers_of(records: Sequence[Record]) -> dict[str, int]:
    """Counts right and wrong answers, of those requests whose right answer is known."""
    checked = [right for right in map(is_right, records) if right is not None]
    return {"checked_answers": len(checked), "wrong_answers": len(checked) - sum(checked)}


def _kind(details: str) -> str:
    return "".join("#" if part.isdigit() else part for part in details)[:200]
