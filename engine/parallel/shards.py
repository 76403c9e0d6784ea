"""Shards: the child processes that compute the other parts of the model, as the first shard sees them.

The first shard decides and samples. It sends every step to the others, and each computes it on its part of the model.
Owns their processes. They end with this process, however it ends.

An error ends only its own request as long as the shards stay in step. They do for an error before the step is sent, and
for one between or after the collectives, such as in sampling: the first shard completes the collectives before it
raises it. When the shards lose step, the engine ends. That happens when
- a shard ends;
- the first shard fails inside the model, where the others wait for it and cannot be stopped;
- the first shard is interrupted while it sends a message to the others.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from blora.adapters import ImageTable
from blora.scheduler import PageCopy, ScheduledRow, Step

from ..config import EngineConfig
from ..errors import EngineBroken, EngineStartError
from ..ipc.channel import Channel, ChannelClosed
from ..ipc.death import FROM_OUTSIDE
from ..ipc.home_process import HomeProcess
from ..ipc.messages import (
    AdapterTaken,
    BuildShard,
    DropImage,
    ForgetAdapter,
    FromShard,
    ShardRow,
    ShardStep,
    StartFailed,
    StartShard,
    TakeAdapter,
)
from ..ipc.sealed_memory import raise_descriptor_limit
from ..logs import as_here
from ..model.meeting import Meeting, create_meeting
from ..model.shard_group import ShardGroup

GRACE = 5.0  # seconds for a shard to end by itself
ENDING = 0.5  # seconds: a dying shard closes its connections a little before the system reports its end
PAUSE = 1e-4  # seconds between two checks of a condition that the first shard waits for
MODULE = "blora.engine.processes.shard"


@dataclass(frozen=True, slots=True)
class ShardProcess:
    index: int
    process: "subprocess.Popen[bytes]"
    channel: Channel[Any]
    lifeline: int  # descriptor; when it closes, the shard ends, whatever it is doing

    def send(self, message: Any, descriptor: int | None = None) -> None:
        """Sends a message. Raises EngineBroken if the shard has ended."""
        try:
            self.channel.send(message, descriptor)
        except ChannelClosed:
            raise EngineBroken(self._ended()) from None

    def end(self) -> None:
        """Asks the shard to end, and does not wait until it has."""
        self.channel.close()
        os.close(self.lifeline)

    def check_alive(self, seconds: float = 0) -> None:
        """Raises EngineBroken if the shard has ended. seconds: how long to wait for a shard that may be ending."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            raise EngineBroken(self._ended())

    def wait_for_answer(self) -> None:
        """Waits until the shard says that it has loaded, or that it is ready. Raises EngineStartError if it fails."""
        try:
            (answer,) = self.channel.receive(wait=True)
        except ChannelClosed:
            raise self.ended_at_start() from None
        if isinstance(answer, StartFailed):
            raise EngineStartError(f"shard {self.index}: {answer.reason}")

    def wait_until_taken(self) -> str | None:
        """Waits for the answer to TakeAdapter; returns its error. Raises EngineBroken if the shard ends."""
        try:
            (answer,) = self.channel.receive(wait=True)
        except ChannelClosed:
            raise EngineBroken(self._ended()) from None
        return answer.error if isinstance(answer, AdapterTaken) else type(answer).__name__

    def ended_at_start(self) -> EngineStartError:
        return EngineStartError(f"{self._ended()} while it started")

    def _ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"shard {self.index} has ended with status {self.process.wait(GRACE)}"
        return f"shard {self.index} has closed its channel"


class Aside:
    """A context for work that the first shard does alone between two collectives. It holds back the first error in
    there, so that the first shard takes part in the collectives to come; `check` raises it after them."""

    def __init__(self) -> None:
        self._error: Exception | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self._error = self._error or error
        return True

    def check(self) -> None:
        """Raises the first error, if there was one."""
        if self._error is not None:
            raise self._error


