"""Random JSON schemas of every kind that is served, as public suites of schemas have them."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
NAMES = ("a", "name", "größe", "a b", 'q"uote', "x-y", "0")
TEXTS = ("", "x", "Ünïcode", 'quote"d', "back\\slash", "line\nend", "42", "null")
PATTERNS = (r"^[a-z]{2,4}$", r"^[0-9]{3}-[0-9]{2}$", r"^(ja|nein)$", r"^x+y?$", r"^[A-Z][a-z]*( [A-Z][a-z]*)?$", "^ab")
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "duration")
LEAF_KINDS: dict[str, Callable[[random.Random], Schema]] = {
    "null": lambda _: {"type": "null"},
    "boolean": lambda _: {"type": "boolean"},
    "const": lambda draw: {"const": draw.choice([1, "x", True, None, [1, "a"], {"k": 2}])},
    "enum": lambda draw: {"enum": draw.sample([1, 2.5, "a", "b c", None, False, *TEXTS], draw.randint(1, 4))},
    "typed enum": lambda draw: {"type": "string", "enum": draw.sample(TEXTS, 3)},
    "pattern": lambda draw: {"type": "string", "pattern": draw.choice(PATTERNS)},
    "format": lambda draw: {"type": "string", "format": draw.choice(FORMATS)},
    "length": lambda draw: _bounds(draw, "minLength", "maxLength", 6) | {"type": "string"},
    "integer": lambda draw: _range(draw) | {"type": "integer"},
    "number": lambda draw: _range(draw, 0.5) | {"type": "number"},
    "multiple": lambda draw: {"type": "integer", "multipleOf": draw.choice([2, 5, 7]), "minimum": 0, "maximum": 100},
    "types": lambda draw: {"type": draw.sample(["null", "boolean", "integer"], 2), "minimum": 3, "maximum": 9},
}


def _bounds(draw: random.Random, least: str, most: str, limit: int) -> Schema:
    low = draw.randint(0, limit // 2)
    return {least: low, most: draw.randint(low, limit)}


def _range(draw: random.Random, step: float = 1) -> Schema:
    low, high = sorted(draw.sample(range(-50, 51), 2))
    names = draw.choice([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")])
    return {names[0]: low * step - 1, names[1]: high * step + 1}


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(NAMES, draw.randint(0, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: any_schema(draw, depth - 1) for name in names},
        "required": draw.sample(names, draw.randint(0, len(names))),
        "additionalProperties": draw.choice([False, False, any_schema(draw, 0)]),
    }
    return schema


def _array(draw: random.Random, depth: int) -> Schema:
    return {"type": "array", "items": any_schema(draw, depth - 1)} | _bounds(draw, "minItems", "maxItems", 4)


def _tuple(draw: random.Random, depth: int) -> Schema:
    first = [any_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}


def _any_of(draw: random.Random, depth: int) -> Schema:
    return {"anyOf": [any_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]}


def _one_of(draw: random.Random, depth: int) -> Schema:
    """Of different types, so that no value can be of two."""
    return {"oneOf": [{"type": "null"}, {"type": "string", "maxLength": 3}, _array(draw, depth)]}


def _all_of(draw: random.Random, _: int) -> Schema:
    return {"allOf": [{"type": "integer", "minimum": 0}, {"maximum": draw.randint(0, 99)}]}


def _reference(_: random.Random, __: int) -> Schema:
    return {"type": "array", "items": {"$ref": "#/$defs/thing"}, "maxItems": 3}


def _tree(_: random.Random, __: int) -> Schema:
    return {"$ref": "#/$defs/tree"}


NODE_KINDS = (_object, _object, _array, _tuple, _any_of, _one_of, _all_of, _reference, _tree)


def any_schema(draw: random.Random, depth: int) -> Schema:
    if depth <= 0 or draw.random() < 0.3:
        return draw.choice(list(LEAF_KINDS.values()))(draw)
    return draw.choice(NODE_KINDS)(draw, depth)


def whole_schema(draw: random.Random) -> Schema:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
    return any_schema(draw, 3) | {"$defs": {"thing": any_schema(draw, 0), "tree": tree}}
