"""The lookout: a child process that asks the file system whether the files of adapters have changed.

It is apart from the loader, because requests wait for it: it runs at the usual priority and reads no adapter. A slow
disk holds it up, and not the front end.
"""

import contextlib
import signal
import sys
from pathlib import Path

from blora.adapters.peft.fingerprint import fingerprint

from ..ipc.channel import ChannelClosed, open_channel
from ..ipc.messages import FoldersSeen, LookAt
from ..logs import set_up_as_told


def main() -> None:
    # The front end decides when this process ends: it closes the channel.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    set_up_as_told(sys.argv[1])
    channel = open_channel(sys.argv[2:], LookAt)
    with contextlib.suppress(ChannelClosed):
        while True:
            for order in channel.receive(wait=True):
                channel.send(FoldersSeen([fingerprint(Path(folder)) for folder in order.folders]))


if __name__ == "__main__":
    main()
