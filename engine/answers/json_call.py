"""A call of a tool that is written as a JSON object: {"name": ..., "arguments": {...}}.

The arguments pass as the model wrote them, while it writes them: a brace that closes them is looked for, and nothing
else is judged. What is around them has to be JSON. A call begins with its name and the first character of its
arguments. Before that, anything wrong means that there is no call; from then on, there is one.
"""

import json
import re
from collections.abc import Collection, Generator
from contextlib import suppress
from dataclasses import dataclass

from .pieces import Arguments, CallStart, Content
from .text_reader import SPACES, Reading, TextReader, Waiting

ARGUMENTS = ("arguments", "parameters")
OTHER_KEYS = ("id", "type")  # which models write beside them
IN_STRING = re.compile(r'(?s)(?:[^"\\]|\\.)+')
STRUCTURE = re.compile(r'[^"<]+')  # of an object or a list, outside its strings
BRACKET = re.compile(r"[{}\[\]]")
IN_SCALAR = re.compile(r'[^\s"{}\[\]<,:]+')
NO_ARGUMENTS = "{}"


class Malformed(Exception):
    """This text is no call."""


@dataclass(frozen=True, slots=True)
class CallRules:
    end: str = ""  # what ends a call, even in the middle of its arguments, though not inside a string there
    names: Collection[str] | None = None  # other names make no call; None allows all
    is_bare: bool = False  # nothing marks the call: it needs arguments, and no keys but those of calls


def read_call(text: TextReader, index: int, rules: CallRules) -> Reading[bool]:
    """Reads the object of a call, and returns whether a call has begun. Text has to be held; it is released if so."""
    call = _CallObject(text, index, rules)
    with suppress(Malformed):
        yield from call.read()
    return call.has_begun


def read_calls(text: TextReader, index: int, rules: CallRules) -> Reading[int]:
    """Reads a list of calls, at its bracket, and returns the index after the last of them. Text has to be held; what is
    no call becomes content."""
    text.take_next(1)
    yield from text.take_all(SPACES)
    while (yield from read_call(text, index, rules)):
        index += 1
        text.hold()
        yield from text.take_all(SPACES)
        if (yield from text.take("]")):
            text.release()
            return index
        yield from text.take(",")
        yield from text.take_all(SPACES)
    yield Content(text.release())
    return index


def read_arguments(text: TextReader, index: int, end: str = "") -> Reading[None]:
    """Reads the arguments of a call that has begun, at their brace. end: as in CallRules."""
    for part in _value(text, end):
        yield None if part is None else Arguments(index, part)


class _CallObject:
    def __init__(self, text: TextReader, index: int, rules: CallRules) -> None:
        self._text = text
        self._index = index
        self._rules = rules
        self._name = ""
        self._arguments = ""  # those that were written before the name
        self.has_begun = False

    def read(self) -> Reading[None]:
        yield from _expect(self._text, "{")
        if not (yield from self._take("}")):
            yield from self._read_field()
            while (yield from self._take(",")):
                yield from self._read_field()
            yield from _expect(self._text, "}")
        if not self.has_begun and not self._rules.is_bare:
            yield from self._begin(self._arguments or NO_ARGUMENTS)

    def _take(self, mark: str) -> Waiting[bool]:
        yield from self._text.take_all(SPACES)
        return (yield from self._text.take(mark))

    def _read_field(self) -> Reading[None]:
        yield from self._text.take_all(SPACES)
        key = yield from _read_string(self._text)
        yield from _expect(self._text, ":")
        yield from self._text.take_all(SPACES)
        if key == "name" and not self._name:
            self._name = yield from self._read_name()
        elif key in ARGUMENTS and not self.has_begun:
            yield from self._read_arguments()
        elif self._rules.is_bare and key not in OTHER_KEYS:
            raise Malformed
        else:
            yield from _whole(_value(self._text, ""))
        if self._name and self._arguments and not self.has_begun:
            yield from self._begin(self._arguments)

    def _read_name(self) -> Waiting[str]:
        name = yield from _read_string(self._text)
        if not name or (self._rules.names is not None and name not in self._rules.names):
            raise Malformed
        return name

    def _read_arguments(self) -> Reading[None]:
        """An object passes as it is. A string is JSON in JSON, which is unpacked. Null means none."""
        first = yield from self._text.peek()
        if first == '"':
            self._arguments = (yield from _read_string(self._text)) or NO_ARGUMENTS
        elif first != "{":
            if (yield from _whole(_value(self._text, ""))) != "null":
                raise Malformed
            self._arguments = NO_ARGUMENTS
        elif self._name:
            yield from self._begin("")
            yield from read_arguments(self._text, self._index, self._rules.end)
        else:
            self._arguments = yield from _whole(_value(self._text, self._rules.end))

    def _begin(self, arguments: str) -> Reading[None]:
        if not self._name:
            raise Malformed
        self.has_begun = True
        self._text.release()
        yield CallStart(self._index, self._name)
        if arguments:
            yield Arguments(self._index, arguments)


def _expect(text: TextReader, mark: str) -> Waiting[None]:
    yield from text.take_all(SPACES)
    if not (yield from text.take(mark)):
        raise Malformed


def _read_string(text: TextReader) -> Waiting[str]:
    """Returns the value of a string. Raises Malformed where there is none."""
    if (yield from text.peek()) != '"':
        raise Malformed
    written = yield from _whole(_string(text))
    try:
        value = str(json.loads(written, strict=False))  # models write lines as they are
        value.encode()  # half a pair of UTF-16 is no character
    except ValueError as error:
        raise Malformed from error
    return value


# The text of JSON in parts, as they come, and None where more text is needed. Brackets are counted, not compared.

Parts = Generator[str | None, None, None]


def _whole(parts: Parts) -> Waiting[str]:
    taken = []
    for part in parts:
        if part is None:
            yield None
        else:
            taken.append(part)
    return "".join(taken)


def _value(text: TextReader, end: str) -> Parts:
    """end: what ends the value before its last bracket; it is not taken."""
    depth = 0
    while char := (yield from text.peek()):
        if char == '"':
            yield from _string(text)
        elif char == "<":
            if not depth or (end and (yield from text.is_next(end))):
                return
            yield text.take_next(1)
        elif depth or char in "{[":
            number, depth = _inside(text.look(STRUCTURE), depth)
            yield text.take_next(number)
        else:
            yield from _scalar(text)
            return
        if not depth:
            return


def _inside(structure: str, depth: int) -> tuple[int, int]:
    """Returns how many characters are inside a value, and how deep it is open after them."""
    for bracket in BRACKET.finditer(structure):
        depth += 1 if bracket[0] in "{[" else -1
        if not depth:
            return bracket.end(), depth
    return len(structure), depth


def _scalar(text: TextReader) -> Parts:
    while (yield from text.peek()) and (part := text.take_some(IN_SCALAR)):
        yield part


def _string(text: TextReader) -> Parts:
    yield text.take_next(1)
    while char := (yield from text.peek()):
        if part := text.take_some(IN_STRING):
            yield part
            continue
        yield text.take_next(1)
        if char == '"':
            return
        if (yield from text.peek()):  # the other half of an escape
            yield text.take_next(1)
