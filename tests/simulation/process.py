"""SimulatedProcess: a child in memory. The front end holds the real Child of it, whose frames and descriptors it reads
and writes; the body of the process is a coroutine on the same virtual clock.

A process can be killed at any time: what it had sent arrives, the frame that it was sending arrives in part, and what
it would have sent later does not.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from blora.engine.ipc.channel import LENGTH, ChannelClosed, Child, receive_descriptor

FIRST_PID = 1 << 30  # no real process has it
KILLED = -9
ROUNDING = 1e-6  # seconds: the loop calls back a little early
Tap = Callable[[str, int, bytes], None]  # what is sent, by which process, and the frame


class SimulatedProcess:
    """The end of the child, and the system's side of it. Stands in for asyncio.subprocess.Process, too."""

    def __init__(self, number: int, name: str, incoming: Any, outgoing: Any, tap: Tap) -> None:
        """incoming: the type of the messages that the child sends. outgoing: of those that it gets."""
        self.pid, self.name = FIRST_PID + number, name
        self.returncode: int | None = None
        self.heed: Callable[[Any], None] = lambda _: None  # is told every message that the child gets
        self.ahead = 0.0  # seconds that the running turn has taken so far
        self.frames_to_live: int | None = None  # it dies inside the frame after so many, with `last_status`
        self.last_status = KILLED
        self._tap = tap
        self._loop = asyncio.get_running_loop()
        self._decoder = msgspec.msgpack.Decoder(outgoing)
        self._inbox: deque[bytes] = deque()
        self._news, self._ended, self._may_run = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._may_run.set()
        self._is_closed = False  # the parent has closed the channel
        self._outbox: deque[tuple[float, bytes, bool]] = deque()  # time, frame, whether the process dies inside it
        self._body: asyncio.Task[None] | None = None
        parents, self._descriptors = socket.socketpair()
        parents.setblocking(False)
        self._reader = asyncio.StreamReader()
        self.child: Child[Any] = Child(
            self,  # type: ignore[arg-type]
            self._reader,
            _Writer(self),  # type: ignore[arg-type]
            parents,
            msgspec.msgpack.Decoder(incoming),
        )

    # The system.

    def run(self, body: Coroutine[Any, Any, None]) -> None:
        self._body = asyncio.create_task(body)
        self._body.add_done_callback(self._note_end)

    def _note_end(self, body: "asyncio.Task[None]") -> None:
        failed = not body.cancelled() and body.exception() is not None
        self.die(1 if failed else 0)

    def die(self, returncode: int) -> None:
        if self.returncode is not None:
            return
        self.returncode = returncode
        if self._outbox:
            _, frame, _ = self._outbox.popleft()
            self._reader.feed_data(frame[: len(frame) // 2])
        self._outbox.clear()
        self._reader.feed_eof()
        self._descriptors.close()
        self._may_run.set()
        if self._body is not None:
            self._body.cancel()
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        self.die(KILLED)

    def stand_still(self) -> None:
        """As SIGSTOP does."""
        self._may_run.clear()

    def go_on(self) -> None:
        self._may_run.set()

    # The channel, as the child sees it.

    def now(self) -> float:
        return self._loop.time() + self.ahead

    def spend(self, seconds: float) -> None:
        """The turn takes so much longer."""
        self.ahead += seconds

    async def arrive(self) -> None:
        """Waits until `receive` has something to return."""
        while not self._inbox and not self._is_closed:
            self._news.clear()
            await self._news.wait()
        await self._may_run.wait()

    async def pass_time(self) -> None:
        """Waits for as long as the turn has taken."""
        await asyncio.sleep(self.ahead)
        self.ahead = 0.0
        await self._may_run.wait()

    def receive(self, wait: bool) -> list[Any]:
        messages = [self._decoder.decode(content) for content in self._inbox]
        self._inbox.clear()
        if not messages and (self._is_closed or wait):
            raise ChannelClosed
        for message in messages:
            self.heed(message)
        return messages

    def send(self, message: Any, descriptor: int | None = None) -> None:
        if descriptor is not None:
            socket.send_fds(self._descriptors, [b"\0"], [descriptor])
        content = msgspec.msgpack.encode(message)
        self._tap(f"{self.name} sends", self.pid, content)
        is_last = self.frames_to_live == 0
        if self.frames_to_live is not None:
            self.frames_to_live -= 1
        self._outbox.append((self.now(), LENGTH.pack(len(content)) + content, is_last))
        self._loop.call_at(self.now(), self._send_due)

    def _send_due(self) -> None:
        while self._outbox and self._outbox[0][0] <= self._loop.time() + ROUNDING:
            if self._outbox[0][2]:
                self.die(self.last_status)
                return
            self._reader.feed_data(self._outbox.popleft()[1])

    def receive_descriptor(self) -> int:
        return receive_descriptor(self._descriptors)

    def wake_with(self, _other: Any) -> None:
        raise RuntimeError("there are no shards to wake")

    # The channel, as the parent writes to it.

    def take(self, frame: bytes) -> None:
        if self.returncode is None:
            self._tap(f"{self.name} gets", self.pid, frame[LENGTH.size :])
            self._inbox.append(frame[LENGTH.size :])
            self._news.set()

    def close(self) -> None:
        self._is_closed = True
        self._news.set()


class _Writer:
    """The parent's StreamWriter."""

    def __init__(self, process: SimulatedProcess) -> None:
        self._process = process
        self._is_closing = False

    def write(self, frame: bytes) -> None:
        self._process.take(frame)
        self._is_closing |= self._process.returncode is not None  # the first write tells that the reader has gone

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True
        self._process.close()
