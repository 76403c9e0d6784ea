"""KeepRule: chooses the idle thing that goes when a page is needed. Owns the order; knows no page and no request.

Idle things are the KV blocks in the prefix cache and the whole adapters that no request uses. The rule evicts the thing
whose loss is expected to cost the least for each page that it frees, which is the thing with the least

    priority = clock + P(the thing is wanted again) * cost of bringing it back / its pages

The clock is the priority of the last evicted thing, so a thing that has been idle for long falls behind:
GreedyDual-Size (Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", 1997). The cost of bringing a thing back is
that of computing a block's tokens again, or of copying an adapter's pages; both are measured while the engine runs. The
probability that a thing is wanted again is counted for classes: blocks and adapters, each by how often they came back
before. (Cherkasova's GDS-Frequency, 1998, counts uses instead, which does not tell blocks that are never requested
again from adapters that many requests use.) An evicted thing is remembered by name until it is here again, or until an
arena's worth of pages was evicted after it. If it is wanted in that time, it counts as wanted; otherwise a class that
was once found worthless would stay so for ever.

The blocks of a preempted request are awaited: they are wanted again with certainty, and are a class of their own.

Things of one class differ only in the time at which they became idle. So each class is a queue, and the next thing to
go is at the head of one of eight queues.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain

Thing = bytes | str  # the prefix key of a block, the digest of an adapter


class Kind(Enum):
    BLOCK = "block"
    ADAPTER = "adapter"


NUM_CLASSES = 3  # for each kind: things that came back never, once, or more often
AWAITED = NUM_CLASSES  # a further class: things that somebody waits for
MAX_OUTCOMES = 2048  # outcomes counted for each class; older ones count less and less
COST_MEMORY = 0.95  # fraction of the known cost that is kept when a new one is measured


@dataclass(slots=True)
class ReturnCosts:
    """Measured seconds to bring back one page. The initial values are those of a small model on two cores."""

    block: float = 4e-3  # to compute the tokens of a block again; follows from the costs of steps
    adapter: float = 1e-4  # to copy one page of an adapter

    def note_copies(self, num_pages: int, seconds: float) -> None:
        if num_pages:
            self.adapter += (1 - COST_MEMORY) * (seconds / num_pages - self.adapter)


@dataclass(slots=True, eq=False)
class _Class:
    kind: Kind
    is_awaited: bool = False
    idle: OrderedDict[Thing, float] = field(default_factory=OrderedDict)  # thing -> the clock when it became idle
    num_wanted: float = 0.0  # outcomes: things that were wanted again
    num_unwanted: float = 0.0  # outcomes: things that were not

    @property
    def chance(self) -> float:
        return 1.0 if self.is_awaited else (self.num_wanted + 1) / (self.num_wanted + self.num_unwanted + 2)

    def note(self, is_wanted: bool) -> None:
        if is_wanted:
            self.num_wanted += 1
        else:
            self.num_unwanted += 1
        if self.num_wanted + self.num_unwanted > MAX_OUTCOMES:
            self.num_wanted /= 2
            self.num_unwanted /= 2


@dataclass(slots=True, eq=False)
class _Known:
    """A thing that is idle, was evicted lately, or came back and is in use."""

    kind: Kind
    num_pages: int
    num_returns: int = 0
    is_awaited: bool = False  # somebody waits for the thing, or did when it became idle
    is_missed: bool = False  # the thing was evicted and is wanted again, but may never be here again


class KeepRule:
    def __init__(self, num_pages: int, costs: ReturnCosts) -> None:
        """num_pages: evicted things are remembered as long as they have no more pages than this together."""
        self.num_idle_pages = 0
        self.num_evicted = dict.fromkeys(Kind, 0)
        self.costs = costs
        self._clock = 0.0  # seconds per page
        self._classes = {kind: [_Class(kind, index == AWAITED) for index in range(NUM_CLASSES + 1)] for kind in Kind}
        self._known: dict[Thing, _Known] = {}
        self._gone: OrderedDict[Thing, None] = OrderedDict()  # evicted things, oldest first
        self._num_gone_pages = 0
        self._max_gone_pages = num_pages

    def _class_of(self, known: _Known) -> _Class:
        return self._classes[known.kind][AWAITED if known.is_awaited else min(known.num_returns, NUM_CLASSES - 1)]

    def add(self, thing: Thing, kind: Kind, num_pages: int, is_awaited: bool = False) -> None:
        """Adds a thing in use to the idle things. is_awaited: it is certain that it will be wanted again."""
        self.arrive(thing)
        known = self._known.setdefault(thing, _Known(kind, num_pages))
        known.is_awaited = is_awaited
        self._class_of(known).idle[thing] = self._clock
        self.num_idle_pages += num_pages

    def take(self, thing: Thing) -> None:
        """Takes out an idle thing that is wanted."""
        known = self._known[thing]
        self._remove_idle(thing, known)
        self._come_back(known)

    def miss(self, thing: Thing) -> None:
        """Notes that a thing is wanted and absent. A thing that was never here is allowed."""
        if thing in self._gone and not self._known[thing].is_missed:
            self._known[thing].is_missed = True
            self._come_back(self._known[thing])
            self._gone.move_to_end(thing)

    def arrive(self, thing: Thing) -> None:
        """Notes that a thing was made or copied, whether or not it was missed. Any thing that was not evicted is
        allowed, too."""
        if self._forget_gone(thing):
            self._known[thing].is_missed = False

    def _come_back(self, known: _Known) -> None:
        if not known.is_awaited:  # which says nothing about what nobody waits for
            self._class_of(known).note(is_wanted=True)
            known.num_returns += 1
        known.is_awaited = False

    def drop(self, thing: Thing) -> None:
        """Forgets a thing for good, whatever its state. Unknown things are allowed."""
        self._forget_gone(thing)
        known = self._known.pop(thing, None)
        if known is not None and thing in self._class_of(known).idle:
            self._remove_idle(thing, known)

    def evict(self) -> Thing:
        """Takes out and returns the thing that goes. At least one thing has to be idle."""
        heads = [(self._priority(group), group) for kind in Kind for group in self._classes[kind] if group.idle]
        priority, group = min(heads, key=lambda head: head[0])
        self._clock = max(self._clock, priority)
        thing = next(iter(group.idle))
        known = self._known[thing]
        self._remove_idle(thing, known)
        self.num_evicted[known.kind] += 1
        self._gone[thing] = None
        self._num_gone_pages += known.num_pages
        while self._num_gone_pages > self._max_gone_pages:
            self._give_up(next(iter(self._gone)))
        return thing

    def _priority(self, group: _Class) -> float:
        """Returns the priority of the first thing of a class."""
        cost = self.costs.block if group.kind is Kind.BLOCK else self.costs.adapter
        return next(iter(group.idle.values())) + group.chance * cost

    def _give_up(self, thing: Thing) -> None:
        """Forgets an evicted thing that was not wanted in time, or was wanted but never brought back."""
        known = self._known[thing]
        if not known.is_missed:
            self._class_of(known).note(is_wanted=False)
        self.drop(thing)

    def _remove_idle(self, thing: Thing, known: _Known) -> None:
        del self._class_of(known).idle[thing]
        self.num_idle_pages -= known.num_pages

    def _forget_gone(self, thing: Thing) -> bool:
        """Strikes a thing off the list of evicted things. Returns whether it was listed."""
        if thing not in self._gone:
            return False
        del self._gone[thing]
        self._num_gone_pages -= self._known[thing].num_pages
        return True

    def check_integrity(self, idle: Mapping[Thing, int], in_use: Set[Thing]) -> None:
        """Raises RuntimeError unless exactly the given things, with their pages, are idle, and every other known thing
        was evicted or is in use."""
        found = {thing: self._known[thing].num_pages for group in self._groups() for thing in group.idle}
        num_listed = sum(len(group.idle) for group in self._groups())
        if found != idle or num_listed != len(found) or self.num_idle_pages != sum(found.values()):
            raise RuntimeError(f"{num_listed} things of {self.num_idle_pages} pages are idle instead of {len(idle)}")
        if self._gone.keys() & (found.keys() | in_use) or self._gone.keys() - self._known.keys():
            raise RuntimeError("a thing is listed as evicted that is here, or that is not known any more")
        num_lost = len(self._known.keys() - found.keys() - self._gone.keys() - in_use)
        if num_lost or any(self._known[thing].is_missed for thing in self._known.keys() - self._gone.keys()):
            raise RuntimeError(f"{num_lost} known things are neither here nor evicted, or one that is here is missed")
        if self._num_gone_pages != sum(self._known[thing].num_pages for thing in self._gone):
            raise RuntimeError(f"the evicted things have another number of pages than {self._num_gone_pages}")

    def _groups(self) -> Iterator[_Class]:
        return chain.from_iterable(self._classes.values())
