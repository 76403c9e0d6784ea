"""Calls of tools as Mistral models write them, behind [TOOL_CALLS].

Older ones write a list, [{"name": ..., "arguments": {...}}, ...]; newer ones write each call as name[ARGS]{...}, some
with name[CALL_ID]id[ARGS]{...} or without [ARGS].
"""

import re

from .json_call import CallRules, read_arguments, read_calls
from .pieces import CallStart, Content
from .text_reader import SPACES, Reading, TextReader, Waiting, content_until

START = "[TOOL_CALLS]"
RULES = CallRules()
NAME = re.compile(r"[\w.-]+")


def mistral_calls(text: TextReader) -> Reading[None]:
    index = 0
    while (yield from content_until(text, START)):
        yield from text.take_all(SPACES)
        if (yield from text.peek()) == "[":
            index = yield from read_calls(text, index, RULES)
        elif name := (yield from _name(text)):
            text.release()
            yield CallStart(index, name)
            yield from read_arguments(text, index)
            index += 1
        else:
            yield Content(text.release())


def _name(text: TextReader) -> Waiting[str]:
    """Returns the name of a call whose arguments come next; nothing if none do."""
    name = yield from text.take_all(NAME)
    if name and (yield from text.take("[CALL_ID]")):
        yield from text.take_all(NAME)
    yield from text.take("[ARGS]")
    yield from text.take_all(SPACES)
    return name if (yield from text.peek()) == "{" else ""
