"""`blora chat`: a conversation on a terminal, with a model in process or with a server.

Owns the conversation. Ctrl-C ends an answer, and Ctrl-D or /exit the program.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from ..arguments.flag_types import scaled_name
from ..errors import AdapterError, EngineStartError, EngineUnavailable, InvalidRequest, QueueFull
from . import terminal
from .chat_flags import engine_options
from .connection_flags import open_client
from .failure import fail
from .sampling_flags import given_sampling

if TYPE_CHECKING:
    from blora.proto.client import Client

    from ..llm import LLM

Uses = dict[str, float]  # name of an adapter -> scale; empty for the base model
REFUSALS = (InvalidRequest, AdapterError, QueueFull, EngineUnavailable, ValueError)
HELP = """\
/adapter NAME[=SCALE] ...   use an adapter, or the sum of several; the conversation goes on
/adapter -                  use the base model
/adapter                    list the adapters
/reset                      begin a new conversation
/help                       show this
/exit, Ctrl-D               leave; Ctrl-C ends an answer"""


class Answer(Protocol):
    """The pieces of an answer, as they come."""

    def __iter__(self) -> Iterator[str]: ...

    def stop(self) -> None:
        """Ends the answer soon; called by the handler of a signal."""


class Talk(Protocol):
    """Who answers."""

    def answer(self, conversation: list[dict[str, str]], uses: Uses) -> Answer: ...

    def adapters(self) -> list[str]: ...


class LocalAnswer:
    def __init__(self, llm: "LLM", prompt: dict[str, Any], sampling: Any, uses: Uses) -> None:
        self._llm, self._arguments = llm, (prompt, sampling, uses or None)
        self._is_stopped = False

    def __iter__(self) -> Iterator[str]:
        with self._llm.stream(*self._arguments) as rows:
            for outputs in rows:
                yield from (sample.text for output in outputs for sample in output.outputs)
                if self._is_stopped:
                    return

    def stop(self) -> None:
        self._is_stopped = True


class LocalTalk:
    def __init__(self, llm: "LLM", sampling: dict[str, Any]) -> None:
        from blora.scheduler import SamplingParams, StructuredOutputsParams

        if "structured_outputs" in sampling:
            sampling["structured_outputs"] = StructuredOutputsParams(**sampling["structured_outputs"])
        self._llm, self._sampling = llm, SamplingParams(**sampling)

    def answer(self, conversation: list[dict[str, str]], uses: Uses) -> Answer:
        return LocalAnswer(self._llm, {"messages": conversation}, self._sampling, uses)

    def adapters(self) -> list[str]:
        return [adapter.name for adapter in self._llm.list_adapters()]


class RemoteAnswer:
    def __init__(self, stream: Any) -> None:
        self._stream, self._is_stopped = stream, False

    def __iter__(self) -> Iterator[str]:
        try:
            with self._stream as samples:
                yield from (sample.text for sample in samples)
        except grpc.RpcError:
            if not self._is_stopped:
                raise

    def stop(self) -> None:
        self._is_stopped = True
        self._stream.cancel()


class RemoteTalk:
    def __init__(self, client: "Client", sampling: dict[str, Any]) -> None:
        self._client, self._sampling = client, sampling

    def answer(self, conversation: list[dict[str, str]], uses: Uses) -> Answer:
        return RemoteAnswer(self._client.generate_stream(conversation, uses or None, **self._sampling))

    def adapters(self) -> list[str]:
        return [adapter.name for adapter in self._client.list_adapters()]


class Conversation:
    def __init__(self, talk: Talk, uses: Uses, system: str | None) -> None:
        self._talk, self.uses = talk, uses
        self._beginning = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._beginning)

    def take(self, line: str) -> bool:
        """Does what a line says. Returns False at the end."""
        if line in ("/exit", "/quit"):
            return False
        if line.startswith("/"):
            print(self._obey(*line.split()))
        elif line:
            self._say(line)
        return True

    def _obey(self, command: str, *arguments: str) -> str:
        match command:
            case "/help":
                return HELP
            case "/reset":
                self.messages = list(self._beginning)
                return "a new conversation begins"
            case "/adapter" if arguments:
                return self._switch(arguments)
            case "/adapter":
                return "\n".join(self._names()) or "no adapter is loaded"
        return f"{command} is no command; /help lists them"

    def _names(self) -> list[str]:
        return [f"{'*' if name in self.uses else ' '} {name}" for name in self._talk.adapters()]

    def _switch(self, arguments: tuple[str, ...]) -> str:
        try:
            uses = {} if arguments == ("-",) else dict(map(scaled_name, arguments))
        except argparse.ArgumentTypeError as error:
            return str(error)
        known = self._talk.adapters()
        if unknown := [name for name in uses if name.partition("@")[0] not in known]:
            return f"{unknown[0]!r} is not loaded; loaded: {', '.join(known) or 'none'}"
        self.uses = uses
        return f"{' + '.join(uses) or 'the base model'} answers from now on"

    def _say(self, line: str) -> None:
        """Prints the answer as it comes. A line that got none is no part of the conversation."""
        self.messages.append({"role": "user", "content": line})
        text, refusal = self._read_answer()
        print()
        if refusal:
            print(f"blora: {refusal}", file=sys.stderr)
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def _read_answer(self) -> tuple[str, str]:
        """Returns the answer so far, and what ended it before its time, or ""."""
        pieces: list[str] = []
        try:
            answer = self._talk.answer(self.messages, self.uses)
            with interruptible(answer.stop):
                for piece in answer:
                    pieces.append(piece)
                    print(piece, end="", flush=True)
        except grpc.RpcError as error:
            return "".join(pieces), f"{error.code().name}: {error.details()}"
        except REFUSALS as error:
            return "".join(pieces), str(error)
        return "".join(pieces), ""


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Has Ctrl-C call `stop`; a KeyboardInterrupt in the middle of a step would leave the engine with half of it."""

    def handle(_: int, __: FrameType | None) -> None:
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if (args.address is None) == (args.model is None):
        parser.error("give MODEL for a model in process, or --address for a server")
    if args.address is not None:
        return terminal.guarded(lambda: _talk_to_server(args))
    return terminal.guarded(lambda: _talk_in_process(args))


def _talk_to_server(args: argparse.Namespace) -> int:
    with open_client(args, args.address, tenant=args.tenant) as client:
        return _converse(RemoteTalk(client, given_sampling(args)), args)


def _talk_in_process(args: argparse.Namespace) -> int:
    from ..llm import LLM

    options = {name: getattr(args, name) for name in engine_options() if getattr(args, name) is not None}
    try:
        llm = LLM(args.model, adapters=dict(args.adapter), **options)
    except (EngineStartError, AdapterError) as error:
        return fail(str(error))
    with closing(llm):
        return _converse(LocalTalk(llm, given_sampling(args)), args)


def _converse(talk: Talk, args: argparse.Namespace) -> int:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  # gives `input` a history
        print("/help lists the commands", flush=True)
    conversation = Conversation(talk, {args.use: 1.0} if args.use else {}, args.system)
    while True:
        try:
            if not conversation.take(input("> " if is_terminal else "").strip()):
                return 0
        except EOFError:
            return 0
        except KeyboardInterrupt:
            print("\n/exit or Ctrl-D leaves")