class Shards:
    """All shards but the first; none if the model is in one process."""

    def __init__(self, others: Sequence[ShardProcess], meeting: Meeting | None = None) -> None:
        """meeting: where the shards find each other; None if there are no others."""
        self.others = others
        self.meeting = meeting
        self._groups: list[ShardGroup] = []
        self._copies: list[PageCopy] = []  # copies that are still to be sent
        self._why_broken: str | None = None
        self._were_killed = False
        self._close = weakref.finalize(self, _end_here, HomeProcess("LLM"), others, self._groups)  # runs at exit, too

    @property
    def size(self) -> int:
        """The number of shards, the first one included."""
        return 1 + len(self.others)

    # Start and end.

    def load(self, config: EngineConfig, model: Path) -> None:
        """Has the others begin to load the model. Raises EngineStartError if one has ended."""
        for other in self.others:
            self._order(other, StartShard(config, str(model), other.index))

    def wait_until_loaded(self) -> None:
        """Waits until all others have loaded and come to meet this shard. Raises EngineStartError."""
        for other in self.others:
            other.wait_for_answer()

    def build(self, num_pages: int) -> None:
        """Has the others begin to build their arenas, of so many pages each, and their backends. Raises
        EngineStartError."""
        for other in self.others:
            self._order(other, BuildShard(num_pages))

    def _order(self, other: ShardProcess, message: Any) -> None:
        try:
            other.send(message)
        except EngineBroken as error:
            raise EngineStartError(str(error)) from None

    def attach(self, group: ShardGroup) -> None:
        """group: the collectives by which this shard meets the others."""
        self._groups.append(group)

    def wait_until_ready(self) -> None:
        """Waits until all others wait for steps. Raises EngineStartError."""
        for other in self.others:
            other.wait_for_answer()

    def check_coming(self) -> None:
        """Raises EngineStartError if a shard has ended while the first one waits for it."""
        for other in self.others:
            if other.process.poll() is not None:
                raise other.ended_at_start()

    def close(self) -> None:
        """Ends the other shards and waits for their end. Idempotent."""
        self._close()

    def check_alive(self) -> None:
        """Raises EngineBroken if a shard has ended."""
        for other in self.others:
            other.check_alive()

    @property
    def were_killed(self) -> bool:
        """Whether something outside has ended one of the others: no fault of what they computed."""
        if self._why_broken is not None:  # by now this shard has killed them itself
            return self._were_killed
        return any(-(other.process.returncode or 0) in FROM_OUTSIDE for other in self.others)

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Waits until a condition holds that needs the other shards; returns at once if there are none. Raises
        EngineBroken if one of them ends: a kernel that waits for it would never return."""
        while self.others and not is_done():
            self.check_alive()
            time.sleep(PAUSE)

    def wake(self, channel: Channel[Any]) -> None:
        """Makes `channel.receive` return when a shard ends, too; its caller then calls `check_alive`."""
        for other in self.others:
            channel.wake_with(other.channel)

    # Steps and adapters: the others do as the first shard does.

    def load_adapter(self, table: ImageTable, descriptor: int) -> None:
        """Returns when all shards have the adapter. Raises RuntimeError if one cannot take it, which the others have to
        forget then: a shard that has ended over it would be missed too late to know over what. descriptor: the sealed
        image of all shards, which the caller closes."""
        self._tell(TakeAdapter(table), descriptor)
        try:
            errors = {other.index: other.wait_until_taken() for other in self.others}
        except BaseException as error:
            self._break(f"an answer of the other shards failed: {type(error).__name__}: {error}")
            raise
        for index, failure in errors.items():
            if failure is not None:
                raise RuntimeError(f"shard {index} cannot take adapter {table.digest}: {failure}")

    def drop_image(self, digest: str) -> None:
        self._let_go(DropImage(digest))

    def forget_adapter(self, digest: str) -> None:
        self._let_go(ForgetAdapter(digest))

    def _let_go(self, message: DropImage | ForgetAdapter) -> None:
        """Shards that were ended hold nothing any more: what undoes a failed load must not hide why it failed."""
        if self._why_broken is None:
            self._send_copies()
            self._tell(message)

    def copy(self, step: Step) -> None:
        """Sends the step's copies with its rows, or alone if it has no rows."""
        self._copies += step.copies
        if not step.rows:
            self._send_copies()

    @contextlib.contextmanager
    def computing(self, rows: Sequence[ScheduledRow], adapter_pages: Mapping[str, Sequence[int]]) -> Iterator["Aside"]:
        """Has the others compute these rows while the caller does. rows: in batch order.

        Yields an Aside. An exception inside it is re-raised unchanged once all collectives are done. Any other
        exception becomes EngineBroken: the others wait for a collective that the caller never reaches, and cannot be
        stopped."""
        aside = Aside()
        with self._in_step(rows, adapter_pages) if self.others else contextlib.nullcontext():
            yield aside
        aside.check()

    @contextlib.contextmanager
    def _in_step(self, rows: Sequence[ScheduledRow], adapter_pages: Mapping[str, Sequence[int]]) -> Iterator[None]:
        try:
            self._send_step(rows, adapter_pages)
            yield
            self.wait_for_collectives()
        except EngineBroken as error:
            self._break(str(error))
            raise
        except BaseException as error:
            self._break(f"the first shard failed where the others did not: {type(error).__name__}: {error}")
            if isinstance(error, Exception):
                raise EngineBroken(self._why_broken) from error
            raise

    def wait_for_collectives(self) -> None:
        """Waits until the collectives that have begun are done. Call it before the host waits for work launched after
        them. Raises EngineBroken."""
        for group in self._groups:
            self.wait(group.is_done)

    def _break(self, why: str) -> None:
        """Kills the other shards and refuses all later messages. why: the reason, if no shard has ended by itself."""
        if self._why_broken is not None:
            return
        for other in self.others:
            try:
                other.check_alive(ENDING)
            except EngineBroken as error:
                why = str(error)
        self._were_killed = self.were_killed
        self._why_broken = why
        for other in self.others:
            other.process.kill()

    def _send_copies(self) -> None:
        if self._copies:
            self._send_step((), {})

    def _send_step(self, rows: Sequence[ScheduledRow], adapter_pages: Mapping[str, Sequence[int]]) -> None:
        pages = {digest: list(page_ids) for digest, page_ids in adapter_pages.items()}
        copies, self._copies = self._copies, []
        self._tell(ShardStep(copies, [ShardRow.of(row) for row in rows], pages))

    def _tell(self, message: Any, descriptor: int | None = None) -> None:
        """Sends a message to all other shards. Raises EngineBroken: a message that only some of them got would put them
        out of step, so a failure ends the engine."""
        if self._why_broken is not None:
            raise EngineBroken(self._why_broken)
        try:
            for other in self.others:
                other.send(message, descriptor)
        except BaseException as error:
            self._break(f"a message to the other shards failed: {type(error).__name__}: {error}")
            raise


