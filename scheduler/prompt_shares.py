"""PromptShares: what each tenant has received of the tokens of prompts that steps compute. Knows no request.

A tenant's counter grows by these tokens, divided by its weight; see fair_share.py. One that asks for less than its
share saves up a credit, so that its prompts do not take turns with those of a flood.
"""

from collections.abc import Collection

from .fair_share import FairShares, Share

PROMPT_CREDIT = 512  # tokens


class PromptShares:
    """A party is an urgency and a tenant."""

    def __init__(self) -> None:
        self._shares: FairShares[tuple[int, str], Share] = FairShares(Share, PROMPT_CREDIT)
        self._present: dict[tuple[int, str], Share] = {}

    @property
    def present(self) -> Collection[tuple[int, str]]:
        """The parties that have prompts to compute."""
        return self._present.keys()

    def enter(self, party: tuple[int, str], weight: float) -> None:
        """Notes a party that has prompts to compute, or its weight if that is known."""
        share = self._shares[party]
        share.weight = weight
        if party not in self._present:
            self._present[party] = share
            self._shares.start_waiting(share)

    def leave(self, party: tuple[int, str]) -> None:
        self._shares.stop_waiting(self._present.pop(party))

    def charge(self, party: tuple[int, str], num_tokens: float) -> None:
        self._shares.charge(self._shares[party], num_tokens)

    def received(self, party: tuple[int, str], num_further: float = 0.0) -> float:
        """Returns a party's counter, after further tokens: the present party with the least one is next."""
        weight = self._present[party].weight if party in self._present else 1.0
        return self._shares.counter_at_start(party) + num_further / weight

    def number(self, party: tuple[int, str]) -> int:
        """Decides between equal counters of present parties."""
        return self._present[party].number

    def check_integrity(self) -> None:
        self._shares.check_integrity()
