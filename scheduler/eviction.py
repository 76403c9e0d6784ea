"""KeepRule: which idle thing goes when a page is needed. Owns the order of eviction; knows no page and no request.

Idle things are KV blocks in the prefix cache and whole adapters that nobody uses. The one goes whose loss is expected
to cost the least for each page that it frees:

    priority = clock + P(it is wanted again) * cost of bringing it back / its pages

The clock is the priority of what went last, so what has been idle for long falls behind: GreedyDual-Size (Cao and
Irani, "Cost-Aware WWW Proxy Caching Algorithms", 1997). Bringing back is computing a block's tokens again or copying an
adapter's pages; both costs are measured while the engine runs. How probable it is that a thing is wanted again is
counted by class: blocks and adapters, each by how often they came back before (in place of the number of uses in
Cherkasova's GDS-Frequency, 1998, which does not tell blocks that nobody asks for from adapters that many do). What went
is remembered by name until it is here again, or an arena's worth of pages went after it; wanted in that time it counts
as wanted, or a class that was once thought worthless would be so for ever.

Things of one class differ by their time only, so a class is a queue, and finding the next to go takes a look at the
heads of six queues.
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


NUM_CLASSES = 3  # of each kind: never came back, once, more often
MAX_OUTCOMES = 2048  # of a class; older ones count less and less
COST_MEMORY = 0.95  # of a measured cost, how much stays when another is taken
MIN_TOKENS = 64  # of prompts, in a step that tells what they cost


@dataclass(slots=True)
class ReturnCosts:
    """Seconds to bring back one page, as measured. The first figures are those of a small model on two cores."""

    block: float = 4e-3  # its tokens are computed again
    adapter: float = 1e-4  # a page of one is copied

    def note_step(self, num_tokens: int, num_rows: int, seconds: float, block_size: int) -> None:
        """A step without its copies took so long. One that is not mostly prompts says little about them."""
        if num_tokens >= MIN_TOKENS and num_tokens > 4 * num_rows:
            self.block += (1 - COST_MEMORY) * (seconds / num_tokens * block_size - self.block)

    def note_copies(self, num_pages: int, seconds: float) -> None:
        if num_pages:
            self.adapter += (1 - COST_MEMORY) * (seconds / num_pages - self.adapter)


@dataclass(slots=True, eq=False)
class _Class:
    kind: Kind
    idle: OrderedDict[Thing, float] = field(default_factory=OrderedDict)  # -> the clock when it became idle
    num_wanted: float = 0.0  # outcomes
    num_unwanted: float = 0.0

    @property
    def chance(self) -> float:
        return (self.num_wanted + 1) / (self.num_wanted + self.num_unwanted + 2)

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
    """A thing that is idle, gone lately, or came back and is in use."""

    kind: Kind
    num_pages: int
    num_returns: int = 0
    is_missed: bool = False  # it went and is wanted again; whether it will ever be here again is open


class KeepRule:
    def __init__(self, num_pages: int, costs: ReturnCosts) -> None:
        """num_pages: how many pages' worth of things that went are remembered."""
        self.num_idle_pages = 0
        self.num_evicted = dict.fromkeys(Kind, 0)
        self.costs = costs
        self._clock = 0.0  # seconds for each page
        self._classes = {kind: [_Class(kind) for _ in range(NUM_CLASSES)] for kind in Kind}
        self._known: dict[Thing, _Known] = {}
        self._gone: OrderedDict[Thing, None] = OrderedDict()  # oldest first
        self._num_gone_pages = 0
        self._max_gone_pages = num_pages

    def _class_of(self, known: _Known) -> _Class:
        return self._classes[known.kind][min(known.num_returns, NUM_CLASSES - 1)]

    def add(self, thing: Thing, kind: Kind, num_pages: int) -> None:
        """A thing in use becomes idle."""
        self.arrive(thing)
        known = self._known.setdefault(thing, _Known(kind, num_pages))
        self._class_of(known).idle[thing] = self._clock
        self.num_idle_pages += num_pages

    def take(self, thing: Thing) -> None:
        """An idle thing is wanted."""
        known = self._known[thing]
        self._remove_idle(thing, known)
        self._come_back(known)

    def miss(self, thing: Thing) -> None:
        """A thing is wanted and not there. One that never was is fine."""
        if thing in self._gone and not self._known[thing].is_missed:
            self._known[thing].is_missed = True
            self._come_back(self._known[thing])
            self._gone.move_to_end(thing)

    def arrive(self, thing: Thing) -> None:
        """A thing is made or copied, whether it was looked for or not. One that was here before, or never, is fine."""
        if self._forget_gone(thing):
            self._known[thing].is_missed = False

    def _come_back(self, known: _Known) -> None:
        self._class_of(known).note(is_wanted=True)
        known.num_returns += 1

    def drop(self, thing: Thing) -> None:
        """Forgets a thing for good, whatever its state. An unknown one is fine."""
        self._forget_gone(thing)
        known = self._known.pop(thing, None)
        if known is not None and thing in self._class_of(known).idle:
            self._remove_idle(thing, known)

    def evict(self) -> Thing:
        """Takes out the thing that is to go; there has to be one."""
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
        """Of the first of a class."""
        cost = self.costs.block if group.kind is Kind.BLOCK else self.costs.adapter
        return next(iter(group.idle.values())) + group.chance * cost

    def _give_up(self, thing: Thing) -> None:
        """It went, and nobody wanted it, or not for long enough to bring it back."""
        known = self._known[thing]
        if not known.is_missed:
            self._class_of(known).note(is_wanted=False)
        self.drop(thing)

    def _remove_idle(self, thing: Thing, known: _Known) -> None:
        del self._class_of(known).idle[thing]
        self.num_idle_pages -= known.num_pages

    def _forget_gone(self, thing: Thing) -> bool:
        """Strikes it off the list of what went; whether it was there."""
        if thing not in self._gone:
            return False
        del self._gone[thing]
        self._num_gone_pages -= self._known[thing].num_pages
        return True

    def check_integrity(self, idle: Mapping[Thing, int], in_use: Set[Thing]) -> None:
        """Raises RuntimeError unless exactly the things given, with their pages, are idle, and what is known beside
        them is gone or in use."""
        found = {thing: self._known[thing].num_pages for group in self._groups() for thing in group.idle}
        num_listed = sum(len(group.idle) for group in self._groups())
        if found != idle or num_listed != len(found) or self.num_idle_pages != sum(found.values()):
            raise RuntimeError(f"{num_listed} things of {self.num_idle_pages} pages are idle, {len(idle)} should be")
        if self._gone.keys() & (found.keys() | in_use) or self._gone.keys() - self._known.keys():
            raise RuntimeError("a thing that went is still here, or forgotten")
        num_lost = len(self._known.keys() - found.keys() - self._gone.keys() - in_use)
        if num_lost or any(self._known[thing].is_missed for thing in self._known.keys() - self._gone.keys()):
            raise RuntimeError(f"{num_lost} known things are neither here nor gone, or one that is here is missed")
        if self._num_gone_pages != sum(self._known[thing].num_pages for thing in self._gone):
            raise RuntimeError(f"{self._num_gone_pages} pages are counted as gone")

    def _groups(self) -> Iterator[_Class]:
        return chain.from_iterable(self._classes.values())
