"""The four demo tasks: makes and splits their data, and checks their outputs. Needs no torch."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from .appointments import is_same_json, make_appointment
from .commits import make_commit
from .example import Example, is_same_line
from .questions import is_same_query, make_question
from .tickets import make_ticket

HELD_OUT_SEED = 2024
# Training sees seven subjects in eight; it never sees the others, in any wording.
HELD_OUT_SHARE = 8


@dataclass(frozen=True)
class Task:
    """One task. instruction: the beginning of the user's message. max_tokens: enough for the longest answer and its end
    token."""

    name: str
    instruction: str
    make_example: Callable[[Random], Example]
    check: Callable[[Example, str], bool]
    max_tokens: int

    def prompt(self, example: Example) -> str:
        """Returns the whole prompt, in the chat format of SmolLM2 and without a system message."""
        return f"<|im_start|>user\n{self.instruction} {example.text}<|im_end|>\n<|im_start|>assistant\n"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("ticket-routing", "Route this support ticket:", make_ticket, is_same_line, max_tokens=10),
        Task("appointment-json", "Appointment as JSON:", make_appointment, is_same_json, max_tokens=40),
        Task("shop-sql", "SQL for this question:", make_question, is_same_query, max_tokens=40),
        Task("commit-style", "Commit message for this note:", make_commit, is_same_line, max_tokens=20),
    )
}


def train_examples(task: Task, count: int, seed: int) -> list[Example]:
    """Returns `count` examples with distinct texts, none about a held-out subject."""
    return distinct_examples(task, count, seed, is_held_out=False)


def held_out_examples(task: Task, count: int = 50) -> list[Example]:
    """Returns `count` examples with distinct texts, all about held-out subjects. They are the same in every run."""
    return distinct_examples(task, count, HELD_OUT_SEED, is_held_out=True)


def is_held_out_subject(subject: str) -> bool:
    # A checksum, because Python's own hash of a string changes from run to run.
    return zlib.crc32(subject.encode()) % HELD_OUT_SHARE == 0


def distinct_examples(task: Task, count: int, seed: int, is_held_out: bool) -> list[Example]:
    found: dict[str, Example] = {}
    for example in endless_examples(task, seed):
        if is_held_out_subject(example.subject) == is_held_out:
            found.setdefault(example.text, example)
        if len(found) == count:
            break
    return list(found.values())


def endless_examples(task: Task, seed: int) -> Iterator[Example]:
    rng = Random(seed)
    while True:
        yield task.make_example(rng)
