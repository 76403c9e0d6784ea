"""The grammar process: finds out whether what requests ask of their texts is a grammar, and what it costs.

A grammar is a stranger's program. It is compiled here first, and some ways through it are tried; the kernel ends this
process over one that takes too long or too much memory. What passes is known to compile in the engine, where no kernel
could end a thread. Imports no torch.
"""

import contextlib
import random
import signal
import sys
from pathlib import Path

from ..errors import InvalidRequest
from ..grammar.compiled import Grammar
from ..grammar.library_text import library_text
from ..grammar.masks import allowed_tokens
from ..grammar.source import GrammarSource, refused
from ..grammar.vocabulary import Vocabulary
from ..ipc.channel import Channel, ChannelClosed, open_channel
from ..ipc.messages import CheckGrammar, FromGrammar, GrammarAccepted, GrammarRefused, StartGrammars, ToGrammar
from ..logs import set_up_as_told
from ..text.tokenizer import load_tokenizer
from .background import go_to_background
from .limits import limit_memory, limit_time, resident_bytes

MAX_SECONDS = 2  # of a core, for one grammar
MAX_BYTES = 1 << 30  # of this process, beside what it has when it begins
NUM_WAYS, MAX_TRIED = 4, 24  # ways that are tried, and tokens of each


class GrammarChecker:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def check(self, source: GrammarSource) -> FromGrammar:
        before = resident_bytes()
        try:
            text = library_text(source)
            grammar = Grammar(text, self._vocabulary)
            for way in range(NUM_WAYS):
                self._try(grammar, source, random.Random(way))
        except InvalidRequest as error:
            return GrammarRefused(error.field, error.reason)
        return GrammarAccepted(text, max(resident_bytes() - before, 0))

    def _try(self, grammar: Grammar, source: GrammarSource, draws: random.Random) -> None:
        """Goes a random way. Raises InvalidRequest for a grammar that becomes too complex on it."""
        matcher = grammar.begin()
        for _ in range(MAX_TRIED):
            tokens = allowed_tokens(matcher)
            if matcher.error is not None:
                raise refused(source.kind.value, f"is too complex: {matcher.reason}")
            if not len(tokens) or matcher.take(int(draws.choice(tokens))):
                return


def serve(channel: Channel[ToGrammar]) -> None:
    checker: GrammarChecker | None = None
    while True:
        for order in channel.receive(wait=True):
            match order:
                case StartGrammars():
                    checker = begin(order)
                case CheckGrammar() if checker is not None:
                    limit_time(MAX_SECONDS)
                    channel.send(checker.check(order.source))


def begin(start: StartGrammars) -> GrammarChecker:
    """Loads the model's tokenizer, without limits: the model is trusted."""
    go_to_background(start.niceness)
    checker = GrammarChecker(Vocabulary(load_tokenizer(Path(start.model)), start.vocab_size))
    limit_memory(MAX_BYTES)
    return checker


def main() -> None:
    # The front end decides when this process ends: it closes the channel.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    set_up_as_told(sys.argv[1])
    with contextlib.suppress(ChannelClosed):
        serve(open_channel(sys.argv[2:], ToGrammar))


if __name__ == "__main__":
    main()
