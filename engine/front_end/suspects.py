"""Suspects: which requests and adapters the crashes of engines accuse, and which are set aside.

A crash accuses what the engine was at. Those that two crashes accuse are computed alone for a while, in steps of their
own; what crashes alone is set aside: it is given to no engine any more. A process that was ended from outside accuses
nothing. Synchronous; knows no process and no text.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..ipc.death import Death

NUM_CRASHES = 2  # crashes that accuse the same request or adapter before anything is done about it
# Tokens that a suspect generates alone, after what it had when the engine crashed: a crash that depends on the request
# alone comes back with the first of them. A suspect that is accused again afterwards stays alone to its end.
NUM_ALONE = 16
MAX_ADAPTERS = 1024  # adapters whose accusations are remembered: clients can bring new ones without end


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a crash has set aside, each with the reason."""

    requests: Mapping[int, str]  # by the engine's id of a sample
    adapters: Mapping[str, str]  # by digest


class Suspects:
    def __init__(self) -> None:
        self.num_deaths = 0  # of engines
        self.num_crashes = 0  # of these, those that nothing outside has caused
        self.num_stalls = 0  # of these, those of engines that went on no more
        self.num_requests_set_aside = 0
        self.num_adapters_set_aside = 0
        self._accused: Counter[int] = Counter()  # request id -> crashes that accuse it
        self._accused_adapters: Counter[str] = Counter()  # digest -> crashes while it was registered or copied
        self._tainted: Counter[str] = Counter()  # digest -> requests for it that were set aside

    def judge(self, death: Death, adapters: Mapping[int, Sequence[str]]) -> Verdict:
        """Follows the death of an engine. adapters: the digests of the adapters of each unfinished sample, by the
        engine's id."""
        self.num_deaths += 1
        self.num_stalls += death.is_standing
        self.num_crashes += death.is_crash
        if not death.is_crash:
            return Verdict({}, {})
        named = [request_id for request_id in death.entry.request_ids if request_id in adapters]
        self._accused.update(named)
        requests, accused = {}, {}
        if len(named) == 1 and self._accused[named[0]] >= NUM_CRASHES:
            requests[named[0]] = self._reason(death, self._accused.pop(named[0]), "this request")
            accused = self._taint(adapters[named[0]], death)
        elif death.entry.digest is not None:
            accused = self._accuse(death.entry.digest, death)
        self.num_requests_set_aside += len(requests)
        self.num_adapters_set_aside += len(accused)
        return Verdict(requests, accused)

    def _taint(self, digests: Sequence[str], death: Death) -> dict[str, str]:
        """A request for these adapters is set aside. A second one of an adapter sets the adapter aside, too."""
        distinct = dict.fromkeys(digests)
        self._tainted.update(distinct.keys())
        guilty = [digest for digest in distinct if self._tainted[digest] >= NUM_CRASHES]
        _shorten(self._tainted)
        return {digest: self._reason(death, self._tainted.pop(digest), "requests for it") for digest in guilty}

    def _accuse(self, digest: str, death: Death) -> dict[str, str]:
        self._accused_adapters[digest] += 1
        if self._accused_adapters[digest] < NUM_CRASHES:
            _shorten(self._accused_adapters)
            return {}
        return {digest: self._reason(death, self._accused_adapters.pop(digest), "this adapter")}

    def _reason(self, death: Death, count: int, what: str) -> str:
        activity = death.entry.activity.name.lower()
        return f"the engine crashed {count} times over {what}; the last time, {activity}, it {death.how}"

    def num_alone(self, request_id: int, digests: Sequence[str], max_tokens: int) -> int:
        """Returns how many tokens a request is to generate alone, in steps of its own, when it is given to an engine.
        max_tokens: those that it may still generate."""
        count = self._accused[request_id]
        if count > NUM_CRASHES:
            return max_tokens
        is_suspect = count == NUM_CRASHES or any(digest in self._tainted for digest in digests)
        return min(NUM_ALONE, max_tokens) if is_suspect else 0

    def forget(self, request_ids: Iterable[int]) -> None:
        """Requests have ended."""
        for request_id in request_ids:
            self._accused.pop(request_id, None)

    def forget_adapters(self, digests: Iterable[str]) -> None:
        """Adapters have been unloaded: if they are loaded again, they begin without blame."""
        for digest in digests:
            self._accused_adapters.pop(digest, None)
            self._tainted.pop(digest, None)


def _shorten(counts: Counter[str]) -> None:
    """Forgets the oldest entries beyond the bound."""
    while len(counts) > MAX_ADAPTERS:
        del counts[next(iter(counts))]
