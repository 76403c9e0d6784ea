"""The template process: renders conversations with chat templates that come with requests.

Such a template is a stranger's program. The sandbox bounds its time and its memory; where that fails, the kernel ends
this process, and no other request has waited for it. Imports no torch.
"""

import contextlib
import resource
import signal
import sys
from math import ceil

from ..errors import InvalidRequest
from ..ipc.channel import Channel, ChannelClosed, open_channel
from ..ipc.messages import ChatRefused, ChatRendered, FromTemplate, RenderChat
from ..text.chat_rendering import render_chat
from .background import go_to_background

MAX_SECONDS = 20  # CPU time of one conversation; the sandbox stops a template much earlier
MAX_BYTES = 2 << 30  # of this process


def serve(channel: Channel[RenderChat]) -> None:
    while True:
        for order in channel.receive(wait=True):
            limit_time()
            channel.send(render(order))


def render(order: RenderChat) -> FromTemplate:
    try:
        return ChatRendered(render_chat(order.chat, None, order.special_tokens))
    except InvalidRequest as error:
        return ChatRefused(error.field, error.reason)


def limit_time() -> None:
    """Has the kernel end this process when the next order takes too long."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, ceil(usage.ru_utime + usage.ru_stime) + MAX_SECONDS)


def limit_memory() -> None:
    _limit(resource.RLIMIT_AS, MAX_BYTES)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    go_to_background()
    limit_memory()
    # The front end decides when this process ends: it closes the channel.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ChannelClosed):
        serve(open_channel(sys.argv[1:], RenderChat))


if __name__ == "__main__":
    main()
