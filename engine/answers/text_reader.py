"""TextReader: reads a text that comes in parts.

A grammar is a generator that reads from it. It yields its pieces, and None where it cannot go on before more text has
come; so it is written as if the whole text were there, and what it yields does not depend on how the text is cut.
"""

import re
from collections.abc import Generator
from typing import TypeVar

from .pieces import Content, Piece

T = TypeVar("T")
Reading = Generator[Piece | None, None, T]
Waiting = Generator[None, None, T]

SPACES = re.compile(r"\s+")
ANYTHING = re.compile(r"(?s).+")


class TextReader:
    def __init__(self) -> None:
        self._part = ""
        self._at = 0  # what is before it has been taken
        self._is_ended = False
        self._held: list[str] | None = None

    def add(self, part: str) -> None:
        self._part = self._part[self._at :] + part
        self._at = 0

    def end(self) -> None:
        self._is_ended = True

    # Waiting for text, and taking it.

    def peek(self) -> Waiting[str]:
        """Returns the next character; at the end of the text, nothing."""
        while self._at == len(self._part) and not self._is_ended:
            yield None
        return self._part[self._at : self._at + 1]

    def is_next(self, literal: str) -> Waiting[bool]:
        while not self._is_ended and self._could_become(literal):
            yield None
        return self._part.startswith(literal, self._at)

    def take(self, literal: str) -> Waiting[bool]:
        """Takes a literal; returns False, and takes nothing, where something else follows."""
        is_next = yield from self.is_next(literal)
        if is_next:
            self._take(self._at + len(literal))
        return is_next

    def take_all(self, run: re.Pattern[str]) -> Waiting[str]:
        """Takes as many characters as match. run: any part of what matches has to match, too."""
        parts = []
        while (yield from self.peek()) and (part := self.take_some(run)):
            parts.append(part)
        return "".join(parts)

    def take_some(self, run: re.Pattern[str]) -> str:
        """Takes of the characters that have come those that match."""
        found = run.match(self._part, self._at)
        return self._take(found.end()) if found else ""

    def take_before(self, literal: str) -> str:
        """Takes of the characters that have come those before a literal, and before what may become it."""
        at = self._part.find(literal, self._at)
        return self._take(at if at >= 0 else len(self._part) - self._num_beginning(literal))

    def look(self, run: re.Pattern[str]) -> str:
        """Returns what `take_some` would take."""
        found = run.match(self._part, self._at)
        return found[0] if found else ""

    def take_next(self, number: int) -> str:
        """Takes so many characters, which have come."""
        return self._take(self._at + number)

    def _num_beginning(self, literal: str) -> int:
        """Returns the length of the longest end of what has come with which a longer literal begins."""
        most = min(len(literal) - 1, len(self._part) - self._at)
        if literal[0] not in self._part[len(self._part) - most :]:
            return 0
        return next((number for number in range(most, 0, -1) if self._part.endswith(literal[:number])), 0)

    def _could_become(self, literal: str) -> bool:
        rest = self._part[self._at : self._at + len(literal)]
        return len(rest) < len(literal) and literal.startswith(rest)

    def _take(self, end: int) -> str:
        taken = self._part[self._at : end]
        self._at = end
        if self._held is not None:
            self._held.append(taken)
        return taken

    # Holding back what may turn out to be something else.

    def hold(self) -> None:
        """Keeps what is taken from now on."""
        self._held = []

    def release(self) -> str:
        """Returns what was taken since `hold`, and keeps it no longer."""
        held, self._held = self._held or [], None
        return "".join(held)


def content_until(text: TextReader, marker: str) -> Reading[bool]:
    """Yields the content before a marker. Then it holds the marker; False at the end of the text."""
    while (yield from text.peek()):
        if before := text.take_before(marker):
            yield Content(before)
            continue
        text.hold()
        if (yield from text.take(marker)):
            return True
        text.release()
        yield Content(text.take_next(1))
    return False
