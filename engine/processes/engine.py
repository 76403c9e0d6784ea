"""The engine process: a loop that owns an engine core. All compute runs from its one thread.

Between steps it handles the front end's messages; after a step it sends one message. It ends when the channel closes,
so that an engine never outlives its front end.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import EngineBroken, EngineStartError
from ..ipc.channel import Channel, ChannelClosed, open_channel
from ..ipc.messages import (
    AddRequest,
    DoneReply,
    DropImage,
    FinishRequests,
    GetState,
    LoadAdapter,
    PinAdapter,
    Ready,
    ResetPrefixCache,
    Start,
    StartFailed,
    StateReply,
    ToEngine,
    UnloadAdapter,
    Updates,
    WarmAdapter,
)
from ..ipc.sealed_memory import map_sealed
from ..ipc.update_frames import in_frames
from ..parallel.shards import Shards
from ..startup.start import StartedEngine, start_engine
from ..step.core import EngineCore

logger = logging.getLogger(__name__)
IDLE_CHECK_INTERVAL = 5.0  # seconds: the check looks at every page


class EngineLoop:
    def __init__(
        self,
        channel: Channel[ToEngine],
        core: EngineCore,
        shards: Shards,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._core = core
        self._shards = shards
        self._now = now
        shards.wake(channel)
        self._last_check = 0.0  # by `now`

    def run(self) -> None:
        """Runs until the channel closes. Raises EngineBroken if a shard ends or the GPU fails."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Handles what has come, waiting for it if there is no work; then computes one step and sends its news."""
        self._shards.check_alive()
        for message in self._channel.receive(wait=not self._core.has_work):
            self._handle(message)
        is_busy = self._core.has_work
        rows = self._core.step() if is_busy else []
        unloaded, residency = self._core.take_unloaded(), self._core.take_residency_changes()
        step_costs = self._core.take_step_costs()
        if rows or unloaded or residency or step_costs is not None:
            *first, last = in_frames(rows)
            for part in first:
                self._channel.send(Updates(part, [], {}))
            self._channel.send(Updates(last, unloaded, residency, step_costs))
        if is_busy and not self._core.has_work:
            self._check_idle()

    def _check_idle(self) -> None:
        """Checks the idle engine for leaks, at most every IDLE_CHECK_INTERVAL. A leak is a bug of blora: the log calls
        it critical, and it costs the leaked memory, not the service."""
        now = self._now()
        if now - self._last_check < IDLE_CHECK_INTERVAL:
            return
        self._last_check = now
        try:
            self._core.check_idle()
        except RuntimeError:
            logger.critical("the engine leaks", exc_info=True)

    def _handle(self, message: ToEngine) -> None:
        core = self._core
        match message:
            case AddRequest():
                core.add_request(message.to_request())
            case FinishRequests(request_ids):
                for request_id in request_ids:
                    core.finish(request_id)
            case ResetPrefixCache(call_id, also_running):
                self._channel.send(DoneReply(call_id, core.reset_prefix_cache(also_running)))
            case LoadAdapter(table):
                descriptor = self._channel.receive_descriptor()
                self._shards.load_adapter(table, descriptor)
                image = map_sealed(descriptor, table.num_bytes)
                core.load_adapter(table, torch.from_numpy(image).view(-1, table.page_bytes))
            case DropImage(digest):
                core.drop_image(digest)
            case UnloadAdapter(digest):
                core.unload_adapter(digest)
            case PinAdapter(call_id, digest, is_pinned):
                self._channel.send(DoneReply(call_id, self._pin(digest, is_pinned)))
            case WarmAdapter(call_id, digest):
                self._channel.send(DoneReply(call_id, self._core.warm_adapter(digest)))
            case GetState(call_id, digests):
                self._channel.send(self._state(call_id, digests))
            case Start():
                raise RuntimeError("the engine has started already")

    def _pin(self, digest: str, is_pinned: bool) -> bool:
        if is_pinned:
            return self._core.pin_adapter(digest)
        self._core.unpin_adapter(digest)
        return True

    def _state(self, call_id: int, digests: list[str]) -> StateReply:
        return StateReply(call_id, self._core.load, [self._core.adapter_state(digest) for digest in digests])


def start(channel: Channel[ToEngine]) -> StartedEngine | None:
    """Starts the engine of the first message and sends Ready; returns None, and sends StartFailed, if it cannot."""
    first, *rest = channel.receive(wait=True)
    if not isinstance(first, Start) or rest:
        raise RuntimeError("the first message is not Start")
    try:
        engine = start_engine(first.config, Path(first.model))
    except Exception as error:
        logger.debug("the engine cannot start", exc_info=True)
        is_ours = isinstance(error, EngineStartError)  # its text is complete without the name of its type
        channel.send(StartFailed(str(error) if is_ours else f"{type(error).__name__}: {error}"))
        return None
    channel.send(Ready(engine.facts, engine.dtype, engine.page_bytes, engine.layout, engine.shards.size))
    return engine


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(asctime)s %(name)s: %(message)s")
    # The front end drains and then closes the channel; a signal to the whole group must not end running requests.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel: Channel[ToEngine] = open_channel(sys.argv[1:], ToEngine)
    try:
        engine = start(channel)
        if engine is not None:
            EngineLoop(channel, engine.core, engine.shards).run()
    except ChannelClosed:
        pass
    except EngineBroken as error:
        logger.critical("the engine ends: %s", error)
        channel.close()  # comes first: a hanging GPU may block the exit, and the front end then kills this process
        sys.exit(1)


if __name__ == "__main__":
    main()
