"""BlockPool: the state of every page of the arena. Owns reference counts and the index of idle pages; touches no byte.

A page is in exactly one state:
    used      ref_count >= 1
    cached    ref_count 0; the KV block that the page still holds can be found by its prefix key
    parked    ref_count 0; the page belongs to an idle adapter that is still whole
    empty     ref_count 0; the content is worthless
Empty pages are given out first. When there are none, KeepRule chooses the cached block or parked adapter that goes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence, Set

from .eviction import KeepRule, Kind, ReturnCosts


class Page:
    __slots__ = ("adapter", "key", "page_id", "ref_count")

    def __init__(self, page_id: int) -> None:
        self.page_id = page_id
        self.ref_count = 0
        self.key: bytes | None = None  # prefix key of the full KV block that the page holds
        self.adapter: str | None = None  # digest of the parked adapter that the page belongs to


class BlockPool:
    def __init__(self, num_pages: int, rule: KeepRule | None = None) -> None:
        self.num_pages = num_pages
        self._pages = [Page(page_id) for page_id in range(num_pages)]
        self._empty = list(range(num_pages - 1, -1, -1))  # the last entry is given out first
        self._cached: dict[bytes, Page] = {}
        self._parked: dict[str, list[int]] = {}
        self._evicted: set[str] = set()  # digests that `take_evicted_adapters` has yet to return
        self._rule = rule or KeepRule(num_pages, ReturnCosts())

    @property
    def costs(self) -> ReturnCosts:
        return self._rule.costs

    @property
    def num_empty(self) -> int:
        """Number of pages whose content is worthless."""
        return len(self._empty)

    @property
    def num_free(self) -> int:
        """Number of pages that `allocate` can take: empty, cached and parked ones."""
        return len(self._empty) + self._rule.num_idle_pages

    @property
    def num_evicted_blocks(self) -> int:
        return self._rule.num_evicted[Kind.BLOCK]

    @property
    def num_evicted_adapters(self) -> int:
        return self._rule.num_evicted[Kind.ADAPTER]

    def allocate(self, num_pages: int) -> list[int] | None:
        """Takes pages: empty ones first, then evicted ones. Returns None when too few pages are free."""
        if num_pages > self.num_free:
            return None
        while len(self._empty) < num_pages:
            self._evict()
        taken = [self._empty.pop() for _ in range(num_pages)]
        for page_id in taken:
            self._pages[page_id].ref_count = 1
        return taken

    def _evict(self) -> None:
        thing = self._rule.evict()
        if isinstance(thing, str):  # an adapter is resident whole or not at all
            self._empty_parked(thing)
            self._evicted.add(thing)
        else:
            page = self._cached.pop(thing)
            page.key = None
            self._empty.append(page.page_id)

    def share(self, page_ids: Iterable[int]) -> None:
        """Adds a reference to each page. A page without references has to be cached; the block is wanted again."""
        for page_id in page_ids:
            page = self._pages[page_id]
            if not page.ref_count:
                if page.key is None:
                    raise RuntimeError(f"page {page_id} cannot be shared: it is unused and holds no cached block")
                self._rule.take(page.key)
            page.ref_count += 1

    def release(self, page_ids: Iterable[int], is_awaited: bool = False) -> None:
        """Drops a reference to each page. Callers pass a sequence's pages last first: its tail is evicted first.
        is_awaited: a waiting request will want the blocks again."""
        for page_id in page_ids:
            page = self._pages[page_id]
            if page.ref_count < 1:
                raise RuntimeError(f"page {page_id} is released more often than it was taken")
            page.ref_count -= 1
            if page.ref_count:
                continue
            if page.key is None:
                self._empty.append(page_id)
            else:
                self._rule.add(page.key, Kind.BLOCK, 1, is_awaited)

    def is_held(self, page_id: int) -> bool:
        return self._pages[page_id].ref_count > 0

    def is_shared(self, page_id: int) -> bool:
        return self._pages[page_id].ref_count > 1

    def publish(self, page_id: int, key: bytes) -> None:
        """Makes a full, used KV block findable by its key. A key that has a page already keeps it."""
        page = self._pages[page_id]
        if page.key is None and key not in self._cached:
            page.key = key
            self._cached[key] = page
            self._rule.arrive(key)

    def retract(self, page_ids: Iterable[int]) -> None:
        """Takes used KV blocks out of the prefix cache because their content turned out to be wrong."""
        for page_id in page_ids:
            page = self._pages[page_id]
            if page.key is not None:
                self._rule.drop(page.key)
                del self._cached[page.key]
                page.key = None

    def forget_blocks(self, also_used: bool) -> bool:
        """Empties idle cached blocks. also_used: takes blocks in use out of the prefix cache, too; they stay with their
        sequences. Returns whether the prefix cache is empty now."""
        for key, page in list(self._cached.items()):
            if page.ref_count and not also_used:
                continue
            self._rule.drop(key)
            del self._cached[key]
            page.key = None
            if not page.ref_count:
                self._empty.append(page.page_id)
        return not self._cached

    def find(self, key: bytes) -> int | None:
        page = self._cached.get(key)
        return None if page is None else page.page_id

    def note_miss(self, thing: bytes | str) -> None:
        """Notes that a block or an adapter is needed but absent: it has to be computed or copied."""
        self._rule.miss(thing)

    def note_copied(self, digest: str) -> None:
        """Notes that an adapter in use is whole now."""
        self._rule.arrive(digest)

    def park(self, digest: str, page_ids: Sequence[int]) -> None:
        """Makes an adapter's used pages evictable. Until they are evicted, `unpark` brings them back."""
        for page_id in page_ids:
            page = self._pages[page_id]
            page.ref_count, page.adapter = 0, digest
        self._parked[digest] = list(page_ids)
        self._rule.add(digest, Kind.ADAPTER, len(page_ids))

    def unpark(self, digest: str) -> list[int] | None:
        """Takes a parked adapter's pages back into use. Returns None when the adapter was evicted or never parked."""
        page_ids = self._parked.pop(digest, None)
        if page_ids is None:
            return None
        self._rule.take(digest)
        for page_id in page_ids:
            page = self._pages[page_id]
            page.ref_count, page.adapter = 1, None
        return page_ids

    def discard(self, digest: str) -> None:
        """Empties a parked adapter's pages and forgets the adapter. Unknown digests are allowed."""
        self._rule.drop(digest)
        self._evicted.discard(digest)
        if digest in self._parked:
            self._empty_parked(digest)

    def take_evicted_adapters(self) -> set[str]:
        """Returns the adapters that were evicted since the last call and not discarded."""
        evicted, self._evicted = self._evicted, set()
        return evicted

    def _empty_parked(self, digest: str) -> None:
        page_ids = self._parked.pop(digest)
        for page_id in page_ids:
            self._pages[page_id].adapter = None
        self._empty += page_ids

    def is_parked(self, digest: str) -> bool:
        return digest in self._parked

    def check_integrity(self, owned: Sequence[int], adapters: Set[str]) -> None:
        """Raises RuntimeError unless each page is in one state and the used pages are those of `owned`.

        owned: one entry for each reference. adapters: the adapters that are whole in used pages.
        """
        references, empty = Counter(owned), set(self._empty)
        parked = {page_id: digest for digest, ids in self._parked.items() for page_id in ids}
        for page in self._pages:
            num_owners = references[page.page_id]
            _require(page.ref_count == num_owners, page, f"has {num_owners} owners")
            _require(page.key is None or self._cached.get(page.key) is page, page, "is not the page of its key")
            _require(page.adapter == parked.get(page.page_id), page, f"is parked for {parked.get(page.page_id)}")
            states = (num_owners > 0, page.key is not None and not num_owners, page.adapter is not None)
            _require(sum(states) <= 1, page, "is in two states")
            _require((page.page_id in empty) != any(states), page, f"is listed as empty: {page.page_id in empty}")
        if len(empty) != len(self._empty) or len(self._cached) != sum(page.key is not None for page in self._pages):
            raise RuntimeError(f"the lists of {len(self._empty)} empty and {len(self._cached)} cached pages are wrong")
        idle: dict[bytes | str, int] = {key: 1 for key, page in self._cached.items() if not page.ref_count}
        in_use = adapters | (self._cached.keys() - idle.keys())
        self._rule.check_integrity(idle | {digest: len(ids) for digest, ids in self._parked.items()}, in_use)


def _require(condition: bool, page: Page, found: str) -> None:
    if not condition:
        state = f"ref_count {page.ref_count}, key {page.key is not None}, adapter {page.adapter}"
        raise RuntimeError(f"page {page.page_id} ({state}) {found}")
