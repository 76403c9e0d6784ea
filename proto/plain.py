"""Plain values: the values that JSON can hold, and so the values that a conversation may hold on any wire.

The client and the engine check with this one function, so that a conversation is the same in process and over gRPC, or
is refused in both.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

MAX_DEPTH = 64  # of lists and mappings in each other
MAX_BITS = 63  # of an integer


class BadValue(ValueError):
    """A value cannot be used; `name` says where it stands, and the reason is what follows the name in a sentence."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name
        self.reason = reason


def plain(name: str, value: Any, depth: int = 0) -> Any:
    """Returns a copy in dicts, lists, texts, numbers, booleans and None; a tuple becomes a list. Raises BadValue.

    name: where the value stands, such as "tools[0]".
    """
    if depth > MAX_DEPTH:
        raise BadValue(name, f"is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {_key(name, key): plain(f"{name}.{key!s:.80}", item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(f"{name}[{index}]", item, depth + 1) for index, item in enumerate(value)]
    return _scalar(name, value)


def _scalar(name: str, value: Any) -> Any:
    """Subclasses of texts and numbers, such as enums and numpy's, lose what else they are."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(name, value)
    if isinstance(value, int):
        if int(value).bit_length() > MAX_BITS:
            raise BadValue(name, f"is an integer of more than {MAX_BITS} bits")
        return int(value)
    if isinstance(value, float):
        if not isfinite(value):
            raise BadValue(name, f"is {float(value)!r}, which JSON does not have")
        return float(value)
    raise BadValue(name, f"is a {type(value).__name__} and no text, number, boolean, None, list or mapping")


def _key(name: str, key: Any) -> str:
    if not isinstance(key, str):  # JSON would make a text of it, and the template would see another key
        raise BadValue(name, f"has the key {key!r:.80}, which is no text")
    return _text(name, key)


def _text(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadValue(name, "is not valid Unicode: it holds a lone surrogate") from None
    return str.__str__(text)
