"""One input of a demo task with its one right answer. Knows no task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """An input with its answer. subject: the topic without its wording; it decides the side of the held-out split."""

    text: str
    answer: str
    subject: str


def is_same_line(example: Example, output: str) -> bool:
    """Checks the output of a task whose answer is one exact line."""
    return output.strip() == example.answer
