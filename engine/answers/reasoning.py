"""Reasoning: what a model thinks between two marks, before its answer. A prompt may end with the first of them."""

from dataclasses import dataclass

from .pieces import Content, Reasoning
from .text_reader import SPACES, Reading, TextReader


@dataclass(frozen=True, slots=True)
class Marks:
    start: str = "<think>"
    end: str = "</think>"

    def is_open(self, prompt: str) -> bool:
        """Returns whether an answer to the prompt begins inside the reasoning. Marks farther up belong to others."""
        return prompt.rstrip().endswith(self.start)


def read_reasoning(text: TextReader, marks: Marks, is_open: bool) -> Reading[None]:
    """is_open: whether the text begins inside the reasoning; some models write the first mark all the same. Spaces
    around the marks belong to them."""
    text.hold()
    yield from text.take_all(SPACES)
    has_start = yield from text.take(marks.start)
    spaces = text.release()
    if not has_start and not is_open:
        yield Content(spaces)
        return
    yield from text.take_all(SPACES)
    while (yield from text.peek()):
        if before := text.take_before(marks.end):
            yield Reasoning(before)
        elif (yield from text.take(marks.end)):
            break
        else:
            yield Reasoning(text.take_next(1))
    yield from text.take_all(SPACES)
