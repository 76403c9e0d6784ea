"""Gates: what the engine has to hold under load, faults and hostile clients, and the scenarios that try it.

A scenario is a function of a Room that returns checks. Its numbers are those of the gate at scale 1.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isinf
from typing import Any

# Each takes at most 30 minutes.
PARTS = ("overload", "clients", "adapters", "failures", "deaths", "endurance", "requests", "inside")
MOST_TOLD = 4  # different examples of what should not be


@dataclass(frozen=True, slots=True)
class Check:
    """One figure of a gate."""

    wanted: str
    reached: str
    is_held: bool


@dataclass(frozen=True, slots=True)
class Gate:
    id: str
    part: str
    title: str  # what is done to the server
    wanted: str  # what has to hold
    scenario: Callable[[Any], Iterable[Check]]


GATES: dict[str, Gate] = {}


def gate(gate_id: str, part: str, title: str, wanted: str) -> Callable[[Callable[[Any], Iterable[Check]]], Any]:
    """Makes a function the scenario of a gate."""

    def register(scenario: Callable[[Any], Iterable[Check]]) -> Any:
        GATES[gate_id] = Gate(gate_id, part, title, wanted, scenario)
        return scenario

    return register


def at_most(what: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(f"{what} at most {_text(limit, unit)}", f"{what} {_text(value, unit)}", value <= limit)


def at_least(what: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(f"{what} at least {_text(limit, unit)}", f"{what} {_text(value, unit)}", value >= limit)


def equal(what: str, value: Any, wanted: Any) -> Check:
    return Check(f"{what} {wanted}", f"{what} {value}", value == wanted)


def none_of(what: str, found: Iterable[str], tried: int) -> Check:
    """A check that nothing was found; tells a few of what was."""
    listed = list(found)
    told = f": {'; '.join(list(dict.fromkeys(listed))[:MOST_TOLD])}" if listed else ""
    return Check(f"no {what}", f"{len(listed)} {what} of {tried:,}{told}", not listed)


def shown(what: str, value: float, unit: str = "") -> Check:
    """A figure that is told and has no limit."""
    return Check("", f"{what} {_text(value, unit)}", True)


def _text(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.1%}"
    is_long = isinf(value) or abs(value) >= 100 or value == round(value)
    number = f"{value:,.0f}" if is_long else f"{value:.3g}"
    return f"{number} {unit}".rstrip()
