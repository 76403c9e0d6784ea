"""EngineWatch: notices when an engine stands: its process is there, and does nothing any more.

The logbook's beats are the signs of life. One engine beats at each turn of its loop, and an idle one at each nudge. A
step is one beat, so an engine has as long as the step may well take. Time does not count in which the engine was ready
to run and got no core, or in which this process itself stood, because the machine was suspended, say.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from .channel import ChannelClosed
from .death import Death
from .engine_process import EngineProcess
from .messages import Nudge

Result = TypeVar("Result")
LOOKS = 5  # looks at the logbook within the time after which an engine stands
# A step that takes so many times as long as predicted stands: the prediction may be of smaller steps, and the machine
# busy with others.
TIMES_EXPECTED = 10.0
STOPPED = ("T", "t")  # states of a process that a signal or a debugger has stopped


class EngineStands(Exception):
    def __init__(self, death: Death) -> None:
        super().__init__(death)
        self.death = death


class EngineWatch:
    def __init__(self, engine: EngineProcess, seconds: float) -> None:
        """seconds: without a beat, after which the engine stands, unless its step may take longer."""
        self._engine = engine
        self._seconds = seconds

    async def during(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Returns the result of work that needs the engine, or raises its error. Raises EngineStands, and cancels the
        work, when the engine stands meanwhile."""
        task, watch = asyncio.create_task(work), asyncio.create_task(self._until_standing())
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise EngineStands(watch.result())
            return task.result()
        finally:
            task.cancel()
            watch.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def _until_standing(self) -> Death:
        interval = self._seconds / LOOKS
        num_beats, standing = -1, 0.0  # seconds
        while True:
            counted = await self._pass(interval)
            pulse = self._engine.logbook.pulse()
            if pulse.num_beats != num_beats:
                num_beats, standing = pulse.num_beats, 0.0
                self._nudge()
                continue
            standing += counted
            if standing >= max(self._seconds, TIMES_EXPECTED * pulse.expected):
                return self._death(standing)

    async def _pass(self, interval: float) -> float:
        """Waits; returns the seconds of it in which the engine could have run."""
        loop = asyncio.get_running_loop()
        begun, starved = loop.time(), self._engine.child.seconds_without_core()
        await asyncio.sleep(interval)
        passed = loop.time() - begun
        if passed > 2 * interval:
            return 0.0
        return max(passed - (self._engine.child.seconds_without_core() - starved), 0.0)

    def _nudge(self) -> None:
        """An engine that waits for messages beats when one comes."""
        with contextlib.suppress(ChannelClosed):
            self._engine.child.send(Nudge())

    def _death(self, standing: float) -> Death:
        is_stopped = self._state() in STOPPED
        how = "was stopped by a signal" if is_stopped else "went on no more"
        return Death(f"{how} for {standing:.1f} s", not is_stopped, self._engine.logbook.entry(), is_standing=True)

    def _state(self) -> str:
        with contextlib.suppress(OSError, IndexError):
            return Path(f"/proc/{self._engine.child.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return ""
