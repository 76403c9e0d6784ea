"""AdapterResidency: the adapters that have pages in the arena, and their users. Plans page copies; moves no byte.

An adapter is first *registered*: its page images are in host memory as long as requests use it. It is *held* while a
request or a pin uses it: its pages are taken, and it is ready once every page is copied. After that it is *parked*
(idle, whole and evictable, see BlockPool) or gone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .block_pool import BlockPool
from .copy_budget import CopyBudget
from .request import AdapterUse


@dataclass(frozen=True, slots=True)
class PageCopy:
    """An order to copy the adapter's page images first, first + 1, ... into the pages page_ids of the arena."""

    digest: str
    first: int
    page_ids: tuple[int, ...]


@dataclass(slots=True)
class CopyCounts:
    """The costs of an adapter's copies into the arena since it was registered."""

    num_copies: int = 0  # copies of the whole adapter
    num_pages: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Adapter:
    num_pages: int
    num_requests: int = 0  # uses by unfinished requests
    num_users: int = 0  # of these, uses by admitted requests
    copied: CopyCounts = field(default_factory=CopyCounts)
    is_pinned: bool = False
    is_warming: bool = False  # the adapter is wanted until it is whole, and evictable from then on
    is_leaving: bool = False  # the adapter was unloaded and is forgotten with its last request
    page_ids: list[int] = field(default_factory=list)  # in the order of the images; empty unless held
    num_copied: int = 0  # pages whose copy is done
    num_planned: int = 0  # pages whose copy is done or part of the step that is being planned

    @property
    def is_wanted(self) -> bool:
        return self.num_users > 0 or self.is_pinned or self.is_warming

    @property
    def is_only_warming(self) -> bool:
        return self.is_warming and not self.num_users and not self.is_pinned

    @property
    def is_ready(self) -> bool:
        return self.num_copied == self.num_pages


