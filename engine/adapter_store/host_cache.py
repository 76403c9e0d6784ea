"""HostCache: which adapters' page images are in host memory, who uses them, and which go when they are too many bytes.

Has no image itself: whoever has them drops what it is told. An image is used from when a request for its adapter is
accepted until that has ended, so that the engine may evict the adapter and copy it again at will. What is used stays,
whatever the limit. Idle images go in the order of their last use, and are read again where they came from; one that
cannot be, because something else has been loaded from there since, stays.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from blora.adapters import AdapterRejected


@dataclass(frozen=True, slots=True)
class Source:
    """Where an adapter was loaded from, to be read again."""

    path: str  # as it was named
    folder: str  # which was read: of a hub id the one that it was downloaded into
    roots: Sequence[str] | None = None  # folders that it must lie in; None allows any place

    def changed(self, digest: str, problems: Sequence[str]) -> AdapterRejected:
        """digest: of what was loaded. problems: of what was found when it was read again."""
        return AdapterRejected(self.path, [f"it is no longer what was loaded, whose digest is {digest}", *problems])


@dataclass(slots=True)
class _Adapter:
    source: Source
    num_bytes: int
    is_here: bool  # its image is in host memory
    num_users: int = 0


class HostCache:
    def __init__(self, max_bytes: int | None) -> None:
        """max_bytes: that idle images may fill up, beside those in use; None sets no limit."""
        self.max_bytes = max_bytes
        self.num_bytes = 0  # of the images that are here
        self.num_uses = 0
        self.num_hits = 0  # uses that found the image here
        self.num_reads = 0  # images that were read again
        self.num_failures = 0  # reads that brought no image, or another one
        self._adapters: dict[str, _Adapter] = {}  # by digest
        self._idle: dict[str, None] = {}  # images that nobody uses, least recently used first
        self._latest: dict[str, str] = {}  # folder -> digest of what was loaded from there last
        self._may_exceed = False  # something was added or became idle since excess was taken

    def add(self, digest: str, num_bytes: int, source: Source) -> None:
        """An image has come, and is the most recently used one."""
        num_users = self._adapters[digest].num_users if digest in self._adapters else 0
        self._remove(digest)
        self._adapters[digest] = _Adapter(source, num_bytes, is_here=True, num_users=num_users)
        self._latest[source.folder] = digest
        self.num_bytes += num_bytes
        if not num_users:
            self._rest(digest)

    def use(self, digest: str) -> None:
        """Holds an adapter for a request, and counts whether its image is here. One that is not has to be brought back
        before it is used: see `missing`."""
        self.num_uses += 1
        self.num_hits += self._adapters[digest].is_here
        self.hold(digest)

    def hold(self, digest: str) -> None:
        """Until `release`, the adapter is not forgotten, and its image not dropped."""
        self._adapters[digest].num_users += 1
        self._idle.pop(digest, None)

    def release(self, digest: str) -> None:
        adapter = self._adapters[digest]
        adapter.num_users -= 1
        if not adapter.num_users and adapter.is_here:
            self._rest(digest)

    def _rest(self, digest: str) -> None:
        self._idle.pop(digest, None)
        self._idle[digest] = None
        self._may_exceed = True

    def take_excess(self, is_pinned: Callable[[str], bool]) -> list[str]:
        """The images to drop now: counted as gone."""
        if not self._may_exceed or self.max_bytes is None:
            return []
        self._may_exceed = False
        dropped = []
        for digest in list(self._idle):
            if self.num_bytes <= self.max_bytes:
                break
            if self._can_be_read(digest) and not is_pinned(digest):
                self._leave(digest)
                dropped.append(digest)
        return dropped

    def note_unpinned(self) -> None:
        """What was pinned may be dropped."""
        self._may_exceed = True

    def _can_be_read(self, digest: str) -> bool:
        return self._latest.get(self._adapters[digest].source.folder) == digest

    def forget(self, digest: str) -> None:
        """An adapter that nobody uses is gone for good."""
        self._remove(digest)

    def _remove(self, digest: str) -> None:
        self._leave(digest)
        adapter = self._adapters.pop(digest, None)
        if adapter is not None and self._latest.get(adapter.source.folder) == digest:
            del self._latest[adapter.source.folder]

    def _leave(self, digest: str) -> None:
        adapter = self._adapters.get(digest)
        if adapter is not None and adapter.is_here:
            adapter.is_here = False
            self.num_bytes -= adapter.num_bytes
            self._idle.pop(digest, None)

    # Facts.

    @property
    def num_images(self) -> int:
        """That are here."""
        return sum(adapter.is_here for adapter in self._adapters.values())

    def __contains__(self, digest: str) -> bool:
        """Whether an adapter's image is here."""
        return digest in self._adapters and self._adapters[digest].is_here

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Of these adapters those whose image is not here."""
        return [digest for digest in digests if digest not in self]

    def is_used(self, digest: str) -> bool:
        return digest in self._adapters and self._adapters[digest].num_users > 0

    def source_of(self, digest: str) -> Source:
        return self._adapters[digest].source

    def digests(self) -> list[str]:
        """Of all adapters, whether their image is here or not."""
        return list(self._adapters)

    def check_integrity(self, uses: Iterable[str], images: Collection[str]) -> None:
        """uses: a digest for each use. images: digests of those that there are. Raises RuntimeError unless these are
        what is counted."""
        users = Counter(uses)
        for digest, adapter in self._adapters.items():
            if adapter.num_users != users[digest]:
                raise RuntimeError(f"image of {digest}: {adapter.num_users} users counted, {users[digest]} there")
            if (digest in self._idle) != (adapter.is_here and not adapter.num_users):
                raise RuntimeError(f"image of {digest}: {adapter}, idle: {digest in self._idle}")
        here = {digest for digest, adapter in self._adapters.items() if adapter.is_here}
        if here != set(images) or users.keys() - self._adapters.keys():
            raise RuntimeError(f"images {here ^ set(images)} are counted and not there, or there and not counted")
        if self.num_bytes != sum(self._adapters[digest].num_bytes for digest in here):
            raise RuntimeError(f"{self.num_bytes} bytes of images are counted")
