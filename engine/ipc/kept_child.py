"""KeptChild: a child process that does one work after another. It starts with the first, and another follows one that
has ended.

Owns the process, for the clients of the loader, the lookout and the text processes. Knows no message.
"""

from typing import Any, Generic, TypeVar

from ..errors import EngineUnavailable
from .channel import Child, StartChild

Incoming = TypeVar("Incoming")


class KeptChild(Generic[Incoming]):
    def __init__(self, module: str, incoming: Any, start_child: StartChild, first: Any = None) -> None:
        """module: what `python -m` runs. incoming: the type of the messages that it sends. first: a message that it
        gets before any other, or None."""
        self._module, self._incoming, self._start_child, self._first = module, incoming, start_child, first
        self._child: Child[Incoming] | None = None
        self._is_closed = False

    async def running(self) -> Child[Incoming]:
        """Returns the process, started if none runs. One caller at a time. Raises EngineUnavailable after `close`, and
        when that is called meanwhile."""
        self.check_open()
        if self._child is not None and self._child.process.returncode is not None:
            await self.stop()  # it ended while it was idle, which is no fault of the work to be done now
        if self._child is None:
            self._child = await self._start_child(self._module, self._incoming)
            if self._is_closed:
                await self.stop()
            self.check_open()
            if self._first is not None:
                self._child.send(self._first)
        return self._child

    def seconds_without_core(self) -> float:
        return 0.0 if self._child is None else self._child.seconds_without_core()

    def check_open(self) -> None:
        """Raises EngineUnavailable after `close`."""
        if self._is_closed:
            raise EngineUnavailable("the engine was shut down")

    async def close(self) -> None:
        """Ends the process for good: work that runs loses it, and later work gets none."""
        self._is_closed = True
        await self.stop()

    async def stop(self) -> None:
        """Ends the process. The next work starts another one."""
        child, self._child = self._child, None
        if child is not None:
            await child.stop(0)
