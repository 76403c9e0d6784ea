"""Registry: a name means one digest at a time, versions can be activated again, and unused digests are reported."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.adapters import AdapterNotFound, Registry, is_valid_name
from blora.adapters import registry as module


def numbers(registry: Registry, name: str) -> list[int]:
    return [version.number for version in registry.versions(name)]


def test_a_name_means_what_was_published_last() -> None:
    registry = Registry()
    registry.publish("sql", "d1")
    registry.publish("chat", "d2")
    registry.publish("sql", "d3")
    assert (registry.resolve("sql"), registry.resolve("chat")) == ("d3", "d2")


REFERENCES = [
    "",
    "SQL",
    "sql ",
    "sq",
    "d1",
    None,
    ["sql"],
    "sql@",
    "sql@0",
    "sql@2",
    "sql@01",
    "sql@-1",
    "sql@1 ",
    "@1",
]


@pytest.mark.parametrize("name", [*REFERENCES, "sql@1@1", "sql@" + "1" * 5000, "sql@\u0661", "sql@1\n", "chat@1"])
def test_an_unknown_name_is_not_found_and_nothing_else_is_tried(name: Any) -> None:
    registry = Registry()
    registry.publish("sql", "d1")
    with pytest.raises(AdapterNotFound) as caught:
        registry.resolve(name)
    assert caught.value.name == name


def test_publishing_gives_back_what_the_name_meant() -> None:
    registry = Registry()
    assert registry.publish("sql", "d1") == set()
    assert registry.publish("sql", "d1") == set()
    assert registry.publish("sql", "d2") == {"d1"}
    assert not registry.is_published("d1") and registry.is_published("d2")


def test_a_digest_stays_published_while_any_name_means_it() -> None:
    registry = Registry()
    registry.publish("sql", "d1")
    registry.publish("alias", "d1")
    assert registry.withdraw("sql") == {"d1"}
    assert registry.is_published("d1")
    assert registry.withdraw("alias") == {"d1"}
    assert not registry.is_published("d1")


def test_a_pin_ends_with_what_its_name_means() -> None:
    registry = Registry(2)
    registry.publish("sql", "d1")
    registry.publish("alias", "d1")
    registry.set_pinned("sql", True)
    assert registry.pinned_digests() == {"d1"}
    registry.publish("sql", "d2")
    assert not registry.pinned_digests()
    registry.set_pinned("sql@1", True)
    registry.activate("sql", 1)
    assert registry.pinned_digests() == {"d1"}
    registry.activate("sql", 2)
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


def test_versions_are_named_and_can_be_had_back() -> None:
    registry = Registry(3)
    for digest in ("d1", "d2", "d3"):
        registry.publish("sql", digest)
    assert [registry.resolve(f"sql@{number}") for number in (1, 2, 3)] == ["d1", "d2", "d3"]
    assert registry.activate("sql", 1) == {"d3"}
    assert registry.activate("sql", 1) == set()
    assert registry.resolve("sql") == "d1" and registry.resolve("sql@3") == "d3"
    with pytest.raises(AdapterNotFound, match="sql@4"):
        registry.activate("sql", 4)


def test_those_that_were_active_last_are_kept() -> None:
    registry = Registry(2)
    registry.publish("sql", "d1")
    registry.publish("sql", "d2")
    registry.activate("sql", 1)  # version 2 was bad
    assert registry.publish("sql", "d3") == {"d1", "d2"}
    assert numbers(registry, "sql") == [1, 3]
    assert registry.is_published("d1") and not registry.is_published("d2")


def test_loading_what_is_active_makes_no_version_and_costs_none() -> None:
    registry = Registry(2)
    registry.publish("sql", "d1", "/a", 1.0)
    registry.publish("sql", "d2", "/b", 2.0)
    registry.set_pinned("sql", True)
    assert registry.publish("sql", "d2", "/c", 3.0) == set()
    assert numbers(registry, "sql") == [1, 2] and registry.pinned_digests() == {"d2"}
    _, version = registry.find("sql")
    assert (version.path, version.loaded_at) == ("/c", 3.0)


def test_a_version_is_removed_unless_it_is_the_active_one_of_several() -> None:
    registry = Registry(2)
    registry.publish("sql", "d1")
    registry.publish("sql", "d2")
    with pytest.raises(ValueError, match="version 2 of 'sql' is active"):
        registry.withdraw("sql@2")
    assert registry.withdraw("sql@1") == {"d1"}
    assert registry.withdraw("sql@2") == {"d2"}
    assert "sql" not in registry


def test_a_number_never_comes_to_mean_other_weights() -> None:
    registry = Registry(2)
    registry.publish("sql", "d1")
    registry.withdraw("sql")
    registry.publish("sql", "d2")
    assert numbers(registry, "sql") == [2]


def test_a_number_never_comes_to_mean_other_weights_though_names_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_GONE_NAMES", 3)
    registry, random = Registry(2), Random(0)
    given: dict[str, list[str]] = {}
    for index in range(3000):
        name = random.choice("abcdefgh")
        if name in registry and random.random() < 0.6:
            registry.withdraw(name)
        else:
            registry.publish(name, f"d{index}")
            references = given.setdefault(name, [])
            references.append(f"{name}@{registry.find(name)[1].number}")
        assert len(registry._gone) <= 3 and not registry._gone.keys() & registry._last_numbers.keys()
    assert all(len(set(references)) == len(references) > 100 for references in given.values())


OPERATIONS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.integers(1, 6)), max_size=40)


@given(OPERATIONS, st.integers(1, 3))
def test_whatever_happens_what_is_told_to_go_is_what_nothing_means(
    operations: list[tuple[str, int, int]], max_versions: int
) -> None:
    registry, held = Registry(max_versions), set[str]()  # digests that were loaded and not reported as lost
    for name, kind, number in operations:
        lost: set[str] = set()
        try:
            if kind <= 1:
                lost = registry.publish(name, f"d{number}")
                held.add(f"d{number}")
            elif kind == 2:
                lost = registry.activate(name, number)
            else:
                lost = registry.withdraw(name if kind == 3 else f"{name}@{number}")
        except (AdapterNotFound, ValueError):
            continue
        held -= {digest for digest in lost if not registry.is_published(digest)}
        versions = [version for known in registry.names() for version in registry.versions(known)]
        assert held == {version.digest for version in versions}
        assert all(len(registry.versions(known)) <= max_versions for known in registry.names())


GOOD_NAMES = ["a", "7", "sql-v2", "A.b_c-D", "a" * 128, "v1.0.0", "a..b", "a--", "org/name", "a/b/c", "a/" * 63 + "ab"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names(name: str) -> None:
    assert is_valid_name(name)


BAD_NAMES = (
    *("/", "/a", "a/", "a//b", "a/../b", "a/./b", "a/.b", "a/-b", "a/" * 64 + "a"),
    *(
        "",
        " ",
        "a b",
        "/a",
        "a/",
        "a//b",
        "a/../b",
        "a/./b",
        "a/.b",
        "a/-b",
        "a/" * 64 + "a",
        "../a",
        "..",
        ".",
        ".hidden",
        "-rf",
        "_a",
        "a\\b",
        "a:b",
        "a@b",
        "a%2f",
        "~",
        "*",
    ),
    *("a\n", "\na", "a\r\n", "a\0", "\x1b[31m", "a" * 129, "a" * 100_000, "é", "aé", "а", "a\u202eb", "١", "\ud800"),
)


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:12])
def test_bad_names(name: str) -> None:
    assert not is_valid_name(name)
