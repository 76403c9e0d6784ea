"""Meaning: what an option of vLLM means here. The fields of EngineArgs and FrontendArgs carry one each."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any

logger = logging.getLogger(__name__)


class Kind(Enum):
    SAME = "same"
    OTHER_DEFAULT = "other default"
    NO_MEANING = "no meaning here"  # accepted with a notice
    NOT_SERVED = "not served"  # refused unless the value asks for what blora does anyway
    OWN = "blora's own"


@dataclass(frozen=True, slots=True)
class Meaning:
    kind: Kind
    note: str = ""  # what takes the option's place, or what is different
    values: tuple[Any, ...] = ()  # of an option that is not served: the values that are taken all the same


# Makers of fields. As dataclasses.field, they claim to return any type, so that the annotation beside them counts.


def same(default: Any, note: str = "") -> Any:
    return _field(default, Meaning(Kind.SAME, note))


def other_default(default: Any, note: str) -> Any:
    return _field(default, Meaning(Kind.OTHER_DEFAULT, note))


def no_meaning(default: Any, note: str) -> Any:
    """default: vLLM's, for which there is no notice."""
    return _field(default, Meaning(Kind.NO_MEANING, note))


def not_served(default: Any, note: str, *others: Any) -> Any:
    """default, others: the values that are taken."""
    return _field(default, Meaning(Kind.NOT_SERVED, note, (default, *others)))


def own(default: Any) -> Any:
    return _field(default, Meaning(Kind.OWN))


def _field(default: Any, meaning: Meaning) -> Any:
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


def meaning_of(entry: "Field[Any]") -> Meaning:
    meaning: Meaning = entry.metadata["meaning"]
    return meaning


def default_of(entry: "Field[Any]") -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def with_meaning(options: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    """Returns the options that have a meaning here. Gives one notice for all that have none.

    cls: declares the options as fields. None, given for an option of vLLM, is the default, as it is there. Raises
    ValueError naming an option that is unknown or has a value that is not served.
    """
    entries = {entry.name: entry for entry in fields(cls)}
    for name in options:
        if name not in entries:
            served = sorted(name for name, entry in entries.items() if _is_served(entry))
            raise ValueError(f"there is no option {name!r}; the options are {', '.join(served)}")
    given = {name: value for name, value in options.items() if not _is_left_out(entries[name], value)}
    for name, value in given.items():
        _refuse_unserved(entries[name], value)
    _give_notice([entries[name] for name, value in given.items() if value != default_of(entries[name])])
    return {name: value for name, value in given.items() if _is_served(entries[name])}


def _is_left_out(entry: "Field[Any]", value: object) -> bool:
    return value is None and meaning_of(entry).kind is not Kind.OWN


def _is_served(entry: "Field[Any]") -> bool:
    return meaning_of(entry).kind in (Kind.SAME, Kind.OTHER_DEFAULT, Kind.OWN)


def _refuse_unserved(entry: "Field[Any]", value: object) -> None:
    meaning = meaning_of(entry)
    if meaning.kind is Kind.NOT_SERVED and value not in meaning.values:
        allowed = ", ".join(repr(allowed) for allowed in meaning.values)
        raise ValueError(f"{entry.name}: {value!r:.140} is not supported, only {allowed}: {meaning.note}")


def _give_notice(entries: Sequence["Field[Any]"]) -> None:
    ignored = [entry for entry in entries if meaning_of(entry).kind is Kind.NO_MEANING]
    if ignored:
        logger.warning("%s", "; ".join(f"{entry.name} is ignored: {meaning_of(entry).note}" for entry in ignored))
