"""AnswerParser: divides one answer while its text comes. What its pieces add up to does not depend on how the text was
cut."""

from collections.abc import Callable

from .pieces import Answer, Content, Piece, joined, whole
from .reasoning import Marks, read_reasoning
from .spaces import without_separators
from .text_reader import ANYTHING, Reading, TextReader

Calls = Callable[[TextReader], Reading[None]]


class AnswerParser:
    def __init__(self, calls: Calls, marks: Marks | None = None, *, is_open: bool = False) -> None:
        """calls: reads the text after the reasoning. marks: of the reasoning; None if the model has none. is_open:
        whether the text begins inside the reasoning."""
        self._text = TextReader()
        self._pieces = without_separators(_answer(self._text, calls, marks, is_open))

    def push(self, text: str) -> list[Piece]:
        """Returns what is certain after the next part of the text."""
        self._text.add(text)
        return joined(self._advance())

    def finish(self) -> list[Piece]:
        """Returns the rest, because no text follows."""
        self._text.end()
        return joined(self._advance())

    def parse(self, text: str) -> Answer:
        """Divides a whole answer."""
        return whole([*self.push(text), *self.finish()])

    def _advance(self) -> list[Piece]:
        pieces: list[Piece] = []
        for piece in self._pieces:
            if piece is None:
                return pieces
            pieces.append(piece)
        return pieces


def _answer(text: TextReader, calls: Calls, marks: Marks | None, is_open: bool) -> Reading[None]:
    if marks is not None:
        yield from read_reasoning(text, marks, is_open)
    yield from calls(text)


def content_only(text: TextReader) -> Reading[None]:
    while (yield from text.peek()):
        yield Content(text.take_some(ANYTHING))
