"""The process of a shard other than the first: computes every step on its part of the model. Decides nothing.

It ends when its channel or the lifeline closes, and so with the first shard. It also ends when a step fails here,
because it cannot know whether the other shards succeeded. The first shard notices its end at the next
collective or before.
"""

import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from blora.adapters import ImageTable

from ..errors import EngineStartError
from ..ipc.channel import Channel, ChannelClosed, open_channel
from ..ipc.messages import (
    AdapterTaken,
    BuildShard,
    DropImage,
    ForgetAdapter,
    ShardLoaded,
    ShardReady,
    ShardRow,
    ShardStep,
    StartFailed,
    StartShard,
    TakeAdapter,
    ToShard,
)
from ..ipc.sealed_memory import map_sealed
from ..logs import set_up_as_told
from ..model.meeting import Meeting
from ..model.shard import Shard
from ..parallel.lifeline import hang_on
from ..startup.assembly import Executor, plan_shard
from ..step.inputs import build_batch, plan_logits, scored_slices

logger = logging.getLogger(__name__)


class ShardLoop:
    def __init__(self, channel: Channel[ToShard], shard: Shard, executor: Executor) -> None:
        self._channel = channel
        self._shard = shard
        self._backend = executor.backend
        self._pool = executor.adapters
        self._copies = executor.copies

    def run(self) -> None:
        """Runs until the channel closes."""
        while True:
            for message in self._channel.receive(wait=True):
                self._handle(message)

    def _handle(self, message: ToShard) -> None:
        match message:
            case ShardStep():
                self._step(message)
            case TakeAdapter(table):
                self._channel.send(AdapterTaken(self._take(table, self._channel.receive_descriptor())))
            case DropImage(digest):
                self._pool.drop_image(digest)
            case ForgetAdapter(digest):
                self._pool.remove(digest)
            case StartShard() | BuildShard():
                raise RuntimeError("the shard has started already")

    def _take(self, table: ImageTable, descriptor: int) -> str | None:
        """Returns the type of the error, if there was one."""
        try:
            self._load(table, descriptor)
        except Exception as error:
            logger.exception("adapter %s cannot be taken", table.digest)
            return type(error).__name__
        return None

    def _load(self, table: ImageTable, descriptor: int) -> None:
        """Adds the adapter to the pool. The other shards' parts of the image are mapped, but never read."""
        image = torch.from_numpy(map_sealed(descriptor, table.num_bytes))
        shards = image.view(table.num_shards, table.num_pages, table.page_bytes)
        self._pool.add(table.of_shard(self._shard.index), shards[self._shard.index])

    @torch.inference_mode()
    def _step(self, step: ShardStep) -> None:
        self._copies.begin(step)
        if step.rows:
            self._compute(step.rows, step.adapter_pages)
        self._copies.go_on(is_waited_for=False)  # only the first shard reads tokens
        self._copies.finish()

    def _compute(self, rows: Sequence[ShardRow], adapter_pages: Mapping[str, Sequence[int]]) -> None:
        """Computes the rows by the same calls in the same order as the first shard (see step/runner.py)."""
        model, lora = self._backend.model, self._backend.lora
        batch = build_batch(rows, adapter_pages, self._backend.attention, lora, self._backend.send)
        hidden = model.forward(batch)
        if len(batch.logits_at):
            model.compute_logits(hidden[batch.logits_at], batch.logits_lora)
        for index, part in scored_slices(rows):
            scored = hidden[part]
            model.compute_logits(scored, plan_logits([(rows[index].adapters, len(scored))], adapter_pages, lora))


def start(channel: Channel[ToShard], meeting: Meeting) -> ShardLoop | None:
    """Loads the model of the first message and joins the other shards; returns None, and sends StartFailed, if that
    fails."""
    orders = _orders(channel)
    first = next(orders)
    if not isinstance(first, StartShard):
        raise RuntimeError("the first message is not StartShard")
    try:
        assembly = plan_shard(first.config, Path(first.model), first.index).load()
        channel.send(ShardLoaded())
        group = assembly.connect(meeting)
        second = next(orders)
        if not isinstance(second, BuildShard):
            raise RuntimeError("the second message is not BuildShard")
        executor = assembly.build(second.num_pages, group)
    except ChannelClosed:
        raise
    except Exception as error:
        is_ours = isinstance(error, EngineStartError)  # its text is complete without the name of its type
        channel.send(StartFailed(str(error) if is_ours else f"{type(error).__name__}: {error}"))
        return None
    channel.send(ShardReady())
    return ShardLoop(channel, assembly.plan.shard, executor)


def _orders(channel: Channel[ToShard]) -> Iterator[ToShard]:
    """Yields the messages one by one, though several may arrive together."""
    while True:
        yield from channel.receive(wait=True)


def main() -> None:
    """Arguments: how to write the log; the descriptors of the channel's two sockets, of the lifeline, and of the
    meeting's file; then the meeting's name."""
    log, *sockets, lifeline, meeting_file, meeting_name = sys.argv[1:]
    hang_on(int(lifeline))
    set_up_as_told(log, logging.DEBUG)
    # The first shard decides when this process ends: it closes the channel.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel: Channel[ToShard] = open_channel(sockets, ToShard)
    try:
        loop = start(channel, Meeting(int(meeting_file), meeting_name))
        if loop is not None:
            loop.run()
    except ChannelClosed:
        pass


if __name__ == "__main__":
    main()
