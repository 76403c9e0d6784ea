"""The adapter download: a child process that brings one adapter from the hub into the hub's own cache, and ends.

It is apart from the loader, because all other adapters wait for that. It can be killed at any time: downloaded files
stay in the cache and are not downloaded again.
"""

import contextlib
import resource
import signal
import sys

from blora.adapters import AdapterRejected

from ..adapter_store.source import resolve_adapter
from ..ipc.channel import ChannelClosed, open_channel
from ..ipc.messages import AdapterLocated, AdapterUnreadable, LocateAdapter
from ..logs import set_up_as_told
from .background import go_to_background


def locate(order: LocateAdapter) -> AdapterLocated | AdapterUnreadable:
    # A file on the hub is untrusted: writing more bytes of it than could be loaded is an error.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (order.max_file_bytes, hard))
    try:
        return AdapterLocated(str(resolve_adapter(order.path)))
    except AdapterRejected as error:
        return AdapterUnreadable(list(error.problems))
    except Exception as error:  # the hub's client fails in many ways, in native code too
        return AdapterUnreadable([f"cannot be downloaded from the hub: {type(error).__name__}: {error}"])


def main() -> None:
    go_to_background()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a process asked to end need not finish its download
    set_up_as_told(sys.argv[1])
    channel = open_channel(sys.argv[2:], LocateAdapter)
    with contextlib.suppress(ChannelClosed):
        for order in channel.receive(wait=True):
            channel.send(locate(order))


if __name__ == "__main__":
    main()
