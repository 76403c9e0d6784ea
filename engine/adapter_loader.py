"""The adapter loader: a child process that reads, checks and packs adapters at the lowest priority.

A hostile or slow file can hurt only this process, and no time of the engine's or the front end's goes into reading.
Imports no torch.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

from blora.adapters import AdapterRejected, AdapterTooLarge, pack, read_checkpoint

from .adapter_source import resolve_adapter
from .channel import Channel, ChannelClosed, open_channel
from .frames import AdapterRead, AdapterUnreadable, ReadAdapter
from .sealed_memory import seal


def serve(channel: Channel[ReadAdapter]) -> None:
    while True:
        for order in channel.receive(wait=True):
            _answer(channel, order)


def _answer(channel: Channel[ReadAdapter], order: ReadAdapter) -> None:
    roots = None if order.roots is None else [Path(root) for root in order.roots]
    try:
        # A hub id is only looked for where any place is allowed.
        folder = resolve_adapter(order.path) if roots is None else Path(order.path)
        checkpoint = read_checkpoint(folder, order.targets, roots)
        image = pack(checkpoint, order.dtype, order.page_bytes)
    except AdapterRejected as error:
        channel.send(AdapterUnreadable(list(error.problems)))
        return
    except AdapterTooLarge as error:
        channel.send(AdapterUnreadable([str(error)]))
        return
    descriptor = seal(image.pages)
    channel.send(AdapterRead(image.table), descriptor)
    os.close(descriptor)


def main() -> None:
    os.nice(19)
    # The front end decides when this process ends: it closes the channel.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ChannelClosed):
        serve(open_channel(sys.argv[1:], ReadAdapter))


if __name__ == "__main__":
    main()
