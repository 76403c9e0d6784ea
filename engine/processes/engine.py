"""The engine process: a loop that owns an engine core. All compute runs from its one thread.

An error that a request, an adapter or a call has brought out costs that one, as long as it leaves the core sound. Any
other one ends the process: the front end starts another, and gives it the requests of this one.

Between steps it handles the front end's messages; after a step it sends one message. It ends when the channel closes,
so that an engine never outlives its front end.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from blora.adapters import ImageTable
from blora.scheduler import FinishReason, Matcher, RowUpdate

from ..errors import EngineBroken, EngineStartError
from ..grammar.grammars import Grammars
from ..ipc.channel import Channel, ChannelClosed, open_channel
from ..ipc.logbook import Activity, open_logbook
from ..ipc.messages import (
    AddRequest,
    CallFailed,
    DoneReply,
    DropImage,
    FinishRequests,
    GetState,
    LoadAdapter,
    Nudge,
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
from ..logs import set_up_as_told
from ..parallel.shards import Shards
from ..startup.start import start_engine
from ..step.core import EngineCore
from ..text.tokenizer import load_tokenizer
from .matchers import Matchers

logger = logging.getLogger(__name__)
IDLE_CHECK_INTERVAL = 5.0  # seconds: the check looks at every page
NOT_ACCEPTED = "the engine could not accept this request"


class EngineLoop:
    def __init__(
        self,
        channel: Channel[ToEngine],
        core: EngineCore,
        shards: Shards,
        now: Callable[[], float] = time.monotonic,
        matchers: Matchers | None = None,
    ) -> None:
        """matchers: of requests with structured output; None if there are none."""
        self._matchers = matchers
        self._channel = channel
        self._core = core
        self._shards = shards
        self._now = now
        self._refused: list[RowUpdate] = []  # requests that could not be accepted, yet to be told
        shards.wake(channel)
        self._last_check = 0.0  # by `now`

    def run(self) -> None:
        """Runs until the channel closes. Raises EngineBroken if a shard ends or the GPU fails, and any other error that
        is nobody's own."""
        try:
            while True:
                self.turn()
        except Exception:
            if self._shards.were_killed:
                self._core.logbook.rest()
            raise
        finally:
            if self._matchers is not None:
                self._matchers.close()

    def turn(self) -> None:
        """Handles what has come, waiting for it if there is no work; then computes one step and sends its news."""
        self._core.logbook.rest()
        self._shards.check_alive()
        for message in self._channel.receive(wait=not self._core.has_work):
            self._handle(message)
            self._core.logbook.rest()
        self._add_with_matchers()
        is_busy = self._core.has_work
        rows, self._refused = self._refused, []
        if is_busy:
            rows += self._step()
        self._send_news(rows)
        if is_busy and not self._core.has_work:
            self._check_idle()

    def _step(self) -> list[RowUpdate]:
        """Raises EngineBroken before anybody hears of errors that no row is to blame for."""
        rows = self._core.step()
        if self._core.is_failing:
            failed = [row.request_id for row in rows if row.error is not None]
            self._core.logbook.note(Activity.EXECUTING, failed)
            raise EngineBroken("no row can be computed: the errors above have come over all of them")
        return rows

    def _send_news(self, rows: list[RowUpdate]) -> None:
        core = self._core
        unloaded, residency, unpinned = core.take_unloaded(), core.take_residency_changes(), core.take_unpinned()
        step_costs, report = core.take_step_costs(), core.take_step_report()
        if rows or unloaded or residency or unpinned or step_costs is not None or report is not None:
            *first, last = in_frames(rows)
            for part in first:
                self._channel.send(Updates(part, [], {}))
            self._channel.send(Updates(last, unloaded, residency, step_costs, unpinned, report))

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
            case AddRequest() if message.grammar is not None and self._matchers is not None:
                self._matchers.begin(message)
            case AddRequest():
                self._add(message)
            case FinishRequests(request_ids):
                self._finish(request_ids)
            case ResetPrefixCache(call_id, also_running):
                self._answer(call_id, partial(core.reset_prefix_cache, also_running))
            case LoadAdapter(call_id, table):
                self._answer(call_id, partial(self._load, table, self._channel.receive_descriptor()))
            case DropImage(digest):
                core.drop_image(digest)
            case UnloadAdapter(digest):
                core.unload_adapter(digest)
            case PinAdapter(call_id, digest, is_pinned):
                self._answer(call_id, partial(self._pin, digest, is_pinned))
            case WarmAdapter(call_id, digest):
                self._answer(call_id, partial(core.warm_adapter, digest))
            case GetState(call_id, digests):
                self._answer(call_id, partial(self._state, call_id, digests))
            case Nudge():
                pass  # to have been woken is the sign
            case Start():
                raise RuntimeError("the engine has started already")

    def _finish(self, request_ids: Sequence[int]) -> None:
        if self._matchers is not None:
            self._matchers.forget(request_ids)
        for request_id in request_ids:
            self._core.finish(request_id)

    def _add_with_matchers(self) -> None:
        for message, matcher in () if self._matchers is None else self._matchers.take():
            self._add(message, matcher.result)

    def _add(self, message: AddRequest, matcher: Callable[[], Matcher | None] = lambda: None) -> None:
        """Takes a request in. An error costs the request."""
        self._core.logbook.note(Activity.ADDING, [message.request_id])
        try:
            self._core.add_request(message.to_request(matcher()))
        except Exception:
            logger.exception("request %d cannot be accepted", message.request_id)
            self._core.finish(message.request_id)
            self._core.check_integrity()
            update = RowUpdate(message.request_id, finish_reason=FinishReason.ERROR, error=NOT_ACCEPTED)
            self._refused.append(update)

    def _answer(self, call_id: int, work: Callable[[], bool | StateReply]) -> None:
        """Does the work of a call, and sends the answer. An error costs the call."""
        try:
            answer = work()
        except EngineBroken:
            raise
        except Exception as error:
            logger.exception("a call has failed")
            self._core.check_integrity()
            self._channel.send(CallFailed(call_id, type(error).__name__))
        else:
            self._channel.send(DoneReply(call_id, answer) if isinstance(answer, bool) else answer)

    def _load(self, table: ImageTable, descriptor: int) -> bool:
        core = self._core
        core.logbook.note(Activity.REGISTERING, digest=table.digest)
        try:
            self._share(table, descriptor)
            image = map_sealed(descriptor, table.num_bytes)
            core.load_adapter(table, torch.from_numpy(image).view(-1, table.page_bytes))
        except Exception:
            core.refuse_adapter(table.digest)
            raise
        return True

    def _share(self, table: ImageTable, descriptor: int) -> None:
        """Gives the adapter to the other shards; on failure closes the descriptor."""
        try:
            self._shards.load_adapter(table, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def _pin(self, digest: str, is_pinned: bool) -> bool:
        if is_pinned:
            return self._core.pin_adapter(digest)
        self._core.unpin_adapter(digest)
        return True

    def _state(self, call_id: int, digests: list[str]) -> StateReply:
        return StateReply(call_id, self._core.load, [self._core.adapter_state(digest) for digest in digests])


def start(channel: Channel[ToEngine]) -> EngineLoop | None:
    """Starts the engine of the first message and sends Ready; returns None, and sends StartFailed, if it cannot."""
    first, *rest = channel.receive(wait=True)
    if not isinstance(first, Start) or rest:
        raise RuntimeError("the first message is not Start")
    try:
        engine = start_engine(first.config, Path(first.model), open_logbook(channel.receive_descriptor()))
    except Exception as error:
        logger.debug("the engine cannot start", exc_info=True)
        is_ours = isinstance(error, EngineStartError)  # its text is complete without the name of its type
        channel.send(StartFailed(str(error) if is_ours else f"{type(error).__name__}: {error}"))
        return None
    grammars = Grammars(partial(load_tokenizer, Path(first.model)), engine.facts.vocab_size)
    grammars.warm()  # later it would hold up the steps of all others
    channel.send(Ready(engine.facts, engine.dtype, engine.page_bytes, engine.layout, engine.shards.size))
    matchers = Matchers(grammars, channel.bell(), engine.core.logbook.note_compiled)
    return EngineLoop(channel, engine.core, engine.shards, matchers=matchers)


def main() -> None:
    set_up_as_told(sys.argv[1], logging.DEBUG)
    # The front end drains and then closes the channel; a signal to the whole group must not end running requests.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel: Channel[ToEngine] = open_channel(sys.argv[2:], ToEngine)
    try:
        loop = start(channel)
        if loop is not None:
            loop.run()
    except ChannelClosed:
        pass
    except BaseException as error:  # panics of libraries in Rust are no Exception
        logger.error("the engine ends: %s", error, exc_info=not isinstance(error, EngineBroken))
        channel.close()  # before the exit, which takes a while; a hanging GPU blocks it until this process is killed
        sys.exit(1)


if __name__ == "__main__":
    main()
