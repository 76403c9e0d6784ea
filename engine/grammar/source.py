"""GrammarSource: what a request asks of the text of its answer, in one plain text. Knows no library.

All streams wait while it is made, so it looks at types and sizes only. What the text means is found where it is
compiled.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from blora.scheduler import StructuredOutputsParams

from ..errors import InvalidRequest

MAX_BYTES = 1 << 16  # of a grammar
MAX_VALUES = 1 << 14  # of a JSON schema that comes as an object, keys included
FIELD = "structured_outputs"
FLAGS = ("json_object", "disable_any_whitespace", "disable_additional_properties")
ONE_OF = "set exactly one of json, regex, choice, grammar, json_object and structural_tag"


class Kind(Enum):
    JSON = "json"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    STRUCTURAL_TAG = "structural_tag"


@dataclass(frozen=True, slots=True)
class GrammarSource:
    kind: Kind
    text: str  # JSON, but for a regular expression and a grammar
    is_compact: bool = False  # whether JSON has no space
    is_closed: bool = False  # whether objects of a schema have no properties but those that it names
    whitespace: str | None = None  # a regular expression for the space in JSON

    @property
    def size(self) -> int:
        return len(self.text) + len(self.whitespace or "")


def refused(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{FIELD}.{name}", reason)


def source_of(params: StructuredOutputsParams) -> GrammarSource:
    """Raises InvalidRequest for parameters of wrong types, and for what is too large to be looked at."""
    for name in FLAGS:
        if not isinstance(getattr(params, name), bool | None):
            raise refused(name, f"{getattr(params, name)!r:.80} is not a boolean")
    kind, value = _the_one(params)
    return GrammarSource(
        kind,
        _text(kind, value),
        is_compact=bool(params.disable_any_whitespace),
        is_closed=bool(params.disable_additional_properties),
        whitespace=_whitespace(params),
    )


def _the_one(params: StructuredOutputsParams) -> tuple[Kind, Any]:
    given = [(kind, getattr(params, kind.value)) for kind in Kind if getattr(params, kind.value) is not None]
    if params.json_object:
        given.append((Kind.JSON, {"type": "object"}))
    if len(given) != 1:
        raise InvalidRequest(FIELD, f"{len(given)} of its fields say what the text has to match; {ONE_OF}")
    return given[0]


def _text(kind: Kind, value: Any) -> str:
    if kind is Kind.CHOICE:
        return _texts(value)
    if kind in (Kind.JSON, Kind.STRUCTURAL_TAG) and isinstance(value, Mapping):
        return _dumped(kind.value, value)
    return _checked(kind.value, value)


def _whitespace(params: StructuredOutputsParams) -> str | None:
    if params.whitespace_pattern is None:
        return None
    if params.disable_any_whitespace:
        raise refused("whitespace_pattern", "is given beside disable_any_whitespace")
    return _checked("whitespace_pattern", params.whitespace_pattern)


def _checked(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise refused(name, f"{value!r:.80} is not a text of at least one character")
    _check_size(name, len(value))
    try:
        _check_size(name, len(value.encode()))
    except UnicodeEncodeError:
        raise refused(name, "is not valid Unicode: it holds a lone surrogate") from None
    if "\0" in value:
        raise refused(name, "holds a NUL character")
    return value


def _check_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise refused(name, f"is larger than {MAX_BYTES} bytes")


def _texts(value: object) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not len(value):
        raise refused("choice", "is not a list of at least one text")
    if len(value) > MAX_VALUES:
        raise refused("choice", f"{len(value)} texts are more than {MAX_VALUES}")
    texts = [_checked("choice", text) for text in value]
    _check_size("choice", sum(map(len, texts)))
    return _checked("choice", json.dumps(texts, ensure_ascii=False))


def _dumped(name: str, value: Mapping[str, Any]) -> str:
    _check_number_of_values(name, value)
    try:
        return _checked(name, json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise error if isinstance(error, InvalidRequest) else refused(name, f"is not JSON: {error!s:.200}") from None


def _check_number_of_values(name: str, value: object) -> None:
    """Stops early in a large value, and in one that holds itself."""
    num_values, open_values = 0, [value]
    while open_values:
        value = open_values.pop()
        if isinstance(value, Mapping | list | tuple):
            num_values += len(value) + 1
            if num_values > MAX_VALUES:
                raise refused(name, f"has more than {MAX_VALUES} values")
            open_values += value.values() if isinstance(value, Mapping) else value
        elif isinstance(value, str):
            _check_size(name, len(value))