def start_shards(size: int) -> Shards:
    """Starts the processes of all shards but the first. They wait for `Shards.load`."""
    if size == 1:
        return NO_SHARDS
    raise_descriptor_limit()  # the children inherit it: each adapter is an open descriptor in every shard
    others: list[ShardProcess] = []
    meeting = create_meeting()
    try:
        for index in range(1, size):
            others.append(_start(index, meeting))
    except BaseException:
        _end(others, ())
        raise
    return Shards(others, meeting)


def _start(index: int, meeting: Meeting) -> ShardProcess:
    frames, child_frames = socket.socketpair()
    descriptors, child_descriptors = socket.socketpair()
    child_lifeline, lifeline = os.pipe()
    try:
        with child_frames, child_descriptors:
            numbers = (child_frames.fileno(), child_descriptors.fileno(), child_lifeline, meeting.descriptor)
            command = [sys.executable, "-m", MODULE, as_here(), *map(str, numbers), meeting.name]
            process = subprocess.Popen(command, pass_fds=numbers, stdin=subprocess.DEVNULL)
    finally:
        os.close(child_lifeline)
    return ShardProcess(index, process, Channel(frames, descriptors, FromShard), lifeline)


def _end_here(home: HomeProcess, others: Sequence[ShardProcess], groups: Sequence[ShardGroup]) -> None:
    if home.is_here:  # the shards of a child that was forked are its parent's
        _end(others, groups)


def _end(others: Sequence[ShardProcess], groups: Sequence[ShardGroup]) -> None:
    for other in others:
        other.end()
    for group in groups:
        group.abort()
    for other in others:
        try:
            other.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            other.process.kill()
            other.process.wait()


NO_SHARDS = Shards(())
