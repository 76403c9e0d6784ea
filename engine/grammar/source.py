"""GrammarSource: what a request asks of the text of its answer, checked, in one plain text.

Looks at sizes before anything is parsed. Whether the text is a grammar is found where it is compiled.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from blora.scheduler import StructuredOutputsParams

from ..errors import InvalidRequest

MAX_BYTES = 1 << 16  # of a grammar
MAX_DEPTH = 64  # of what is nested in it
FIELD = "structured_outputs"
NESTING = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]", re.DOTALL)  # of a regular expression: escapes, classes
BRACKETS = re.compile(r'"(?:\\.|[^"\\])*"|[()\[\]{}]', re.DOTALL)  # of a grammar: texts, brackets
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
    whitespace: str | None = None  # a regular expression for the space in JSON


def source_of(params: object) -> GrammarSource:
    """Raises InvalidRequest for parameters that are none, or are too large or too deep."""
    if not isinstance(params, StructuredOutputsParams):
        raise InvalidRequest(FIELD, f"{type(params).__name__} is not StructuredOutputsParams")
    flags = ("json_object", "disable_any_whitespace", "disable_additional_properties")
    for name in flags:
        if not isinstance(getattr(params, name), bool | None):
            raise _refused(name, f"{getattr(params, name)!r:.80} is not a boolean")
    kind, value = _the_one(params)
    return GrammarSource(kind, _text(kind, value, params), bool(params.disable_any_whitespace), _whitespace(params))


def _the_one(params: StructuredOutputsParams) -> tuple[Kind, Any]:
    given = [(kind, getattr(params, kind.value)) for kind in Kind if getattr(params, kind.value) is not None]
    if params.json_object:
        given.append((Kind.JSON, {"type": "object"}))
    if len(given) != 1:
        raise InvalidRequest(FIELD, f"{len(given)} of its fields say what the text has to match; {ONE_OF}")
    return given[0]


def _text(kind: Kind, value: Any, params: StructuredOutputsParams) -> str:
    match kind:
        case Kind.REGEX:
            return _nested("regex", _checked_text("regex", value), NESTING)
        case Kind.GRAMMAR:
            return _nested("grammar", _checked_text("grammar", value), BRACKETS)
        case Kind.CHOICE:
            return _choice(value)
    parsed = _read_json(kind.value, value)
    if kind is Kind.JSON and not isinstance(parsed, Mapping | bool):
        raise _refused("json", "is not a JSON schema, which is an object")
    return json.dumps(_closed(parsed) if params.disable_additional_properties else parsed, separators=(",", ":"))


def _whitespace(params: StructuredOutputsParams) -> str | None:
    if params.whitespace_pattern is None:
        return None
    if params.disable_any_whitespace:
        raise _refused("whitespace_pattern", "is given beside disable_any_whitespace")
    return _nested("whitespace_pattern", _checked_text("whitespace_pattern", params.whitespace_pattern), NESTING)


def _refused(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{FIELD}.{name}", reason)


def _checked_text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _refused(name, f"{value!r:.80} is not a text of at least one character")
    _check_size(name, len(value))
    try:
        _check_size(name, len(value.encode()))
    except UnicodeEncodeError:
        raise _refused(name, "is not valid Unicode: it holds a lone surrogate") from None
    if "\0" in value:
        raise _refused(name, "holds a NUL character")
    return value


def _check_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise _refused(name, f"is larger than {MAX_BYTES} bytes")


def _nested(name: str, text: str, pattern: re.Pattern[str]) -> str:
    """Returns a text whose brackets are not nested too deep."""
    depth = 0
    for part in pattern.finditer(text):
        depth += (part[0] in "([{") - (part[0] in ")]}") if len(part[0]) == 1 else 0
        if depth > MAX_DEPTH:
            raise _refused(name, f"is nested deeper than {MAX_DEPTH}")
    return text


def _choice(value: object) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not len(value):
        raise _refused("choice", "is not a list of at least one text")
    _check_size("choice", len(value))
    texts = [_checked_text("choice", text) for text in value]
    _check_size("choice", sum(len(text.encode()) for text in texts))
    return json.dumps(texts)


def _read_json(name: str, value: object) -> Any:
    """Returns a JSON value from its text or from plain values."""
    if isinstance(value, str):
        try:
            value = json.loads(_checked_text(name, value), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise error if isinstance(error, InvalidRequest) else _refused(name, f"is not JSON: {error}") from None
    elif not isinstance(value, Mapping):
        raise _refused(name, f"{type(value).__name__} is neither an object nor a text")
    return _Copier(name).copy(value, 0)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class _Copier:
    """Copies a JSON value, and stops when it is too large."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._size = 0

    def copy(self, value: object, depth: int) -> Any:
        self._grow(1)
        if depth > MAX_DEPTH:
            raise _refused(self._name, f"is nested deeper than {MAX_DEPTH}")
        if isinstance(value, Mapping):
            return {self._text(key): self.copy(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(entry, depth + 1) for entry in value]
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool):
            return value
        return self._number(value)

    def _number(self, value: object) -> int | float:
        is_finite = isinstance(value, float) and value - value == 0
        if not is_finite and not (isinstance(value, int) and value.bit_length() <= 4096):
            raise _refused(self._name, f"{type(value).__name__} is no value of JSON, or too large")
        self._grow(len(str(value)))
        return value  # type: ignore[return-value]

    def _text(self, value: object) -> str:
        if not isinstance(value, str):
            raise _refused(self._name, f"a key is {type(value).__name__}, not a text")
        if value:
            self._grow(len(_checked_text(self._name, value).encode()))
        return value

    def _grow(self, size: int) -> None:
        self._size += size
        _check_size(self._name, self._size)


VALUES = ("const", "default", "enum", "examples")  # keywords that hold values, not schemas
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # that hold schemas by name


def _closed(schema: Any) -> Any:
    """Returns a schema whose objects have no properties but those that it names."""
    if isinstance(schema, list):
        return [_closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed_part(key, value) for key, value in schema.items()}
    has_named = isinstance(schema.get("properties"), dict) or "patternProperties" in schema
    return {**closed, "additionalProperties": False} if has_named and "additionalProperties" not in schema else closed


def _closed_part(key: str, value: Any) -> Any:
    if key in MAPS and isinstance(value, dict):
        return {name: _closed(schema) for name, schema in value.items()}
    return value if key in VALUES else _closed(value)
