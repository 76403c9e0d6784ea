"""Registry: a name means one digest at a time, and a digest without a name is reported once."""

from typing import Any

import pytest

from blora.adapters import AdapterNotFound, Registry, is_valid_name


def test_a_name_means_what_was_published_last() -> None:
    registry = Registry()
    registry.publish("sql", "d1")
    registry.publish("chat", "d2")
    registry.publish("sql", "d3")
    assert (registry.resolve("sql"), registry.resolve("chat")) == ("d3", "d2")


@pytest.mark.parametrize("name", ["", "SQL", "sql ", "sq", "d1", None, ["sql"]])
def test_an_unknown_name_is_not_found_and_nothing_else_is_tried(name: Any) -> None:
    registry = Registry()
    registry.publish("sql", "d1")
    with pytest.raises(AdapterNotFound) as caught:
        registry.resolve(name)
    assert caught.value.name == name


def test_publishing_gives_back_what_the_name_meant() -> None:
    registry = Registry()
    assert registry.publish("sql", "d1") is None
    assert registry.publish("sql", "d1") == "d1"
    assert registry.publish("sql", "d2") == "d1"
    assert not registry.is_published("d1") and registry.is_published("d2")


def test_a_digest_stays_published_while_any_name_means_it() -> None:
    registry = Registry()
    registry.publish("sql", "d1")
    registry.publish("alias", "d1")
    assert registry.withdraw("sql") == "d1"
    assert registry.is_published("d1")
    assert registry.withdraw("alias") == "d1"
    assert not registry.is_published("d1")


def test_a_pin_ends_with_what_its_name_means() -> None:
    registry = Registry()
    registry.publish("sql", "d1")
    registry.publish("alias", "d1")
    registry.set_pinned("sql", True)
    assert registry.pinned_digests() == {"d1"}
    registry.publish("sql", "d2")
    assert not registry.pinned_digests()
    registry.set_pinned("alias", True)
    registry.withdraw("alias")
    registry.publish("alias", "d1")
    assert not registry.pinned_digests()


def test_a_name_is_withdrawn_once() -> None:
    registry = Registry()
    registry.publish("sql", "d1")
    registry.withdraw("sql")
    with pytest.raises(AdapterNotFound):
        registry.withdraw("sql")


@pytest.mark.parametrize("name", ["a", "7", "sql-v2", "A.b_c-D", "a" * 128, "v1.0.0", "a..b", "a--"])
def test_good_names(name: str) -> None:
    assert is_valid_name(name)


BAD_NAMES = (
    *("", " ", "a b", "a/b", "../a", "..", ".", ".hidden", "-rf", "_a", "a\\b", "a:b", "a@b", "a%2f", "~", "*"),
    *("a\n", "\na", "a\r\n", "a\0", "\x1b[31m", "a" * 129, "a" * 100_000, "é", "aé", "а", "a\u202eb", "١", "\ud800"),
)


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:12])
def test_bad_names(name: str) -> None:
    assert not is_valid_name(name)
