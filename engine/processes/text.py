"""The text process: renders conversations and tokenises texts, where that takes long or a stranger's template runs.

A template is a stranger's program. The sandbox bounds its time and its memory; where that fails, the kernel ends this
process, and no other request has waited for it. Imports no torch.
"""

import contextlib
import signal
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from ..errors import InvalidRequest
from ..facts import Facts
from ..ipc.channel import Channel, ChannelClosed, open_channel
from ..ipc.messages import FromText, StartText, TextRead, TextRefused, ToText
from ..logs import set_up_as_told
from ..text.text_work import TextOrder, tokenize, tokenizer_of
from ..text.tokenizer import Tokenizer, load_tokenizer
from .background import go_to_background
from .limits import limit_memory, limit_time

MAX_SECONDS = 20  # CPU time of one work; the sandbox stops a template much earlier
MAX_BYTES = 2 << 30  # of this process, beside what it has when it begins
MAX_TOKENIZERS = 64  # of adapters, kept


class TextReader:
    """Does the work for one model."""

    def __init__(self, model: Tokenizer, facts: Facts) -> None:
        self._facts = facts
        self._tokenizer_of = lru_cache(MAX_TOKENIZERS)(partial(tokenizer_of, base=model))

    def read(self, order: TextOrder) -> FromText:
        try:
            return TextRead(tokenize(order.work, self._tokenizer_of(order.text), self._facts))
        except InvalidRequest as error:
            return TextRefused(error.field, error.reason)


def serve(channel: Channel[ToText], begin: Callable[[StartText], TextReader]) -> None:
    reader: TextReader | None = None
    while True:
        for order in channel.receive(wait=True):
            if isinstance(order, StartText):
                reader = begin(order)
            elif reader is not None:
                limit_time(MAX_SECONDS)
                channel.send(reader.read(order.order))


def begin(start: StartText) -> TextReader:
    """Loads the model's tokenizer, without limits: the model is trusted."""
    go_to_background(start.niceness)
    tokenizer = load_tokenizer(Path(start.model))
    tokenizer.encode("")  # the library starts its threads, which take address space
    limit_memory(MAX_BYTES)
    return TextReader(tokenizer, start.facts)


def main() -> None:
    # The front end decides when this process ends: it closes the channel.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    set_up_as_told(sys.argv[1])
    with contextlib.suppress(ChannelClosed):
        serve(open_channel(sys.argv[2:], ToText), begin)


if __name__ == "__main__":
    main()
