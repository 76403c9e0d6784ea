"""Plain values: the values that JSON can hold, and so the values that a conversation may hold on any wire.

The client and the engine check with this one function, so that a conversation is the same in process and over gRPC, or
is refused in both.
"""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

MAX_DEPTH = 64  # of lists and mappings in each other
MAX_BITS = 63  # of an integer


class BadValue(ValueError):
    """A value cannot be used; `name` says where it stands, and the reason is what follows the name in a sentence."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"

    def within(self, name: str) -> "BadValue":
        """Returns the same fault of a value that stands in a larger one."""
        return BadValue(f"{name}{self.name}", self.reason)


def plain(name: str, value: Any) -> Any:
    """Returns a copy in dicts, lists, texts, numbers, booleans and None; a tuple becomes a list. Raises BadValue.

    name: where the value stands, such as "tools[0]".
    """
    try:
        return _copy(value, 0)
    except BadValue as error:
        raise error.within(name) from None


def _copy(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, str | int | float):
        return _scalar(value)
    if depth >= MAX_DEPTH:
        raise BadValue("", f"is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, list | tuple):
        return _copy_list(value, depth + 1)
    if isinstance(value, Mapping):
        return _copy_mapping(value, depth + 1)
    raise BadValue("", f"is a {type(value).__name__} and no text, number, boolean, None, list or mapping")


# The place of a value is put together when it is told, because nearly all values are good.


def _copy_list(values: Iterable[Any], depth: int) -> list[Any]:
    copied = []
    for index, value in enumerate(values):
        try:
            copied.append(_copy(value, depth))
        except BadValue as error:
            raise error.within(f"[{index}]") from None
    return copied


def _copy_mapping(values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    copied = {}
    for key, value in values.items():
        name = _key(key)
        try:
            copied[name] = _copy(value, depth)
        except BadValue as error:
            raise error.within(f".{name:.80}") from None
    return copied


def _scalar(value: Any) -> Any:
    """Subclasses of texts and numbers, such as enums and numpy's, lose what else they are."""
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if int(value).bit_length() > MAX_BITS:
            raise BadValue("", f"is an integer of more than {MAX_BITS} bits")
        return int(value)
    if not isfinite(value):
        raise BadValue("", f"is {float(value)!r}, which JSON does not have")
    return float(value)


def _key(key: Any) -> str:
    if not isinstance(key, str):  # JSON would make a text of it, and the template would see another key
        raise BadValue("", f"has the key {key!r:.80}, which is no text")
    return _text(key)


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadValue("", "is not valid Unicode: it holds a lone surrogate") from None
    return str.__str__(text)