class AdapterResidency:
    def __init__(self, pool: BlockPool, max_copied_pages_per_step: int, are_copies_beside_rows: bool = False) -> None:
        """are_copies_beside_rows: a step's copies run beside its rows, which use only the copies of earlier steps."""
        self._pool = pool
        self._are_copies_beside_rows = are_copies_beside_rows
        self.copy_budget = CopyBudget(max_copied_pages_per_step, pool.costs)
        self.num_hits = 0  # uses by admitted requests that found the adapter resident or being copied
        self.num_misses = 0  # uses by admitted requests for which the adapter had to be copied
        self.num_copied_pages = 0
        self.copy_seconds = 0.0
        self.num_held_pages = 0  # of adapters in use, pinned or being copied
        self._adapters: dict[str, _Adapter] = {}
        self._copying: dict[str, _Adapter] = {}  # held and not ready, oldest first
        self._prefetched: dict[str, None] = {}  # digests in _copying, copied ahead for requests that still wait
        self._arrived: set[str] = set()  # digests that became whole and that `take_changes` has yet to return
        self._gone: list[str] = []  # digests that were unregistered and are unused, which `take_gone` has yet to return

    def register(self, digest: str, num_pages: int) -> None:
        adapter = self._adapters.setdefault(digest, _Adapter(num_pages))
        adapter.is_leaving = False

    def is_known(self, digest: str) -> bool:
        """Returns whether the adapter is registered, or unloaded but still used by unfinished requests."""
        return digest in self._adapters

    def num_pages(self, adapters: Iterable[AdapterUse]) -> int:
        """Returns the number of pages of all distinct adapters of a list."""
        return sum(self._adapters[digest].num_pages for digest in {digest for digest, _ in adapters})

    def num_needed(self, adapters: Iterable[AdapterUse]) -> int:
        """Returns the number of free pages that acquiring the list takes."""
        distinct = {digest: self._adapters[digest] for digest, _ in adapters}
        return sum(adapter.num_pages for adapter in distinct.values() if not adapter.page_ids)

    def has_pages(self, adapters: Sequence[AdapterUse]) -> bool:
        """Returns whether the list names adapters, and all of them are resident or being copied."""
        return bool(adapters) and not self._num_to_copy(adapters)

    def must_evict(self, adapters: Iterable[AdapterUse]) -> bool:
        """Returns whether adapters of the list have to be copied and the empty pages do not suffice for them."""
        return self._num_to_copy(adapters) > self._pool.num_empty

    def _num_to_copy(self, adapters: Iterable[AdapterUse]) -> int:
        return sum(
            self._adapters[digest].num_pages
            for digest in {digest for digest, _ in adapters}
            if not self._adapters[digest].page_ids and not self._pool.is_parked(digest)
        )

    def unregister(self, digest: str) -> None:
        """Forgets the adapter now, or with the last request that uses it. A pin does not keep the adapter. An unknown
        one is gone already."""
        adapter = self._adapters.get(digest)
        if adapter is None:
            self._gone.append(digest)
        else:
            adapter.is_pinned, adapter.is_warming, adapter.is_leaving = False, False, True
            self._let_go(digest)
            self._forget_if_left(digest)

    def _forget_if_left(self, digest: str) -> None:
        adapter = self._adapters[digest]
        if adapter.is_leaving and not adapter.num_requests:
            self._stop_warming([digest])  # the adapter may be copied ahead for a request that ended before it ran
            self._pool.discard(digest)
            self._arrived.discard(digest)
            del self._adapters[digest]
            self._gone.append(digest)

    def take_gone(self) -> list[str]:
        """The adapters that were unregistered and have gone since the last call."""
        gone, self._gone = self._gone, []
        return gone

    def expect(self, adapters: Iterable[AdapterUse]) -> None:
        """Counts the uses of an accepted request. The adapters stay registered until `forget`. Raises KeyError, and
        counts nothing, if one of them is not registered."""
        for adapter in [self._adapters[digest] for digest, _ in adapters]:
            adapter.num_requests += 1

    def forget(self, adapters: Iterable[AdapterUse]) -> None:
        for digest, _ in adapters:
            self._adapters[digest].num_requests -= 1
            self._forget_if_left(digest)

    def pin(self, digest: str) -> bool:
        """Makes the adapter resident and keeps it so. Returns False when there is no room now."""
        if not self._hold_before_warm(digest):
            return False
        self._adapters[digest].is_pinned = True
        return True

    def warm(self, digest: str) -> bool:
        """Makes the adapter resident, and evictable from then on. Returns False when there is no room now. A waiting
        request lets the adapter become resident; a running one that needs its pages does not (`cancel_warming`)."""
        if not self._hold_before_warm(digest):
            return False
        self._prefetched.pop(digest, None)
        self._adapters[digest].is_warming = digest in self._copying
        self._let_go(digest)
        return True

    def prefetch(self, digest: str) -> None:
        """Begins to copy an adapter that is likely to be used soon. `cancel_prefetches` gives its pages back."""
        adapter = self._adapters[digest]
        if not adapter.page_ids and not self._pool.is_parked(digest) and self._hold(digest):
            adapter.is_warming = True
            self._prefetched[digest] = None

    def cancel_prefetches(self) -> bool:
        """Gives back the pages of adapters that are still being copied ahead. Returns False when there are none."""
        return self._stop_warming(list(self._prefetched))

    def cancel_warming(self) -> bool:
        """Gives back the pages of all adapters that are still being copied and have no user yet. Returns False when
        there are none."""
        return self._stop_warming([digest for digest, adapter in self._copying.items() if adapter.is_only_warming])

    def _stop_warming(self, digests: Sequence[str]) -> bool:
        for digest in digests:
            self._adapters[digest].is_warming = False
            self._prefetched.pop(digest, None)
            self._let_go(digest)
        return bool(digests)

    @property
    def is_warming(self) -> bool:
        """Whether any adapter is being copied that will be evictable once it is whole."""
        return any(adapter.is_only_warming for adapter in self._copying.values())

    @property
    def num_pages_to_copy(self) -> int:
        """Number of pages that have yet to be copied, of all adapters that are being copied."""
        return sum(adapter.num_pages - adapter.num_copied for adapter in self._copying.values())

    def unpin(self, digest: str) -> None:
        """Ends the pin of an adapter. An adapter that is not registered is allowed."""
        if digest in self._adapters:
            self._adapters[digest].is_pinned = False
            self._let_go(digest)

    def give_up(self, digest: str) -> bool:
        """Gives back the pages of an adapter that cannot be copied and has no user any more: its pin ends. Returns
        whether it had one."""
        adapter = self._adapters.get(digest)
        if adapter is None:  # it was leaving, and has gone with its last request
            return False
        was_pinned, adapter.is_pinned = adapter.is_pinned, False
        self._stop_warming([digest])
        return was_pinned

    def acquire(self, adapters: Sequence[AdapterUse]) -> bool:
        """Counts one more user of each adapter and takes pages for the adapters that have none, for all of them or for
        none. Returns False when too few pages are free."""
        acquired: list[AdapterUse] = []
        for use in adapters:
            is_here = self._adapters[use[0]].page_ids or self._pool.is_parked(use[0])
            if not self._hold(use[0]):
                self.release(acquired)
                return False
            self.num_hits += bool(is_here)
            self.num_misses += not is_here
            self._adapters[use[0]].num_users += 1
            acquired.append(use)
        return True

    def release(self, adapters: Iterable[AdapterUse]) -> None:
        for digest, _ in adapters:
            self._adapters[digest].num_users -= 1
            self._let_go(digest)

    def _hold_before_warm(self, digest: str) -> bool:
        """Holds as `_hold` does, for an adapter that a caller named: adapters that are being copied without a user give
        way."""
        adapter = self._adapters[digest]
        num_missing = adapter.num_pages - self._pool.num_free
        if not adapter.page_ids and not self._pool.is_parked(digest) and num_missing > 0:
            others = [other for other in self._copying.values() if other.is_only_warming]
            if num_missing <= sum(other.num_pages for other in others):
                self.cancel_warming()
        return self._hold(digest)

    def _hold(self, digest: str) -> bool:
        adapter = self._adapters[digest]
        if adapter.page_ids:
            return True
        parked = self._pool.unpark(digest)
        page_ids = self._pool.allocate(adapter.num_pages) if parked is None else parked
        if page_ids is None:
            return False
        adapter.page_ids = page_ids
        self.num_held_pages += len(page_ids)
        adapter.num_copied = adapter.num_planned = 0 if parked is None else adapter.num_pages
        if parked is None:
            self._pool.note_miss(digest)
            self._copying[digest] = adapter
        return True

    def _let_go(self, digest: str) -> None:
        """Parks or frees the pages of an adapter that is not wanted any more."""
        adapter = self._adapters[digest]
        if adapter.is_wanted:
            return
        page_ids, adapter.page_ids = adapter.page_ids, []
        self.num_held_pages -= len(page_ids)
        self._copying.pop(digest, None)
        self._prefetched.pop(digest, None)
        if not adapter.is_ready:
            self._pool.release(page_ids)
        elif page_ids:
            self._pool.park(digest, page_ids)
        adapter.num_copied = adapter.num_planned = 0

    def begin_plan(self) -> None:
        """Forgets which copies the last step was planned with: a step that was interrupted copied none of them."""
        for adapter in self._copying.values():
            adapter.num_planned = adapter.num_copied

    def plan_copies(self, budget: int) -> list[PageCopy]:
        """Returns the next copies, oldest first; copies that requests wait for come before copies made ahead. The step
        runs them before anything else. Copies of a step that is never committed are planned again. budget: pages."""
        copies: list[PageCopy] = []
        for digest, adapter in sorted(self._copying.items(), key=lambda entry: not entry[1].num_users):
            last = min(adapter.num_copied + budget, adapter.num_pages)
            adapter.num_planned = last
            if last > adapter.num_copied:
                copies.append(PageCopy(digest, adapter.num_copied, tuple(adapter.page_ids[adapter.num_copied : last])))
                budget -= last - adapter.num_copied
        return copies

    def commit_copies(self, copies: Iterable[PageCopy]) -> None:
        """Counts copies as done, except those whose pages were given back meanwhile."""
        for copy in copies:
            adapter = self._copying.get(copy.digest)
            last = copy.first + len(copy.page_ids)
            if adapter is None or tuple(adapter.page_ids[copy.first : last]) != copy.page_ids:
                continue
            adapter.num_copied = last
            self.num_copied_pages += len(copy.page_ids)
            adapter.copied.num_pages += len(copy.page_ids)
            if adapter.is_ready:
                self._pool.note_copied(copy.digest)
                self._arrived.add(copy.digest)
                del self._copying[copy.digest]
                self._prefetched.pop(copy.digest, None)
                adapter.copied.num_copies += 1
                adapter.is_warming = False
                self._let_go(copy.digest)

    def note_copy_seconds(self, copies: Sequence[PageCopy], seconds: float) -> None:
        """Divides the time of a step's copies among their adapters, in proportion to the pages copied."""
        num_pages = sum(len(copy.page_ids) for copy in copies)
        for copy in copies:
            share = seconds * len(copy.page_ids) / num_pages
            self._adapters[copy.digest].copied.seconds += share
            self.copy_seconds += share

    def take_changes(self) -> dict[str, bool]:
        """Returns the adapters that came or went since the last call: digest -> whether it is resident now."""
        evicted = self._pool.take_evicted_adapters()
        if not evicted and not self._arrived:
            return {}
        changed, self._arrived = self._arrived | evicted, set()
        return {digest: self.is_resident(digest) for digest in sorted(changed)}

    def is_ready(self, adapters: Iterable[AdapterUse]) -> bool:
        """Returns whether rows of the step that is being planned may use every adapter of a held list."""
        held = (self._adapters[digest] for digest, _ in adapters)
        if self._are_copies_beside_rows:
            return all(adapter.is_ready for adapter in held)
        return all(adapter.num_planned == adapter.num_pages for adapter in held)

    def page_table(self, digest: str) -> Sequence[int]:
        return self._adapters[digest].page_ids

    def is_resident(self, digest: str) -> bool:
        adapter = self._adapters.get(digest)
        return self._pool.is_parked(digest) or (adapter is not None and bool(adapter.page_ids) and adapter.is_ready)

    def is_pinned(self, digest: str) -> bool:
        adapter = self._adapters.get(digest)
        return adapter is not None and adapter.is_pinned

    def num_requests(self, digest: str) -> int:
        adapter = self._adapters.get(digest)
        return 0 if adapter is None else adapter.num_requests

    def copy_counts(self, digest: str) -> CopyCounts:
        adapter = self._adapters.get(digest)
        return CopyCounts() if adapter is None else adapter.copied

    @property
    def num_kept_pages(self) -> int:
        """Number of pages that may be held without a request: those of adapters that are pinned or warming."""
        return sum(adapter.num_pages for adapter in self._adapters.values() if adapter.is_pinned or adapter.is_warming)

    @property
    def num_pinned_pages(self) -> int:
        return sum(adapter.num_pages for adapter in self._adapters.values() if adapter.is_pinned)

    @property
    def is_copying(self) -> bool:
        return bool(self._copying)

    def is_being_copied(self, digest: str) -> bool:
        return digest in self._copying

    def to_be_copied(self) -> set[str]:
        """Returns the adapters that are being copied, and those that requests use, which may be evicted and copied
        again."""
        return self._copying.keys() | {digest for digest, adapter in self._adapters.items() if adapter.num_requests}

    def in_use(self) -> set[str]:
        """Returns the adapters that are held and whole."""
        return {digest for digest, adapter in self._adapters.items() if adapter.page_ids and adapter.is_ready}

    def owned_pages(self) -> Iterator[int]:
        for adapter in self._adapters.values():
            yield from adapter.page_ids

    def check_integrity(self, accepted: Iterable[AdapterUse], admitted: Iterable[AdapterUse]) -> None:
        """Raises RuntimeError unless the counted uses are those of the accepted and the admitted requests."""
        requests, users = Counter(digest for digest, _ in accepted), Counter(digest for digest, _ in admitted)
        if requests.keys() - self._adapters.keys():
            raise RuntimeError(
                f"requests use adapters that are not registered: {requests.keys() - self._adapters.keys()}"
            )
        if not self._prefetched.keys() <= self._copying.keys():
            raise RuntimeError(
                f"{list(self._prefetched)} are copied ahead, but only {list(self._copying)} are being copied"
            )
        if self.num_held_pages != len(list(self.owned_pages())):
            raise RuntimeError(f"adapters hold {len(list(self.owned_pages()))} pages, not {self.num_held_pages}")
        for digest, adapter in self._adapters.items():
            if (adapter.num_requests, adapter.num_users) != (requests[digest], users[digest]):
                raise RuntimeError(
                    f"adapter {digest} is used {requests[digest]} and {users[digest]} times, but counts {adapter}"
                )
            if len(adapter.page_ids) != (adapter.num_pages if adapter.is_wanted else 0):
                raise RuntimeError(f"adapter {digest} holds {len(adapter.page_ids)} of {adapter.num_pages} pages")
            if (digest in self._copying) != (bool(adapter.page_ids) and not adapter.is_ready):
                raise RuntimeError(
                    f"adapter {digest} has {adapter.num_copied} copied pages, which are lost or copied again"
                )
