"""FairShares: the service that each party has received, and the party that is served next. Knows no request.

Each party has a virtual token counter, which grows by the service that the party receives, divided by its weight. The
waiting party with the least counter is served next. The counter of a party that begins to wait is raised to the
*level*, the least counter of the waiting parties, so that no party saves up service by staying away (VTC, arXiv
2401.00588, which has the weights and the prices, too).

A party may save up a *credit* all the same, where one is given: its counter is raised to so much less than the level.
So a party that asks for less than its share is served before one that asks for more, and staying away for long gives no
more than the credit. The level never falls, so parties that use their credit do not raise that of others.
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
NUM_REMEMBERED, MOST_IDLE = 64, 1024  # parties


@dataclass(slots=True, eq=False)
class Share:
    """The state of one party."""

    number: int  # in order of creation; decides between equal counters
    weight: float = 1.0
    counter: float = 0.0  # priced tokens of service / weight
    num_requests: int = 0  # requests that wait or run
    is_waiting: bool = False

    @property
    def is_active(self) -> bool:
        return self.is_waiting or self.num_requests > 0


Party = TypeVar("Party", bound=Share)


def _order(share: Share) -> tuple[float, int]:
    return (share.counter, share.number)


class FairShares(Generic[Key, Party]):
    """The parties of one level, by key. An idle party is forgotten once its counter is no higher than a new one's."""

    def __init__(self, make: Callable[[int], Party], credit: float = 0.0) -> None:
        """make: makes a party from its number. credit: service, by a weight of 1, that a party can save up."""
        self._make = make
        self._credit = credit
        self._num_made = 0
        self._parties: dict[Key, Party] = {}
        self._most_parties = NUM_REMEMBERED  # when more are known, idle ones are forgotten
        self._waiting: Ordered[Party] = Ordered(_order)
        self._level = 0.0

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
        """The counter at which a new party starts."""
        return max(self._level - self._credit, 0.0)

    def counter_at_start(self, key: Key) -> float:
        """Returns a party's counter, as it is or would be if it began to wait now."""
        party = self._parties.get(key)
        if party is None:
            return self._floor
        return party.counter if party.is_waiting else max(party.counter, self._floor)

    def start_waiting(self, party: Party) -> None:
        party.counter = max(party.counter, self._floor)
        party.is_waiting = True
        self._waiting.add(party)

    def stop_waiting(self, party: Party) -> None:
        self._waiting.remove(party)
        party.is_waiting = False
        self._raise_level(party)
        self._forget_idle()

    def charge(self, party: Party, tokens: float) -> None:
        """Adds service to a party's counter. tokens: priced tokens."""
        if party.is_waiting:
            self._waiting.remove(party)
        party.counter += tokens / party.weight
        if party.is_waiting:
            self._waiting.add(party)
            self._raise_level(party)

    def _raise_level(self, changed: Party) -> None:
        """changed: a party whose counter has grown, or that waits no more."""
        self._level = max(self._level, (self._waiting.first if self._waiting else changed).counter)

    def _forget_idle(self) -> None:
        """Bounds the number of parties, which clients name: an idle party is kept only while its counter exceeds that
        of a new one, and only so many are."""
        if len(self._parties) <= self._most_parties:
            return
        active = {key: party for key, party in self._parties.items() if party.is_active}
        idle = [item for item in self._parties.items() if not item[1].is_active and item[1].counter > self._floor]
        self._parties = active | dict(sorted(idle, key=lambda item: item[1].counter)[-MOST_IDLE:])
        self._most_parties = 2 * len(self._parties) + NUM_REMEMBERED

    def check_integrity(self) -> None:
        self._waiting.check_integrity()
        waiting = {id(party) for party in self._parties.values() if party.is_waiting}
        if waiting != {id(party) for party in self._waiting}:
            raise RuntimeError("the parties that are marked as waiting are not the listed ones")
