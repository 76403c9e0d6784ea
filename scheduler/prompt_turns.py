"""PromptTurns: whose prompt a step computes next. Tenants take turns with the prompt tokens of steps.

The tenant that has received least is next (see prompt_shares.py). A prompt that is next gets all that the step has
left, because one long chunk costs less than several short ones; so with long prompts a step belongs to one tenant, and
the next step to another. A tenant's prompts are computed in order of service. Between equal counters the prompt with
fewer missing tokens goes first.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable

from .prompt_shares import PromptShares
from .request import Request
from .waiting_queue import Party

MAX_TENANTS = 8  # that take turns at once, because a prompt holds memory from its first chunk on


class PromptTurns:
    def __init__(self, party_of: Callable[[Request], Party]) -> None:
        self.party_of = party_of
        self._shares = PromptShares()

    def share(self, requests: Iterable[Request], compute: Callable[[Request], int]) -> None:
        """Calls `compute` for each request in turn, which returns the number of tokens that the step computes of it.
        requests: in order of service."""
        queues: dict[Party, deque[Request]] = {}
        for request in requests:
            queues.setdefault(self.party_of(request), deque()).append(request)
        self._renew_present(queues)
        planned: Counter[Party] = Counter()

        def turn(party: Party) -> tuple[int, float, int, int]:
            received = self._shares.received(party, planned[party])
            return (party[0], received, queues[party][0].num_missing_tokens, self._shares.number(party))

        while queues:
            party = min(queues, key=turn)
            planned[party] += compute(queues[party].popleft())
            if not queues[party]:
                del queues[party]

    def _renew_present(self, queues: dict[Party, deque[Request]]) -> None:
        for party in [party for party in self._shares.present if party not in queues]:
            self._shares.leave(party)
        for party, queue in queues.items():
            self._shares.enter(party, queue[0].weights[0])

    def charge(self, request: Request, num_tokens: int) -> None:
        """Counts tokens of a prompt that a step computed."""
        self._shares.charge(self.party_of(request), num_tokens)
