"""Adapter pages that are copied beside the step: their reads and writes are ordered in every case."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from unittest.mock import Mock

import pytest
import torch
from fakes import CheckingRunner, make_request, make_scheduler
from hypothesis import settings
from recording_device import HostWait, OrderError, Record, RecordingDevice, RecordingEvent, check_order
from scheduler_machine import BLOCK, SchedulerMachine
from torch import Tensor

from blora.engine.cuda.copies import CopiesBeside, PageCopier
from blora.engine.errors import EngineBroken
from blora.engine.parallel.shards import ShardProcess, Shards
from blora.scheduler import PageCopy, RowResult, Step

PAGE_BYTES = 64
KV = 200  # the bytes of a page of KV


def content(digest: str, index: int) -> int:
    """The byte that fills a page of an adapter."""
    return 1 + (sum(digest.encode()) + 7 * index) % 150


class DeviceRunner(CheckingRunner):
    """A runner with an arena of bytes on a device that copies as late as it may."""

    def __init__(self, num_pages: int, copied_pages: int) -> None:
        super().__init__(BLOCK)
        self.device = RecordingDevice()
        self.pages = torch.zeros(num_pages, PAGE_BYTES, dtype=torch.uint8)
        self.device.watch(self.pages)
        self.copier = PageCopier(self.device, PAGE_BYTES, copied_pages)
        self.copies = CopiesBeside(self, self.device, self.copier)  # type: ignore[arg-type]

    def copy(self, digest: str, first: int, page_ids: Sequence[int]) -> None:
        """Copies pages as the pool does."""
        images = torch.empty(len(page_ids), PAGE_BYTES, dtype=torch.uint8)
        for index in range(len(page_ids)):
            images[index] = content(digest, first + index)
        self.copier.copy(self.pages, page_ids, images)
        images.fill_(0)  # the image is dropped
        self._note_copy(PageCopy(digest, first, tuple(page_ids)))

    def begin_copies(self, step: Step) -> None:
        self.copies.begin(step)

    def execute(self, step: Step) -> dict[int, RowResult]:
        written = {page for row in step.rows for page in self._tables(row)[row.start // BLOCK :]}
        read = {page for row in step.rows for page in self._tables(row)}
        adapters = {page for pages in step.adapter_pages.values() for page in pages}
        self.device.note("rows", reads=read | adapters, writes=written)
        self.pages[sorted(written)] = KV
        self._check(read, step.adapter_pages)
        self.copies.go_on(is_waited_for=True)
        return super().execute(step)

    def _tables(self, row: object) -> list[int]:
        return row.block_table[: -(-row.end // BLOCK)]  # type: ignore[attr-defined]

    def _check(self, kv_pages: set[int], adapter_pages: Mapping[str, Sequence[int]]) -> None:
        assert (self.pages[sorted(kv_pages)] == KV).all()
        for digest, page_ids in adapter_pages.items():
            for index, page in enumerate(page_ids):
                assert (self.pages[page] == content(digest, index)).all(), (digest, index, page)

    def finish_copies(self) -> None:
        assert self.copies.finish() >= 0


class CopiesMachine(SchedulerMachine):
    are_copies_beside_rows = True

    def make_runner(self, num_pages: int, copied_pages: int) -> CheckingRunner:
        return DeviceRunner(num_pages, copied_pages)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "runner"):
            check_order(self.runner.device.log)


TestCopiesMachine = pytest.mark.slow(pytest.mark.grid(CopiesMachine.TestCase))
TestCopiesMachine.settings = settings(stateful_step_count=60)


class Beside:
    """A copier, and the operations of a step on it."""

    def __init__(self, pages_per_step: int = 2) -> None:
        self.device = RecordingDevice()
        self.pages = torch.zeros(8, PAGE_BYTES, dtype=torch.uint8)
        self.device.watch(self.pages)
        self.copier = PageCopier(self.device, PAGE_BYTES, pages_per_step)

    def copy(self, *page_ids: int) -> None:
        self.copier.copy(
            self.pages, page_ids, torch.tensor(page_ids, dtype=torch.uint8)[:, None].expand(-1, PAGE_BYTES)
        )

    def read(self, *page_ids: int) -> Tensor:
        self.copier.order(set(page_ids))
        self.device.note("rows", reads=page_ids)
        return self.pages[list(page_ids), 0]


def test_a_step_waits_for_the_copies_of_what_it_uses_and_for_no_others() -> None:
    beside = Beside()
    beside.copy(1, 2)
    assert beside.read(5).tolist() == [0]
    assert (beside.pages[1] == 0xFF).all()  # still on its way
    assert beside.read(1, 2).tolist() == [1, 2]
    check_order(beside.device.log)


def test_a_copy_waits_for_what_used_the_page_before_and_not_for_the_step_beside_it() -> None:
    beside = Beside()
    beside.read(3)
    beside.copier.note_step()
    beside.device.note("rows", reads={4})
    beside.copy(3)
    check_order(beside.device.log)
    beside.copy(4)
    with pytest.raises(OrderError, match="page 4"):
        check_order(beside.device.log)


@pytest.mark.parametrize("num_pages", [1, 3, 7])
def test_staging_memory_is_used_again_when_it_was_read(num_pages: int) -> None:
    """More pages than staging has places are copied, at once and one by one."""
    beside = Beside(pages_per_step=1)
    for first in range(0, 8 - num_pages, num_pages):
        beside.copy(*range(first, first + num_pages))
    last = (8 - num_pages - 1) // num_pages * num_pages + num_pages
    assert beside.read(*range(last)).tolist() == list(range(last))
    check_order(beside.device.log)
    assert beside.copier.staging.shape == (2, PAGE_BYTES)


def test_what_is_known_to_have_arrived_is_not_waited_for() -> None:
    beside = Beside()
    beside.copy(1)
    beside.device.synchronize()
    num_entries = len(beside.device.log)
    beside.read(1)
    assert not [entry for entry in beside.device.log[num_entries:] if type(entry).__name__ == "Wait"]
    check_order(beside.device.log)


def step_of(copied_pages: int, are_beside: bool) -> list[Step]:
    """The first steps of a base request and of one with an adapter of three pages."""
    scheduler, residency, _ = make_scheduler(copied_pages_per_step=copied_pages, are_copies_beside_rows=are_beside)
    residency.register("a", 3)
    scheduler.add(make_request(0, [1, 2, 3], 9))
    scheduler.add(make_request(1, [1, 2, 3], 9, adapters=(("a", 1.0),)))
    runner, steps = CheckingRunner(4), []
    for _ in range(4):
        step = scheduler.schedule()
        runner.begin_copies(step)
        scheduler.update(step, runner.execute(step))
        steps.append(step)
    return steps


@pytest.mark.parametrize(("are_beside", "first"), [(False, 1), (True, 2)])
def test_rows_use_what_was_copied_beside_them_from_the_next_step_on(are_beside: bool, first: int) -> None:
    steps = step_of(2, are_beside)
    assert [sum(len(copy.page_ids) for copy in step.copies) for step in steps] == [2, 1, 0, 0]
    assert [1 in {row.request_id for row in step.rows} for step in steps] == [i >= first for i in range(4)]
    assert all(0 in {row.request_id for row in step.rows} for step in steps)


class Pool:
    def __init__(self, seconds: float = 0.0) -> None:
        self.copied: list[str] = []
        self._seconds = seconds

    def copy(self, digest: str, *_: object) -> None:
        time.sleep(self._seconds)
        self.copied.append(digest)


def test_copies_of_a_step_that_failed_are_not_left_out() -> None:
    """The step is committed, and its copies with it."""
    pool, beside = Pool(seconds=0.01), Beside()
    copies = CopiesBeside(pool, beside.device, beside.copier)  # type: ignore[arg-type]
    step = step_of(2, are_beside=True)[0]
    copies.begin(step)
    assert pool.copied == []
    assert copies.finish() >= 0.01 and pool.copied == ["a"]
    copies.begin(step)
    copies.go_on(is_waited_for=True)
    copies.go_on(is_waited_for=True)  # the rows run again
    assert copies.finish() >= 0.01 and pool.copied == ["a", "a"]
    copies.begin(Step((), (), {}))
    assert copies.finish() < 0.01


def test_rows_that_nobody_waits_for_are_waited_for() -> None:
    """They compute a part of a prompt. Their plan is in pinned memory, which the next plan overwrites."""
    beside = Beside()
    copies = CopiesBeside(Pool(), beside.device, beside.copier)  # type: ignore[arg-type]
    copies.begin(step_of(2, are_beside=True)[0])
    beside.device.note("rows")
    copies.go_on(is_waited_for=True)
    assert not [entry for entry in beside.device.log if isinstance(entry, HostWait)]
    copies.go_on(is_waited_for=False)
    *_, record, wait = beside.device.log
    assert record == Record("compute", wait.event) and isinstance(wait, HostWait)


def test_a_shard_that_ends_is_seen_while_kernels_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of NCCL collectives wait for it for ever."""
    beside = Beside()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as process:
        shards = Shards([ShardProcess(1, process, Mock(), os.open(os.devnull, os.O_RDONLY))])
        copies = CopiesBeside(Pool(), beside.device, beside.copier, shards)  # type: ignore[arg-type]
        copies.begin(step_of(2, are_beside=True)[0])
        copies.go_on(is_waited_for=True)  # the launched kernels have run
        monkeypatch.setattr(RecordingEvent, "is_done", lambda _: process.kill())
        with pytest.raises(EngineBroken, match="shard 1 has ended with status -9"):
            copies.go_on(is_waited_for=True)
        shards.close()
