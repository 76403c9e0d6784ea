"""FairShares: who has had how much service, and who is next. Virtual token counters, knows no request.

A party's counter grows by the service it gets, divided by its weight; who waits with the least counter is next. One
that comes back to wait is lifted to the least counter of those who wait, so that nobody saves up service by staying
away (VTC, arXiv 2401.00588, which has the weights and the prices too).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from .ordered import Ordered

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Fairness:
    """Prices of one token of service, and how much service others may get while a request is passed over."""

    max_passed_over: float = 65536.0  # priced tokens
    input_price: float = 1.0  # of a prompt token that is computed
    output_price: float = 2.0  # of a generated token, which takes a pass of its own


DEFAULT_FAIRNESS = Fairness()


@dataclass(slots=True, eq=False)
class Share:
    """One party's part."""

    number: int  # in order of creation, decides between equal counters
    weight: float = 1.0
    counter: float = 0.0  # priced tokens of service / weight
    num_requests: int = 0  # that wait or run
    is_waiting: bool = False


Party = TypeVar("Party", bound=Share)


def _order(share: Share) -> tuple[float, int]:
    return (share.counter, share.number)


class FairShares(Generic[Key, Party]):
    """The parties of one level, by key. Forgets those that are idle once they have nothing to make up for."""

    def __init__(self, make: Callable[[int], Party]) -> None:
        self._make = make  # from its number
        self._num_made = 0
        self._parties: dict[Key, Party] = {}
        self._waiting: Ordered[Party] = Ordered(_order)
        self._last = 0.0  # counter of the last one that stopped waiting

    def __getitem__(self, key: Key) -> Party:
        party = self._parties.get(key)
        if party is None:
            party = self._parties[key] = self._make(self._num_made)
            self._num_made += 1
        return party

    def __iter__(self) -> Iterator[Party]:
        """Those that wait, the next one first."""
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
        """tokens: priced."""
        if party.is_waiting:
            self._waiting.remove(party)
        party.counter += tokens / party.weight
        if party.is_waiting:
            self._waiting.add(party)

    def _forget_idle(self) -> None:
        """Parties are named by clients and can be many. Where nobody waits, nobody is owed anything."""
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
            raise RuntimeError("who waits for a fair share is not who is listed")
