"""The adapter download: a child process that brings one adapter from the hub into the hub's own cache, and ends.

It is no part of the loader, which all other adapters wait for, and can be killed at any time: what has come stays in
the cache and is not asked for again.
"""

import contextlib
import resource
import signal
import sys

from blora.adapters import AdapterRejected

from ..adapter_store.source import resolve_adapter
from ..ipc.channel import ChannelClosed, open_channel
from ..ipc.messages import AdapterLocated, AdapterUnreadable, LocateAdapter
from .background import go_to_background


def locate(order: LocateAdapter) -> AdapterLocated | AdapterUnreadable:
    # Of what a stranger has put onto the hub no more than could be loaded: writing further is an error.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (order.max_file_bytes, hard))
    try:
        return AdapterLocated(str(resolve_adapter(order.path)))
    except AdapterRejected as error:
        return AdapterUnreadable(list(error.problems))
    except Exception as error:  # the hub's client fails in many ways, in native code too
        return AdapterUnreadable([f"cannot be had from the hub: {type(error).__name__}: {error}"])


def main() -> None:
    go_to_background()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever is asked to end need not finish a download
    channel = open_channel(sys.argv[1:], LocateAdapter)
    with contextlib.suppress(ChannelClosed):
        for order in channel.receive(wait=True):
            channel.send(locate(order))


if __name__ == "__main__":
    main()
