"""BlockPool: who holds each page of the arena. Owns reference counts and the free list; touches no byte of a page.

A page is in exactly one state:
    used      ref_count >= 1, outside the free list
    cached    ref_count 0, in the free list, findable by the prefix key of the KV it still holds
    parked    ref_count 0, in the free list, part of an idle adapter that is still whole
    free      ref_count 0, in the free list, content worthless
The free list is the LRU: worthless pages stand at its head, cached and parked ones queue behind in order of last use.
"""

from collections.abc import Iterable, Sequence


class Page:
    """One page and its links in the free list."""

    __slots__ = ("adapter", "key", "next", "page_id", "prev", "ref_count")

    def __init__(self, page_id: int) -> None:
        self.page_id = page_id
        self.ref_count = 0
        self.key: bytes | None = None  # prefix key of the full KV block in it
        self.adapter: str | None = None  # digest of the parked adapter it is a part of
        self.prev: Page = self
        self.next: Page = self

    def link_before(self, other: "Page") -> None:
        self.prev, self.next = other.prev, other
        other.prev.next = self
        other.prev = self

    def unlink(self) -> None:
        self.prev.next = self.next
        self.next.prev = self.prev
        self.prev = self.next = self


class BlockPool:
    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_free = num_pages  # in the free list: free, cached and parked
        self.num_evicted_blocks = 0
        self.num_evicted_adapters = 0
        self._pages = [Page(page_id) for page_id in range(num_pages)]
        self._cached: dict[bytes, Page] = {}
        self._parked: dict[str, list[int]] = {}
        self._anchor = Page(num_pages)  # closes the ring: its next is the head of the list, its prev the tail
        for page in self._pages:
            page.link_before(self._anchor)

    @property
    def num_empty(self) -> int:
        """Pages that hold nothing of worth."""
        num_cached = sum(not page.ref_count for page in self._cached.values())
        return self.num_free - num_cached - sum(map(len, self._parked.values()))

    def allocate(self, num_pages: int) -> list[int] | None:
        """Takes pages from the head of the free list, forgetting what they held; None when there are too few."""
        if num_pages > self.num_free:
            return None
        return [self._take_head() for _ in range(num_pages)]

    def _take_head(self) -> int:
        page = self._anchor.next
        if page.key is not None:
            self._forget(page)
            self.num_evicted_blocks += 1
        elif page.adapter is not None:
            self._evict_adapter(page.adapter)
            page = self._anchor.next
        self._take(page)
        return page.page_id

    def _take(self, page: Page) -> None:
        page.unlink()
        page.ref_count = 1
        self.num_free -= 1

    def _forget(self, page: Page) -> None:
        if page.key is not None:
            del self._cached[page.key]
            page.key = None

    def _evict_adapter(self, digest: str) -> None:
        """An adapter is resident whole or not at all: losing one page makes the others worthless too."""
        self.num_evicted_adapters += 1
        self.discard(digest)

    def share(self, page_ids: Iterable[int]) -> None:
        """Adds a reference to each page, taking cached ones out of the free list."""
        for page_id in page_ids:
            page = self._pages[page_id]
            if page.ref_count:
                page.ref_count += 1
            else:
                self._take(page)

    def release(self, page_ids: Iterable[int]) -> None:
        """Drops a reference to each page. Give a sequence's pages last first, so that its tail is evicted first."""
        for page_id in page_ids:
            page = self._pages[page_id]
            if page.ref_count < 1:
                raise RuntimeError(f"page {page_id} is released more often than it was taken")
            page.ref_count -= 1
            if not page.ref_count:
                self._put_back(page)

    def _put_back(self, page: Page) -> None:
        page.link_before(self._anchor.next if page.key is None else self._anchor)
        self.num_free += 1

    def is_held(self, page_id: int) -> bool:
        return self._pages[page_id].ref_count > 0

    def publish(self, page_id: int, key: bytes) -> None:
        """Makes a full, used KV block findable. A key that is known already keeps its first page."""
        page = self._pages[page_id]
        if page.key is None and key not in self._cached:
            page.key = key
            self._cached[key] = page

    def retract(self, page_ids: Iterable[int]) -> None:
        """Takes used KV blocks out of the prefix cache: their content turned out to be wrong."""
        for page_id in page_ids:
            self._forget(self._pages[page_id])

    def find(self, key: bytes) -> int | None:
        page = self._cached.get(key)
        return None if page is None else page.page_id

    def park(self, digest: str, page_ids: Sequence[int]) -> None:
        """Turns an adapter's used pages into evictable ones that `unpark` can bring back."""
        for page_id in page_ids:
            page = self._pages[page_id]
            page.ref_count, page.adapter = 0, digest
            page.link_before(self._anchor)
        self.num_free += len(page_ids)
        self._parked[digest] = list(page_ids)

    def unpark(self, digest: str) -> list[int] | None:
        """Takes a parked adapter's pages back into use; None when it was evicted or never parked."""
        page_ids = self._parked.pop(digest, None)
        for page_id in page_ids or ():
            page = self._pages[page_id]
            page.adapter = None
            self._take(page)
        return page_ids

    def discard(self, digest: str) -> None:
        """Makes a parked adapter's pages plain free ones. Unknown digests are fine."""
        for page_id in self._parked.pop(digest, ()):
            page = self._pages[page_id]
            page.adapter = None
            page.unlink()
            page.link_before(self._anchor.next)

    def is_parked(self, digest: str) -> bool:
        return digest in self._parked

    def check_integrity(self, owned: Sequence[int]) -> None:
        """Raises RuntimeError unless each page is in one state and `owned`, one entry per reference, are those used."""
        listed = self._listed_pages()
        parked = {page_id: digest for digest, ids in self._parked.items() for page_id in ids}
        references = [0] * self.num_pages
        for page_id in owned:
            references[page_id] += 1
        for page in self._pages:
            is_listed = page.page_id in listed
            _require(page.ref_count == references[page.page_id], page, f"{references[page.page_id]} owners")
            _require(is_listed == (page.ref_count == 0), page, f"listed: {is_listed}")
            _require(page.key is None or self._cached.get(page.key) is page, page, "not the page of its key")
            _require(page.adapter == parked.get(page.page_id), page, f"parked for {parked.get(page.page_id)}")
            _require(page.key is None or page.adapter is None, page, "both KV and adapter")
        if len(listed) != self.num_free or len(self._cached) != sum(page.key is not None for page in self._pages):
            raise RuntimeError(f"{len(listed)} pages listed, {self.num_free} counted free, {len(self._cached)} cached")

    def _listed_pages(self) -> set[int]:
        listed: set[int] = set()
        page = self._anchor.next
        while page is not self._anchor:
            if page.page_id in listed or page.next.prev is not page:
                raise RuntimeError(f"the free list is broken at page {page.page_id}")
            listed.add(page.page_id)
            page = page.next
        return listed


def _require(condition: bool, page: Page, found: str) -> None:
    if not condition:
        state = f"ref_count {page.ref_count}, key {page.key is not None}, adapter {page.adapter}"
        raise RuntimeError(f"page {page.page_id} ({state}): {found}")
