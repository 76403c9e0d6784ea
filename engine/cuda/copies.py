"""Copies of adapter pages to the GPU beside the step: staged in pinned memory, on their own stream, ordered by events.

Images are sealed memory, usually of another process, and a GPU copies beside its kernels from pinned memory only. The
images are staged, not registered in place, because
- registering would pin all idle adapters, without bound; the staging ring pins the pages of two steps;
- registering takes 60 ms per GB of present memory and up to a second per GB of fresh memory (CuPy issue 3450,
  stark-backend pull request 384), in the engine's thread, for adapters that may never be used;
- sealed memory can be mapped for writing only privately, and pinning such a mapping for writing copies it first;
- an image may be dropped as soon as it is staged: nothing has to be kept until an event.
Staging costs a copy on the host, which runs while the GPU computes the step and counts in the step's copy budget.
"""

from collections.abc import Sequence, Set

from torch import Tensor

from blora.adapters.device_pool import DevicePool
from blora.scheduler import PageCopy

from ..errors import EngineBroken
from ..parallel.shards import NO_SHARDS, Shards
from ..step.copies import CopiesFailed, PagedStep, run_copies
from ..step.device import Device, Event


class PageCopier:
    """Copies page images into pages of the arena, on a stream of its own.

    A page is written only after its earlier users have run; `note_step` marks the last of them. A page is used only
    after it was written; `order` makes the step wait.
    """

    def __init__(self, device: Device, page_bytes: int, pages_per_step: int) -> None:
        """pages_per_step: the most pages that a step copies. Staging memory holds the pages of two steps."""
        self._device = device
        self._stream = device.new_stream()
        self._staging = device.pinned(2 * pages_per_step, page_bytes)
        self._free_after: list[Event | None] = [None] * len(self._staging)  # of each place in staging
        self._next = 0  # place in staging
        self._arriving: dict[int, Event] = {}  # page -> the event after its copy, unless that is known to be done
        self._used_before = device.compute.record()

    @property
    def staging(self) -> Tensor:
        """The staging memory: [2 * pages_per_step, page_bytes] uint8, pinned."""
        return self._staging

    def note_step(self) -> None:
        """Marks this point of the step's stream: nothing launched after it uses the pages that are copied next."""
        self._used_before = self._device.compute.record()

    def order(self, page_ids: Set[int]) -> None:
        """Lets kernels launched after this call use these pages: the step waits for their copies, and for no others."""
        if not self._arriving:
            return
        self._arriving = {page: event for page, event in self._arriving.items() if not event.is_done()}
        waited = {id(event): event for page, event in self._arriving.items() if page in page_ids}
        for event in waited.values():
            self._device.compute.wait(event)
        self._arriving = {page: event for page, event in self._arriving.items() if id(event) not in waited}

    def copy(self, pages: Tensor, page_ids: Sequence[int], images: Tensor) -> None:
        """Copies images into pages.

        images: [len(page_ids), page_bytes] uint8; they may change as soon as the call returns.
        """
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
        """Copies through neighbouring places of staging, from `first` on."""
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
    """Launches the copies of a step after the kernels of its rows, and lets them run beside these.

    Rows use the copied pages from the next step on. A step is one batch: in the step itself, all rows would wait for
    the copies.
    """

    is_beside = True

    def __init__(self, pool: DevicePool, device: Device, copier: PageCopier, shards: Shards = NO_SHARDS) -> None:
        """copier: the pool's. shards: the other shards that compute the step."""
        self._pool, self._device, self._copier, self._shards = pool, device, copier, shards
        self._left: Sequence[PageCopy] = ()
        self._failed: list[str] = []
        self._seconds = 0.0

    def begin(self, step: PagedStep) -> None:
        self._left, self._failed, self._seconds = step.copies, [], 0.0
        self._copier.order(pages_of(step))
        if step.copies:
            self._copier.note_step()

    def go_on(self, is_waited_for: bool) -> None:
        self._run_left()
        end = self._device.compute.record()
        self._shards.wait(end.is_done)
        # The wait measures the time of steps that compute a part of a prompt. It also keeps the host from changing its
        # plan, which lies in pinned memory, before the GPU has read it.
        if not is_waited_for:
            end.synchronize()

    def settle(self) -> None:
        """Raises EngineBroken after an error of a kernel, such as an address outside memory: every later call of the
        process returns the same error. It is no error of the rows, and no row can be computed after it."""
        try:
            self._device.synchronize()
        except RuntimeError as error:
            raise EngineBroken(f"the GPU cannot compute any more: {error}") from error

    def finish(self) -> float:
        self._run_left()
        if self._failed:
            raise CopiesFailed(self._failed)
        return self._seconds

    def _run_left(self) -> None:
        copies, self._left = self._left, ()
        seconds, failed = run_copies(self._pool, copies)
        self._seconds += seconds
        self._failed += failed
        if failed:
            self.settle()


def pages_of(step: PagedStep) -> set[int]:
    """The pages that the rows of a step read or write."""
    tables = [row.block_table for row in step.rows]
    return set().union(*tables, *step.adapter_pages.values())
