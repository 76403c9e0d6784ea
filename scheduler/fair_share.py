"""FairShares: the service that each party has received, and the party that is served next. Knows no request.

Each party has a virtual token counter, which grows by the service that the party receives, divided by its weight. The
waiting party with the least counter is served next. The counter of a party that begins to wait is raised to the least
counter of the waiting parties, so that no party saves up service by staying away (VTC, arXiv 2401.00588, which has the
weights and the prices, too).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from .ordered import Ordered

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Fairness:
    """The prices of service, and the starvation bound of a waiting request."""

    max_passed_over: float = 65536.0  # priced tokens that others receive before a passed-over request goes first
    input_price: float = 1.0  # of a prompt token that is computed
    output_price: float = 2.0  # of a generated token, which takes a forward pass of its own


DEFAULT_FAIRNESS = Fairness()


@dataclass(slots=True, eq=False)
class Share:
    """The state of one party."""

    number: int  # in order of creation; decides between equal counters
    weight: float = 1.0
    counter: float = 0.0  # priced tokens of service / weight
    num_requests: int = 0  # requests that wait or run
    is_waiting: bool = False


Party = TypeVar("Party", bound=Share)


def _order(share: Share) -> tuple[float, int]:
    return (share.counter, share.number)


class FairShares(Generic[Key, Party]):
    """The parties of one level, by key. An idle party is forgotten once its counter is no higher than a new one's."""

    def __init__(self, make: Callable[[int], Party]) -> None:
        self._make = make  # makes a party from its number
        self._num_made = 0
        self._parties: dict[Key, Party] = {}
        self._waiting: Ordered[Party] = Ordered(_order)
        self._last = 0.0  # counter of the party that stopped waiting last

    def __getitem__(self, key: Key) -> Party:
        party = self._parties.get(key)
        if party is None:
            party = self._parties[key] = self._make(self._num_made)
            self._num_made += 1
        return party

    def __iter__(self) -> Iterator[Party]:
        """Yields the waiting parties, the next one first."""
        return iter(self._waiting)

    @property
    def _floor(self) -> float:
        return self._waiting.first.counter if self._waiting else self._last

    def start_waiting(self, party: Party) -> None:
        party.counter = max(party.counter, self._floor)
        party.is_waiting = True
        self._waiting.add(party)

    def stop_waiting(self, party: Party) -> None:
        self._waiting.remove(party)
        party.is_waiting = False
        self._last = party.counter
        self._forget_idle()

    def charge(self, party: Party, tokens: float) -> None:
        """Adds service to a party's counter. tokens: priced tokens."""
        if party.is_waiting:
            self._waiting.remove(party)
        party.counter += tokens / party.weight
        if party.is_waiting:
            self._waiting.add(party)

    def _forget_idle(self) -> None:
        """Bounds the number of parties, which clients name. An idle party is kept only while others wait and its
        counter exceeds the least of theirs, where a new party would start."""
        if len(self._parties) > 2 * len(self._waiting) + 64:
            floor = self._floor
            self._parties = {
                key: party
                for key, party in self._parties.items()
                if party.num_requests or (self._waiting and party.counter > floor)
            }

    def check_integrity(self) -> None:
        self._waiting.check_integrity()
        waiting = {id(party) for party in self._parties.values() if party.is_waiting}
        if waiting != {id(party) for party in self._waiting}:
            raise RuntimeError("the parties that are marked as waiting are not the listed ones")
