"""Adapter pages to the GPU beside the step: staged in pinned memory, copied on their own stream, ordered by events.

Images are sealed memory of another process, or of anybody; a GPU copies beside its kernels from pinned memory only.
They are staged and not registered where they are, because
- registering pins all idle adapters, without bound; the ring pins two steps' worth;
- it takes 60 ms per GB of memory that is there already and up to a second of fresh memory (CuPy issue 3450,
  stark-backend pull request 384), in the engine's thread, for adapters that may never be used;
- a private mapping that is pinned for writing is copied first, and of a sealed one no other can be written;
- an image may go as soon as it is staged: nothing of it has to be kept until an event.
It costs a copy on the host, which runs while the GPU computes the step and counts in the step's budget of copies.
"""

from collections.abc import Sequence, Set

from torch import Tensor

from blora.adapters.device_pool import DevicePool
from blora.scheduler import PageCopy

from ..errors import EngineBroken
from ..parallel.shards import NO_SHARDS, Shards
from ..step.copies import PagedStep, run_copies
from ..step.device import Device, Event


class PageCopier:
    """Copies page images into pages of the arena, on a stream of its own. A page is written after what used it before:
    `note_step` says up to where that is; and used after it was written: `order` sees to it."""

    def __init__(self, device: Device, page_bytes: int, pages_per_step: int) -> None:
        """pages_per_step: copied at most; staging memory is for two steps."""
        self._device = device
        self._stream = device.new_stream()
        self._staging = device.pinned(2 * pages_per_step, page_bytes)
        self._free_after: list[Event | None] = [None] * len(self._staging)  # of each place there
        self._next = 0  # place in staging memory
        self._arriving: dict[int, Event] = {}  # page -> the event behind its copy, unless known to be done
        self._used_before = device.compute.record()

    @property
    def staging(self) -> Tensor:
        """[2 * pages_per_step, page_bytes] uint8, pinned."""
        return self._staging

    def note_step(self) -> None:
        """Pages that are copied from now on were used by nothing that is launched later than this."""
        self._used_before = self._device.compute.record()

    def order(self, page_ids: Set[int]) -> None:
        """What is launched from now on may use these pages; it waits for their copies, and for no others."""
        if not self._arriving:
            return
        self._arriving = {page: event for page, event in self._arriving.items() if not event.is_done()}
        waited = {id(event): event for page, event in self._arriving.items() if page in page_ids}
        for event in waited.values():
            self._device.compute.wait(event)
        self._arriving = {page: event for page, event in self._arriving.items() if id(event) not in waited}

    def copy(self, pages: Tensor, page_ids: Sequence[int], images: Tensor) -> None:
        """images: [len(page_ids), page_bytes] uint8, which may change as soon as this returns."""
        self._stream.wait(self._used_before)
        done = 0
        while done < len(page_ids):
            first = self._next
            count = min(len(page_ids) - done, len(self._staging) - first)
            part = slice(done, done + count)
            self._copy_part(pages, page_ids[part], images[part], first)
            self._next = (first + count) % len(self._staging)
            done += count

    def _copy_part(self, pages: Tensor, page_ids: Sequence[int], images: Tensor, first: int) -> None:
        """Through neighbouring places of staging memory."""
        last = first + len(page_ids)
        for event in {id(event): event for event in self._free_after[first:last] if event is not None}.values():
            event.synchronize()
        self._staging[first:last].copy_(images)
        with self._device.use(self._stream):
            for place, page in enumerate(page_ids, first):
                self._device.copy(pages[page], self._staging[place])
        event = self._stream.record()
        self._free_after[first:last] = [event] * len(page_ids)
        self._arriving.update(dict.fromkeys(page_ids, event))


class CopiesBeside:
    """Copies of a step are launched behind the kernels of its rows and run beside them; rows use them from the next
    step on. In the step itself, all its rows would wait for them: it is one batch."""

    is_beside = True

    def __init__(self, pool: DevicePool, device: Device, copier: PageCopier, shards: Shards = NO_SHARDS) -> None:
        """copier: the pool's. shards: those that compute the step with this one."""
        self._pool, self._device, self._copier, self._shards = pool, device, copier, shards
        self._left: Sequence[PageCopy] = ()
        self._seconds = 0.0

    def begin(self, step: PagedStep) -> None:
        self._left, self._seconds = step.copies, 0.0
        self._copier.order(pages_of(step))
        if step.copies:
            self._copier.note_step()

    def go_on(self, is_waited_for: bool) -> None:
        self._run_left()
        end = self._device.compute.record()
        self._shards.wait(end.is_done)
        # Or nobody would know how long steps take that compute a part of a prompt; and what the host has planned with,
        # in pinned memory of its own, may not change before it was read.
        if not is_waited_for:
            end.synchronize()

    def settle(self) -> None:
        """An error of a kernel, such as an address outside memory, comes back from every call of the process from then
        on: it is not the rows' and no row can be computed after it."""
        try:
            self._device.synchronize()
        except RuntimeError as error:
            raise EngineBroken(f"the GPU computes nothing any more: {error}") from error

    def finish(self) -> float:
        self._run_left()
        return self._seconds

    def _run_left(self) -> None:
        copies, self._left = self._left, ()
        self._seconds += run_copies(self._pool, copies)


def pages_of(step: PagedStep) -> set[int]:
    """All that its rows read or write."""
    tables = [row.block_table for row in step.rows]
    return set().union(*tables, *step.adapter_pages.values())
