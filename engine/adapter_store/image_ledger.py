"""ImageLedger: which adapters have their image in host memory, how many users each has, and which images go.

The ledger counts images and holds none: the engine and AdapterImages hold them. The host cache is the memory that idle
images may fill, up to the option `host_cache`.

An image is used from the moment a request for its adapter is accepted until the request has ended, so that the engine
can evict the adapter and copy it again at any time. A used image stays, whatever the limit is. Idle images go in the
order of their last use; an adapter whose image has gone is read again from its source. An image stays, too, when its
source has been overwritten: another adapter was loaded from the same folder since.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from .source import Source


@dataclass(slots=True)
class _Entry:
    source: Source
    num_bytes: int
    is_here: bool  # the image is in host memory
    num_users: int = 0


class ImageLedger:
    """Knows an adapter from `add` to `forget`, by the digest of its content."""

    def __init__(self, max_bytes: int | None) -> None:
        """max_bytes: idle images go while all images together exceed it; None sets no limit."""
        self.max_bytes = max_bytes
        self.num_bytes = 0  # of the images in host memory
        self.num_uses = 0
        self.num_hits = 0  # uses that found the image in host memory
        self.num_reads = 0  # images that were read again
        self.num_failures = 0  # reads that brought no image, or that of another adapter
        self._entries: dict[str, _Entry] = {}  # by digest
        self._idle: dict[str, None] = {}  # digests of images without a user, the least recently used first
        self._latest: dict[str, str] = {}  # folder -> digest of the adapter that was loaded from it last
        self._may_exceed = False  # an image was added or became idle since `take_excess`

    def add(self, digest: str, num_bytes: int, source: Source) -> None:
        """An image has come into host memory, and is the most recently used one."""
        num_users = self._entries[digest].num_users if digest in self._entries else 0
        self.forget(digest)
        self._entries[digest] = _Entry(source, num_bytes, is_here=True, num_users=num_users)
        self._latest[source.folder] = digest
        self.num_bytes += num_bytes
        self._may_exceed = True
        if not num_users:
            self._note_idle(digest)

    def use(self, digest: str) -> None:
        """A request holds an adapter, and counts whether its image is here. A missing image is read again before the
        request is computed: see `missing`."""
        self.num_uses += 1
        self.num_hits += self._entries[digest].is_here
        self.hold(digest)

    def hold(self, digest: str) -> None:
        """Adds a user until `release`: the adapter is not forgotten, and its image is not dropped."""
        self._entries[digest].num_users += 1
        self._idle.pop(digest, None)

    def release(self, digest: str) -> None:
        entry = self._entries[digest]
        entry.num_users -= 1
        if not entry.num_users and entry.is_here:
            self._note_idle(digest)

    def _note_idle(self, digest: str) -> None:
        self._idle.pop(digest, None)
        self._idle[digest] = None
        self._may_exceed = True

    def take_excess(self, must_stay: Callable[[str], bool]) -> list[str]:
        """Counts idle images beyond the limit as dropped and returns their digests, for the caller to drop them.
        must_stay: whether an image stays all the same."""
        if not self._may_exceed or self.max_bytes is None:
            return []
        self._may_exceed = False
        dropped = []
        for digest in list(self._idle):
            if self.num_bytes <= self.max_bytes:
                break
            if self._can_be_read_again(digest) and not must_stay(digest):
                self._drop(digest)
                dropped.append(digest)
        return dropped

    def note_free(self) -> None:
        """An image that had to stay may be dropped: its adapter has lost its pin, say."""
        self._may_exceed = True

    def _can_be_read_again(self, digest: str) -> bool:
        return self._latest.get(self._entries[digest].source.folder) == digest

    def _drop(self, digest: str) -> None:
        entry = self._entries.get(digest)
        if entry is not None and entry.is_here:
            entry.is_here = False
            self.num_bytes -= entry.num_bytes
            self._idle.pop(digest, None)

    def forget(self, digest: str) -> None:
        """Erases an adapter for good. An unknown digest is fine."""
        self._drop(digest)
        entry = self._entries.pop(digest, None)
        if entry is not None and self._latest.get(entry.source.folder) == digest:
            del self._latest[entry.source.folder]

    # Facts.

    @property
    def num_images(self) -> int:
        """The number of images in host memory."""
        return sum(entry.is_here for entry in self._entries.values())

    def __contains__(self, digest: str) -> bool:
        """Whether the image of an adapter is in host memory."""
        return digest in self._entries and self._entries[digest].is_here

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Returns the adapters that have no image in host memory."""
        return [digest for digest in digests if digest not in self]

    def is_used(self, digest: str) -> bool:
        return digest in self._entries and self._entries[digest].num_users > 0

    def source_of(self, digest: str) -> Source:
        return self._entries[digest].source

    def digests(self) -> list[str]:
        """The digests of all adapters, with an image in host memory or without."""
        return list(self._entries)

    def images(self) -> list[str]:
        """The digests of the adapters that have an image in host memory."""
        return [digest for digest, entry in self._entries.items() if entry.is_here]

    def check_integrity(self, uses: Iterable[str], images: Collection[str]) -> None:
        """uses: one digest for each use. images: the digests of the images that exist. Raises RuntimeError unless the
        ledger counts the same."""
        users = Counter(uses)
        for digest, entry in self._entries.items():
            if entry.num_users != users[digest]:
                raise RuntimeError(f"image of {digest}: {entry.num_users} users are counted, {users[digest]} exist")
            if (digest in self._idle) != (entry.is_here and not entry.num_users):
                raise RuntimeError(f"image of {digest}: {entry}, counted as idle: {digest in self._idle}")
        here = set(self.images())
        if here != set(images) or users.keys() - self._entries.keys():
            raise RuntimeError(f"images {here ^ set(images)} are counted without existing, or exist uncounted")
        num_bytes = sum(self._entries[digest].num_bytes for digest in here)
        if self.num_bytes != num_bytes:
            raise RuntimeError(f"{self.num_bytes} bytes of images are counted, {num_bytes} exist")
