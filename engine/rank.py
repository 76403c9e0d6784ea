"""The process of a rank that is not the first: computes every step on its shard of the model. Decides nothing.

It ends when its channel closes, and when a step fails: the first rank sees that at the collective where they meet.
"""

import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from blora.adapters import ImageTable

from .assembly import Parts, plan_shard
from .channel import Channel, ChannelClosed, open_channel
from .errors import EngineStartError
from .frames import (
    DropImage,
    ForgetAdapter,
    LoadAdapter,
    RankLoaded,
    RankReady,
    RankRow,
    RankStep,
    StartFailed,
    StartRank,
    ToRank,
)
from .inputs import build_batch, plan_logits, scored_slices
from .model.shard import Shard
from .sealed_memory import map_sealed

logger = logging.getLogger(__name__)


class RankLoop:
    def __init__(self, channel: Channel[ToRank], shard: Shard, parts: Parts) -> None:
        self._channel = channel
        self._shard = shard
        self._backend = parts.backend
        self._pool = parts.adapters
        self._copies = parts.copies

    def run(self) -> None:
        """Runs until the channel closes."""
        while True:
            for message in self._channel.receive(wait=True):
                self._handle(message)

    def _handle(self, message: ToRank) -> None:
        match message:
            case RankStep():
                self._step(message)
            case LoadAdapter(table):
                self._load(table, self._channel.receive_descriptor())
            case DropImage(digest):
                self._pool.drop_image(digest)
            case ForgetAdapter(digest):
                self._pool.remove(digest)
            case StartRank():
                raise RuntimeError("the rank is started already")

    def _load(self, table: ImageTable, descriptor: int) -> None:
        """What is not its own of the image is mapped and never read."""
        image = torch.from_numpy(map_sealed(descriptor, table.num_bytes))
        shards = image.view(table.num_shards, table.num_pages, table.page_bytes)
        self._pool.add(table.of_shard(self._shard.rank), shards[self._shard.rank])

    @torch.inference_mode()
    def _step(self, step: RankStep) -> None:
        self._copies.begin(step)
        if step.rows:
            self._compute(step.rows, step.adapter_pages)
        self._copies.go_on(is_waited_for=False)  # nobody reads tokens here
        self._copies.finish()

    def _compute(self, rows: Sequence[RankRow], adapter_pages: Mapping[str, Sequence[int]]) -> None:
        """The same calls in the same order as in the first rank (see runner.py)."""
        model, lora = self._backend.model, self._backend.lora
        batch = build_batch(rows, adapter_pages, self._backend.attention, lora, self._backend.send)
        hidden = model.forward(batch)
        if len(batch.logits_at):
            model.compute_logits(hidden[batch.logits_at], batch.logits_lora)
        for index, part in scored_slices(rows):
            scored = hidden[part]
            model.compute_logits(scored, plan_logits([(rows[index].adapters, len(scored))], adapter_pages, lora))


def start(channel: Channel[ToRank]) -> RankLoop | None:
    """Loads what the first message asks for and joins the other ranks; None when it cannot be loaded."""
    first, *rest = channel.receive(wait=True)
    if not isinstance(first, StartRank) or rest:
        raise RuntimeError("the first message is not StartRank")
    try:
        assembly = plan_shard(first.config, Path(first.model), first.rank).load()
        channel.send(RankLoaded())
        parts = assembly.build(first.num_pages, assembly.connect(Path(first.store)))
    except ChannelClosed:
        raise
    except Exception as error:
        is_ours = isinstance(error, EngineStartError)  # and says all there is to say
        channel.send(StartFailed(str(error) if is_ours else f"{type(error).__name__}: {error}"))
        return None
    channel.send(RankReady())
    return RankLoop(channel, assembly.plan.shard, parts)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(asctime)s %(name)s: %(message)s")
    # The first rank decides when this process ends: it closes the channel.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel: Channel[ToRank] = open_channel(sys.argv[1:], ToRank)
    try:
        loop = start(channel)
        if loop is not None:
            loop.run()
    except ChannelClosed:
        pass


if __name__ == "__main__":
    main()
