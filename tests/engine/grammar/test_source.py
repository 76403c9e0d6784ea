"""What a request may ask of the text of its answer, and the limits of it."""

import json
import time
from typing import Any

import pytest

from blora.engine import InvalidRequest, StructuredOutputsParams
from blora.engine.grammar.library_text import MAX_DEPTH, _closed, library_text
from blora.engine.grammar.source import MAX_BYTES, MAX_VALUES, GrammarSource, Kind, source_of


def nested(depth: int) -> dict[str, Any]:
    return {} if depth == 1 else {"items": nested(depth - 1)}


def around() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["items"] = value
    return value


GOOD = {
    "object": ({"json": {"type": "object"}}, Kind.JSON, '{"type":"object"}'),
    "text": ({"json": ' {"b": 1}'}, Kind.JSON, ' {"b": 1}'),
    "any": ({"json_object": True}, Kind.JSON, '{"type":"object"}'),
    "not that": ({"json_object": False, "regex": "a"}, Kind.REGEX, "a"),
    "choice": ({"choice": ("ä", "b")}, Kind.CHOICE, '["ä", "b"]'),
    "lark": ({"grammar": 'start: "((" | "a"'}, Kind.GRAMMAR, 'start: "((" | "a"'),
    "tag": ({"structural_tag": {"triggers": []}}, Kind.STRUCTURAL_TAG, '{"triggers":[]}'),
}
SHAPES = {
    "nothing": ({}, ""),
    "no object": ({"json_object": False}, ""),
    "two": ({"json": {}, "regex": "a"}, ""),
    "an object and a choice": ({"json_object": True, "choice": ["a"]}, ""),
    "number": ({"json": 1}, "json"),
    "infinite": ({"json": {"a": float("inf")}}, "json"),
    "no value": ({"json": {"a": object}}, "json"),
    "no key": ({"json": {(1,): 2}}, "json"),
    "endless": ({"json": around()}, "json"),
    "large": ({"json": {"enum": ["x" * 1000] * 70}}, "json"),
    "large text": ({"json": '"' + "x" * MAX_BYTES + '"'}, "json"),
    "one large": ({"json": {"enum": ["x" * (1 << 28)]}}, "json"),
    "many": ({"json": {"enum": [None] * (MAX_VALUES + 1)}}, "json"),
    "surrogate": ({"json": {"a": "\ud800"}}, "json"),
    "empty": ({"regex": ""}, "regex"),
    "bytes": ({"regex": b"a"}, "regex"),
    "long": ({"regex": "ä" * (MAX_BYTES // 2 + 1)}, "regex"),
    "NUL": ({"grammar": "start: \0"}, "grammar"),
    "no choice": ({"choice": []}, "choice"),
    "a text": ({"choice": "abc"}, "choice"),
    "empty choice": ({"choice": [""]}, "choice"),
    "choice of numbers": ({"choice": [1]}, "choice"),
    "many choices": ({"choice": ["x"] * (MAX_VALUES + 1)}, "choice"),
    "flag": ({"json": {}, "disable_any_whitespace": 1}, "disable_any_whitespace"),
    "two spaces": ({"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " ?"}, "whitespace_pattern"),
}
MEANINGS = {
    "no schema": ({"json": "[]"}, "json"),
    "no JSON": ({"json": "{"}, "json"),
    "NaN": ({"json": '{"a": NaN}'}, "json"),
    "too deep": ({"json": nested(MAX_DEPTH + 1)}, "json"),
    "too deep text": ({"json": "[" * 60_000}, "json"),
    "deeper than Python goes": ({"json": "[" * 30_000 + "]" * 30_000}, "json"),
    "parentheses": ({"regex": "(" * 30_000 + "a" + ")" * 30_000}, "regex"),
    "deep space": ({"json": {}, "whitespace_pattern": "(" * 100 + ")" * 100}, "whitespace_pattern"),
    "deep grammar": ({"grammar": "start: " + "[" * 100 + '"a"' + "]" * 100}, "grammar"),
    "no tag": ({"structural_tag": "[]"}, "structural_tag"),
    "no trigger": ({"structural_tag": {"structures": [], "triggers": []}}, "structural_tag"),
    "no such format": ({"structural_tag": {"format": {"type": "x"}}}, "structural_tag"),
}


def refused(fields: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        library_text(source_of(StructuredOutputsParams(**fields)))
    assert len(str(caught.value)) < 1000
    return caught.value


@pytest.mark.parametrize(("fields", "kind", "text"), GOOD.values(), ids=GOOD)
def test_what_is_asked_for_becomes_one_text(fields: dict[str, Any], kind: Kind, text: str) -> None:
    assert source_of(StructuredOutputsParams(**fields)) == GrammarSource(kind, text)


@pytest.mark.parametrize(("fields", "name"), SHAPES.values(), ids=SHAPES)
def test_wrong_shapes_and_sizes_are_refused_before_anything_is_parsed(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        source_of(StructuredOutputsParams(**fields))
    assert caught.value.field == f"structured_outputs.{name}".rstrip(".")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("fields", "name"), MEANINGS.values(), ids=MEANINGS)
def test_what_cannot_be_a_grammar_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    assert refused(fields).field == f"structured_outputs.{name}"


@pytest.mark.parametrize("regex", [r"\(" * 100, "[^](]" * 100, "(a|[(]+)*", "[(]" * 100])
def test_brackets_that_nest_nothing_do_not_count(regex: str) -> None:
    assert library_text(GrammarSource(Kind.REGEX, regex))


def test_the_deepest_schema_is_read() -> None:
    assert library_text(source_of(StructuredOutputsParams(json=nested(MAX_DEPTH))))


def test_the_event_loop_does_not_wait_for_what_is_too_large() -> None:
    """Sizes are looked at first: a copy of this list would take a second."""
    huge = {"enum": [{}] * 5_000_000}
    began = time.process_time()
    assert refused({"json": huge}).field == "structured_outputs.json"
    assert time.process_time() - began < 0.3


def test_objects_are_closed_that_say_nothing_else() -> None:
    part = {"properties": {"properties": {"properties": {"a": True}}, "enum": {"type": "string"}}}
    schema = {"$defs": {"x": part}, "enum": [{"properties": {}}], "additionalProperties": True, "properties": {}}
    closed = {
        "properties": {
            "properties": {"properties": {"a": True}, "additionalProperties": False},
            "enum": {"type": "string"},
        },
        "additionalProperties": False,
    }
    assert _closed(json.loads(json.dumps(schema))) == {**schema, "$defs": {"x": closed}}


def test_a_copy_shares_nothing() -> None:
    params = StructuredOutputsParams(json={"enum": [1]})
    copy = params.clone()
    params.json["enum"].append(2)  # type: ignore[index]
    assert copy.json == {"enum": [1]}
