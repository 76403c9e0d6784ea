"""What a request asks of its text, as the library of grammars reads it.

Runs where it may take long: in the grammar process, or in the thread of a caller of LLM.
"""

import json
import re
from typing import Any

from llguidance import LLMatcher, grammar_from, regex_to_lark

from ..errors import InvalidRequest
from .source import GrammarSource, Kind, refused
from .structural_tags import lark_of_tags

MAX_DEPTH = 64  # of what is nested in a grammar: the library's own recursion has no such limit
IN_REGEX = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]", re.DOTALL)  # escapes, classes, parentheses
IN_GRAMMAR = re.compile(r'"(?:\\.|[^"\\])*"|[()\[\]{}]', re.DOTALL)  # texts, brackets
ASCII_CLASSES = "dws"  # \\d is 0 to 9, as it is in JSON schemas, and not any digit of any script
VALUES = ("const", "default", "enum", "examples")  # keywords that hold values, not schemas
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # that hold schemas by name


def library_text(source: GrammarSource) -> str:
    """Raises InvalidRequest."""
    name = source.kind.value
    if source.whitespace is not None:
        _check_nesting("whitespace_pattern", source.whitespace, IN_REGEX)
    try:
        match source.kind:
            case Kind.JSON:
                return _schema(source)
            case Kind.REGEX:
                _check_nesting(name, source.text, IN_REGEX)
                regex = regex_to_lark(_without_anchors(source.text), ASCII_CLASSES)
                return LLMatcher.grammar_from_lark(f"start: /{regex}/")
            case Kind.CHOICE:
                return grammar_from("choice", source.text)
            case Kind.GRAMMAR:
                _check_nesting(name, source.text, IN_GRAMMAR)
                return grammar_from("grammar", source.text)
            case Kind.STRUCTURAL_TAG:
                tags = _read_json(name, source.text)
                return LLMatcher.grammar_from_lark(lark_of_tags(tags, json_options(source)))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, InvalidRequest) else refused(name, f"{error!s:.300}") from None


def json_options(source: GrammarSource) -> dict[str, Any]:
    options: dict[str, Any] = {"whitespace_flexible": not source.is_compact}
    return options if source.whitespace is None else options | {"whitespace_pattern": source.whitespace}


def _schema(source: GrammarSource) -> str:
    schema = _read_json("json", source.text)
    if not isinstance(schema, dict | bool):
        raise refused("json", "is not a JSON schema, which is an object")
    text = json.dumps(_closed(schema) if source.is_closed else schema)
    return LLMatcher.grammar_from_json_schema(text, overrides=json_options(source))  # type: ignore[arg-type]


def _check_nesting(name: str, text: str, pattern: re.Pattern[str]) -> None:
    depth = 0
    for part in pattern.finditer(text):
        depth += (part[0] in "([{") - (part[0] in ")]}") if len(part[0]) == 1 else 0
        if depth > MAX_DEPTH:
            raise refused(name, f"is nested deeper than {MAX_DEPTH}")


def _without_anchors(regex: str) -> str:
    """The whole text has to match anyway, and the library knows no anchors."""
    regex = regex.removeprefix("^")
    is_escaped = re.search(r"(?<!\\)(?:\\\\)*\\\$$", regex) is not None
    return regex if is_escaped else regex.removesuffix("$")


def _read_json(name: str, text: str) -> Any:
    value = json.loads(text, parse_constant=_no_constant)
    if _depth(value) > MAX_DEPTH:
        raise refused(name, f"is nested deeper than {MAX_DEPTH}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no value of JSON")


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


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
