"""What a request may ask of the text of its answer, before any library looks at it."""

import json
from typing import Any

import pytest

from blora.engine import InvalidRequest, StructuredOutputsParams
from blora.engine.grammar.source import MAX_BYTES, MAX_DEPTH, GrammarSource, Kind, source_of


def nested(depth: int) -> dict[str, Any]:
    return {} if depth == 0 else {"items": nested(depth - 1)}


def around() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["items"] = value
    return value


GOOD = {
    "object": ({"json": {"type": "object"}}, Kind.JSON, '{"type":"object"}'),
    "text": ({"json": ' {"b": 1, "a": [true, null]}'}, Kind.JSON, '{"b":1,"a":[true,null]}'),
    "any": ({"json_object": True}, Kind.JSON, '{"type":"object"}'),
    "not that": ({"json_object": False, "regex": "a"}, Kind.REGEX, "a"),
    "deep": ({"json": nested(MAX_DEPTH)}, Kind.JSON, json.dumps(nested(MAX_DEPTH), separators=(",", ":"))),
    "regex": ({"regex": "(a|[(]+)*"}, Kind.REGEX, "(a|[(]+)*"),
    "escaped": ({"regex": r"\(" * 100}, Kind.REGEX, r"\(" * 100),
    "class": ({"regex": "[^](]" * 100}, Kind.REGEX, "[^](]" * 100),
    "choice": ({"choice": ("ä", "b")}, Kind.CHOICE, '["\\u00e4", "b"]'),
    "lark": ({"grammar": 'start: "((" | "a"'}, Kind.GRAMMAR, 'start: "((" | "a"'),
    "tag": ({"structural_tag": '{"triggers": []}'}, Kind.STRUCTURAL_TAG, '{"triggers":[]}'),
}
BAD = {
    "nothing": ({}, ""),
    "no object": ({"json_object": False}, ""),
    "two": ({"json": {}, "regex": "a"}, ""),
    "an object and a choice": ({"json_object": True, "choice": ["a"]}, ""),
    "no schema": ({"json": "[]"}, "json"),
    "number": ({"json": 1}, "json"),
    "no JSON": ({"json": "{"}, "json"),
    "NaN": ({"json": '{"a": NaN}'}, "json"),
    "infinite": ({"json": {"a": float("inf")}}, "json"),
    "no value": ({"json": {"a": object}}, "json"),
    "no key": ({"json": {1: 2}}, "json"),
    "too deep": ({"json": nested(MAX_DEPTH + 1)}, "json"),
    "too deep text": ({"json": "[" * 60_000}, "json"),
    "endless": ({"json": around()}, "json"),
    "large": ({"json": {"enum": ["x" * 1000] * 70}}, "json"),
    "large text": ({"json": '"' + "x" * MAX_BYTES + '"'}, "json"),
    "many": ({"json": {"enum": [None] * (MAX_BYTES + 1)}}, "json"),
    "surrogate": ({"json": {"a": "\ud800"}}, "json"),
    "empty": ({"regex": ""}, "regex"),
    "bytes": ({"regex": b"a"}, "regex"),
    "parentheses": ({"regex": "(" * 30_000 + "a" + ")" * 30_000}, "regex"),
    "long": ({"regex": "ä" * (MAX_BYTES // 2 + 1)}, "regex"),
    "no choice": ({"choice": []}, "choice"),
    "a text": ({"choice": "abc"}, "choice"),
    "empty choice": ({"choice": [""]}, "choice"),
    "choice of numbers": ({"choice": [1]}, "choice"),
    "many choices": ({"choice": ["x"] * (MAX_BYTES + 1)}, "choice"),
    "deep grammar": ({"grammar": "start: " + "[" * 100 + '"a"' + "]" * 100}, "grammar"),
    "tag": ({"structural_tag": "x"}, "structural_tag"),
    "flag": ({"json": {}, "disable_any_whitespace": 1}, "disable_any_whitespace"),
    "two spaces": ({"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " ?"}, "whitespace_pattern"),
}


@pytest.mark.parametrize(("fields", "kind", "text"), GOOD.values(), ids=GOOD)
def test_what_is_asked_for_becomes_one_text(fields: dict[str, Any], kind: Kind, text: str) -> None:
    assert source_of(StructuredOutputsParams(**fields)) == GrammarSource(kind, text)


@pytest.mark.parametrize(("fields", "name"), BAD.values(), ids=BAD)
def test_what_cannot_be_a_grammar_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        source_of(StructuredOutputsParams(**fields))
    assert caught.value.field == f"structured_outputs.{name}".rstrip(".")
    assert len(str(caught.value)) < 1000


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
    source = source_of(StructuredOutputsParams(json=schema, disable_additional_properties=True))
    assert json.loads(source.text) == {**schema, "$defs": {"x": closed}}


def test_a_copy_shares_nothing() -> None:
    params = StructuredOutputsParams(json={"enum": [1]})
    copy = params.clone()
    params.json["enum"].append(2)  # type: ignore[index]
    assert copy.json == {"enum": [1]}
