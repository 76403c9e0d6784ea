"""Channel: frames between this process and a child. A frame is a length and one msgpack message of a fixed schema.

There is no pickle: a frame can only be one of the listed messages. A second socket carries file descriptors, in the
order of the frames that announce them.
"""

import asyncio
import contextlib
import os
import selectors
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from ..logs import as_here

Incoming = TypeVar("Incoming")
LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 1 << 30
DESCRIPTOR_PAUSE = 0.005  # seconds


class ChannelClosed(Exception):
    """The process at the other end is gone."""


def _frame(message: Any) -> bytes:
    content = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(content)) + content


class Channel(Generic[Incoming]):
    """The child's end of a channel: blocking, for one thread."""

    def __init__(self, frames: socket.socket, descriptors: socket.socket, incoming: Any) -> None:
        self._frames = frames
        self._descriptors = descriptors
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._buffer = bytearray()
        self._bells: list[int] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(frames, selectors.EVENT_READ)

    def send(self, message: Any, descriptor: int | None = None) -> None:
        try:
            if descriptor is not None:
                socket.send_fds(self._descriptors, [b"\0"], [descriptor])
            self._frames.sendall(_frame(message))
        except OSError as error:
            raise ChannelClosed from error

    def wake_with(self, other: "Channel[Any]") -> None:
        """Makes `receive` return, too, when the other channel has something to receive or is closed."""
        self._selector.register(other._frames, selectors.EVENT_READ)

    def bell(self) -> Callable[[], None]:
        """Returns what makes `receive` return, called in another thread."""
        bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._bells.append(bell)
        self._selector.register(bell, selectors.EVENT_READ)
        return partial(os.eventfd_write, bell, 1)

    def close(self) -> None:
        self._selector.close()
        for bell in self._bells:
            os.close(bell)
        self._bells.clear()
        self._frames.close()
        self._descriptors.close()

    def receive(self, wait: bool) -> list[Incoming]:
        """Returns all messages that have arrived. wait: waits for the first one. Raises ChannelClosed."""
        messages = self._decode()
        while ready := self._selector.select(None if wait and not messages else 0):
            if all(key.fileobj is not self._frames for key, _ in ready):
                break
            try:
                content = self._frames.recv(1 << 20)
            except OSError as error:
                raise ChannelClosed from error
            if not content:
                raise ChannelClosed
            self._buffer += content
            messages += self._decode()
        for bell in self._bells:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(bell)
        return messages

    def _decode(self) -> list[Incoming]:
        messages = []
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if len(self._buffer) < LENGTH.size + length:
                break
            messages.append(self._decoder.decode(self._buffer[LENGTH.size : LENGTH.size + length]))
            del self._buffer[: LENGTH.size + length]
        return messages

    def receive_descriptor(self) -> int:
        """The file descriptor that the last frame announced; the caller closes it."""
        return receive_descriptor(self._descriptors)


def receive_descriptor(descriptors: socket.socket) -> int:
    try:
        _, received, _, _ = socket.recv_fds(descriptors, 1, 1)
    except OSError as error:
        raise ChannelClosed from error
    if not received:
        raise ChannelClosed
    return received[0]


@dataclass(eq=False)
class Child(Generic[Incoming]):
    """The parent's end of a channel to a child process, for asyncio."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    descriptors: socket.socket
    decoder: "msgspec.msgpack.Decoder[Incoming]"

    def send(self, message: Any) -> None:
        """Sends a message. Raises ChannelClosed if the child is known to be gone."""
        if self.writer.is_closing():
            raise ChannelClosed
        self.writer.write(_frame(message))

    async def send_with(self, message: Any, descriptor: int) -> None:
        """Sends a message and the descriptor that it announces. Waits while the child has many descriptors to fetch."""
        while True:
            try:
                socket.send_fds(self.descriptors, [b"\0"], [descriptor])
                break
            except BlockingIOError:
                await asyncio.sleep(DESCRIPTOR_PAUSE)
            except OSError as error:
                raise ChannelClosed from error
        self.send(message)  # at once, so that frames and descriptors keep the same order

    async def receive(self) -> Incoming:
        """Returns the next message. Raises ChannelClosed."""
        try:
            (length,) = LENGTH.unpack(await self.reader.readexactly(LENGTH.size))
            if length > MAX_FRAME_BYTES:
                raise ChannelClosed
            return self.decoder.decode(await self.reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError, msgspec.MsgspecError) as error:  # or it sends what it never would
            raise ChannelClosed from error

    def receive_descriptor(self) -> int:
        """The file descriptor that the last frame announced; the caller closes it."""
        return receive_descriptor(self.descriptors)

    def seconds_without_core(self) -> float:
        """Returns the seconds that the child has been ready to run while other processes had the cores; 0 if the kernel
        does not say."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9
        return 0.0

    def seconds_at_work(self) -> float:
        """Returns the seconds for which threads of the child have had cores; 0 if the kernel does not say."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    async def stop(self, grace: float) -> bool:
        """Closes the channel, which asks the child to end, and kills it if it has not ended within `grace` seconds, or
        the wait is cancelled. Returns whether it has ended by itself."""
        self.writer.close()
        self.descriptors.close()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), grace)
        finally:
            has_ended = self.process.returncode is not None
            if not has_ended:  # also if the caller is cancelled
                self._kill()
        await self.process.wait()
        return has_ended

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            self.process.kill()


async def start_child(module: str, incoming: Any) -> Child[Any]:
    """Runs `python -m module LOG FRAMES_FD DESCRIPTORS_FD`. incoming: the type of the messages that the child sends."""
    frames, child_frames = socket.socketpair()
    descriptors, child_descriptors = socket.socketpair()
    try:
        with child_frames, child_descriptors:
            numbers = (child_frames.fileno(), child_descriptors.fileno())
            command = [sys.executable, "-m", module, as_here(), *map(str, numbers)]
            process = await asyncio.create_subprocess_exec(*command, pass_fds=numbers, stdin=asyncio.subprocess.DEVNULL)
        descriptors.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=frames)
    except BaseException:  # it may be cancelled
        frames.close()
        descriptors.close()
        raise
    return Child(process, reader, writer, descriptors, msgspec.msgpack.Decoder(incoming))


# Starts a child from its module and the type of its messages: `start_child`, or another one where time is simulated.
StartChild = Callable[[str, Any], Awaitable[Child[Any]]]


def open_channel(arguments: Sequence[str], incoming: Any) -> Channel[Any]:
    """Returns, in the child, the channel of two descriptors, which are arguments of its command line."""
    frames, descriptors = (socket.socket(fileno=int(argument)) for argument in arguments)
    return Channel(frames, descriptors, incoming)
