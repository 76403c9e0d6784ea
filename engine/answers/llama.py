"""Calls of tools as Llama 3 models write them: {"name": ..., "parameters": {...}}, several with ";" between them.

<|python_tag|> may stand before them. Without it, an object is a call only where a line begins and if it has the name
of a tool, because an answer can be an object, too. Other calls that the tag begins, those of programs, stay content.
"""

import re
from collections.abc import Collection

from .json_call import CallRules, read_call
from .pieces import Content
from .text_reader import SPACES, Reading, TextReader

TAG = "<|python_tag|>"
TAGGED = CallRules()
LINE = re.compile(r"[^\n{<]+")
LINE_ENDS = re.compile(r"\n+")


def llama_calls(text: TextReader, names: Collection[str] | None) -> Reading[None]:
    """names: of the tools; None is any."""
    bare = CallRules(names=names, is_bare=True)
    index, begins_line = 0, True
    while char := (yield from text.peek()):
        text.hold()
        is_tagged = char == "<" and (yield from text.take(TAG))
        if is_tagged or (char == "{" and begins_line):
            has_call = yield from read_call(text, index, TAGGED if is_tagged else bare)
            begins_line = has_call
            yield from _separator(text) if has_call else _held(text)
            index += has_call
        else:
            text.release()
            ends = text.take_some(LINE_ENDS)
            words = ends or text.take_some(LINE) or text.take_next(1)
            begins_line = bool(ends) or (begins_line and words.isspace())
            yield Content(words)


def _separator(text: TextReader) -> Reading[None]:
    text.hold()
    yield from text.take_all(SPACES)
    is_separated = yield from text.take(";")
    rest = text.release()
    if not is_separated:
        yield Content(rest)


def _held(text: TextReader) -> Reading[None]:
    yield Content(text.release())
