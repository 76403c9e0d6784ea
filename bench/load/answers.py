"""Answers: whether the answer of a request is the right one, where its plan knows it."""

from ..demo.example import Example
from ..demo.tasks import TASKS
from .record import OK, Record


def is_right(record: Record) -> bool | None:
    """None where nothing is expected, or the request failed. Every sample has to be right; without a check of its task
    an answer is right that is the expected text, but for spaces around it."""
    expected = record.planned.expected
    if expected is None or record.status != OK:
        return None
    check = TASKS[record.planned.check].check if record.planned.check else _is_same
    example = Example(text="", answer=expected, subject="")
    return bool(record.answers) and all(check(example, answer.text) for answer in record.answers)


def _is_same(example: Example, output: str) -> bool:
    return output.strip() == example.answer.strip()
