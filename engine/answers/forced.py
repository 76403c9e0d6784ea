"""Calls of tools that a request has forced on the model by structured output: the whole text is their JSON."""

from collections.abc import Callable

from .json_call import CallRules, read_calls
from .pieces import Arguments, CallStart, Content
from .text_reader import ANYTHING, SPACES, Reading, TextReader

RULES = CallRules()


def listed_calls(text: TextReader) -> Reading[None]:
    """[{"name": ..., "parameters": {...}}, ...]"""
    text.hold()
    yield from text.take_all(SPACES)
    if (yield from text.peek()) == "[":
        yield from read_calls(text, 0, RULES)
    else:
        yield Content(text.release())
    while (yield from text.peek()):
        yield Content(text.take_some(ANYTHING))


def named_call(name: str) -> Callable[[TextReader], Reading[None]]:
    """The text is the arguments of a call of one tool."""

    def read(text: TextReader) -> Reading[None]:
        yield from text.take_all(SPACES)
        if (yield from text.peek()):
            yield CallStart(0, name)
        while (yield from text.peek()):
            yield Arguments(0, text.take_some(ANYTHING))

    return read
