"""One input of a demo task with its one right answer. Knows no task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """`subject` is what the example is about, whatever the wording: it decides the side of the held-out split."""

    text: str
    answer: str
    subject: str


def is_same_line(example: Example, output: str) -> bool:
    """The check of a task whose answer is one exact line."""
    return output.strip() == example.answer
