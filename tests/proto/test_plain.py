"""Plain values: what a conversation may hold, in process and on every wire."""

import json
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.proto.plain import MAX_DEPTH, BadValue, plain

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(1 << 63) + 1, (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20)


@given(value=VALUES)
def test_a_plain_value_survives_json_with_its_types_and_its_order(value: Any) -> None:
    assert repr(plain("x", value)) == repr(value)
    assert repr(json.loads(json.dumps(plain("x", value)))) == repr(value)


class Role(StrEnum):
    USER = "user"


def test_what_is_almost_plain_becomes_plain() -> None:
    value = plain("x", MappingProxyType({"a": (1, np.float64(0.5)), Role.USER: np.str_("b")}))
    assert value == {"a": [1, 0.5], "user": "b"}
    assert [type(item) for item in (*value, *value["a"], value["user"])] == [str, str, int, float, str]


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"a": [1, {2: "b"}]}, r"x\.a\[1\]"),
        ({"a": {"b": float("nan")}}, r"x\.a\.b"),
        ([float("-inf")], r"x\[0\]"),
        ("\ud800", "x"),
        ({"\udfff": 1}, "x"),
        (b"bytes", "x"),
        ({1, 2}, "x"),
        (1 << 64, "x"),
        (lambda: None, "x"),
        (np.array([1]), "x"),
        (nested(MAX_DEPTH + 1), "x"),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_any_other_value_is_refused_by_its_place(value: Any, name: str) -> None:
    with pytest.raises(BadValue, match=f"^{name}"):
        plain("x", value)
    plain("x", nested(MAX_DEPTH))
