"""The channel: every message arrives unchanged, in pieces or not, and a closed peer raises ChannelClosed."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, get_args

import msgspec
import pytest

from blora.adapters import AdapterReport, AdapterText, AddedToken, ImageTable, Layout, TargetModule
from blora.adapters.image import Chunk, PackedModule
from blora.adapters.report import ModuleReport
from blora.engine.config import EngineConfig
from blora.engine.facts import Facts
from blora.engine.grammar.grammars import GrammarOrder
from blora.engine.grammar.source import GrammarSource, Kind
from blora.engine.ipc import messages as frames
from blora.engine.ipc.channel import (
    LENGTH,
    MAX_FRAME_BYTES,
    Channel,
    ChannelClosed,
    Child,
    receive_descriptor,
    start_child,
)
from blora.engine.outputs import AdapterState, EngineLoad
from blora.engine.text.chat import Chat
from blora.engine.text.text_work import TextOrder, TextTokens, TextWork
from blora.engine.text.wire_chat import WireChat
from blora.scheduler import (
    CacheCounts,
    FinishReason,
    History,
    LogitEdits,
    PageCopy,
    Request,
    RequestOutputKind,
    RowUpdate,
    SamplingParams,
    StepCosts,
    TokenLogprob,
)

SAMPLING = SamplingParams(
    n=3,
    temperature=0.7,
    top_k=-1,
    seed=2**64 - 1,
    logit_bias={7: -1.5, 0: 100.0},
    stop=["é\0", "x"],
    stop_token_ids=[1, 2],
    logprobs=0,
    output_kind=RequestOutputKind.DELTA,
)
LOGPROB = TokenLogprob((5, 6), (-0.125, -1e30), (1, 2))
PACKED = PackedModule(
    "m",
    3,
    8,
    16,
    32,
    17,
    0.1,
    ((Chunk(0, 64, 0, 2),), (Chunk(0, 1088, 0, 1),)),
    ((Chunk(1, 0, 0, 1), Chunk(2, 0, 1, 1)), (Chunk(2, 64, 0, 2),)),
)
TEXT = AdapterText((AddedToken(7, "<x>", special=True),), (("eos_token", "<x>"),), "{{ x }}")
TABLE = ImageTable("digest", "bfloat16", 3, 4096, (PACKED,), ("a warning",), invocation_tokens=(5, 6), text=TEXT)
REPORT = AdapterReport("/a", ("why",), modules=(ModuleReport("m.q_proj", 4, 0.5, 1.25),))
REQUEST = Request(
    request_id=2**62,
    prompt_token_ids=[1, 2, 3],
    sampling=SAMPLING,
    max_tokens=5,
    seed=2**63,
    sample_index=2,
    eos_token_ids=frozenset({7, 9}),
    adapters=(("d1", 1.0), ("d2", -0.5)),
    activation=2,
    priority=-3,
    cache_salt=b"\xff\0",
    edits=LogitEdits(bytearray(16), bytearray(b"\xff" * 8), bytearray(4)),
    deadline=12.5,
    begin_by=13.5,
    leader=4,
    num_alone=16,
)
UPDATES = [
    RowUpdate(1, (5,), (LOGPROB,), (LOGPROB, LOGPROB), FinishReason.STOP, 5, 12, 1, 2.5, None),
    RowUpdate(2),
    RowUpdate(3, finish_reason=FinishReason.ERROR, error="why"),
]

MESSAGES: dict[type, list[Any]] = {
    frames.Start: [
        frames.Start(EngineConfig(model="m", memory=memory, seed=-1), "/models/m") for memory in (0.5, 1 << 40, "2GiB")
    ],
    frames.AddRequest: [
        frames.AddRequest.of(REQUEST),
        frames.AddRequest.of(Request(1, [0], SamplingParams(), 1, 0)),
        frames.AddRequest.of(REQUEST).after(History([1, 2, 3], 4, 5, 6, 7.5), 16),
        msgspec.structs.replace(frames.AddRequest.of(REQUEST), grammar=GrammarOrder("{}", 5, ((7, "<x>"),))),
    ],
    frames.FinishRequests: [frames.FinishRequests([]), frames.FinishRequests(list(range(1000)))],
    frames.LoadAdapter: [frames.LoadAdapter(7, TABLE)],
    frames.TakeAdapter: [frames.TakeAdapter(TABLE)],
    frames.DropImage: [frames.DropImage("digest")],
    frames.UnloadAdapter: [frames.UnloadAdapter("digest")],
    frames.PinAdapter: [frames.PinAdapter(1, "digest", True)],
    frames.WarmAdapter: [frames.WarmAdapter(1, "digest")],
    frames.ResetPrefixCache: [frames.ResetPrefixCache(2, True)],
    frames.GetState: [frames.GetState(2, ["a", "b"])],
    frames.Nudge: [frames.Nudge()],
    frames.Ready: [frames.Ready(Facts(1000, 64, 4, 12), "float32", 4096, Layout.GPU, 2)],
    frames.StartFailed: [frames.StartFailed("no memory: é")],
    frames.Updates: [
        frames.Updates(UPDATES, ["gone"], {"a": True, "b": False}),
        frames.Updates([], [], {}, StepCosts(0.5), ["loose"]),
    ],
    frames.DoneReply: [frames.DoneReply(3, False)],
    frames.CallFailed: [frames.CallFailed(3, "MemoryError")],
    frames.StateReply: [
        frames.StateReply(
            4,
            EngineLoad(5, 6, 7, CacheCounts(*range(8), 0.5), StepCosts()),
            [AdapterState(), AdapterState(True, True, 9)],
        )
    ],
    frames.ReadAdapter: [
        frames.ReadAdapter(
            "/a",
            roots,
            [TargetModule("m.q_proj", 16, 32, 3, 8)],
            "float16",
            4096,
            Layout.CPU,
            1 << 40,
            260,
            "/m",
            2,
        )
        for roots in (None, ["/r"])
    ],
    frames.AdapterRead: [frames.AdapterRead(TABLE, REPORT, "a:1:2:3")],
    frames.AdapterUnreadable: [frames.AdapterUnreadable(["r: 0", "tensor x"])],
}
MESSAGES[frames.InspectAdapter] = [frames.InspectAdapter(order) for order in MESSAGES[frames.ReadAdapter]]
MESSAGES[frames.ReadUploaded] = [
    frames.ReadUploaded(order, [("adapter_config.json", 7)], "folder") for order in MESSAGES[frames.ReadAdapter]
]
CHAT = Chat(
    messages=[{"role": "user", "content": [{"type": "text", "text": "ä"}]}], tools=[{"a": 1}], chat_template="{{ x }}"
)
WORKS = [
    TextWork(text="ä", keep_last=3, bad_words=("a", "b")),
    TextWork(chat=CHAT, is_rendered=True),
    TextWork(wire_chat=WireChat(b"\x00\xff", has_template=True)),
]
MESSAGES[frames.StartText] = [frames.StartText("/models/m", Facts(260, 64, 4, 12), 5)]
MESSAGES[frames.ReadText] = [
    frames.ReadText(TextOrder(work=work, text=text, runs_strange_template=False))
    for work in WORKS
    for text in (None, TEXT)
]
MESSAGES[frames.TextRead] = [frames.TextRead(TextTokens([1, 2], ((3,), (4, 5))))]
MESSAGES[frames.TextRefused] = [frames.TextRefused("messages", "is not a list")]
MESSAGES[frames.LookAt] = [frames.LookAt([]), frames.LookAt(["/adapters/a"])]
MESSAGES[frames.FoldersSeen] = [frames.FoldersSeen([]), frames.FoldersSeen(["", "a:1:2:3"])]
MESSAGES[frames.LookInto] = [frames.LookInto("/watched")]
MESSAGES[frames.FolderSeen] = [frames.FolderSeen({}), frames.FolderSeen({"a": "b:1:2:3"})]
MESSAGES[frames.AdapterInspected] = [frames.AdapterInspected(REPORT)]
MESSAGES[frames.LocateAdapter] = [frames.LocateAdapter("someone/adapter", 1 << 40)]
MESSAGES[frames.AdapterLocated] = [frames.AdapterLocated("/hub")]
MESSAGES[frames.StartShard] = [frames.StartShard(EngineConfig(model="m", tensor_parallel_size=2), "/m", 1)]
MESSAGES[frames.BuildShard] = [frames.BuildShard(64)]
MESSAGES[frames.ShardStep] = [
    frames.ShardStep([], [], {}),
    frames.ShardStep(
        [PageCopy("d1", 3, (7, 5))],
        [frames.ShardRow([5, 6], 14, [1, 2**31], (("d1", 0.5),), 1, True, 0)],
        {"d1": [7, 5]},
    ),
]
MESSAGES[frames.ForgetAdapter] = [frames.ForgetAdapter("digest")]
MESSAGES[frames.ShardLoaded] = [frames.ShardLoaded()]
MESSAGES[frames.ShardReady] = [frames.ShardReady()]
MESSAGES[frames.AdapterTaken] = [frames.AdapterTaken(), frames.AdapterTaken("MemoryError")]
MESSAGES[frames.StartGrammars] = [frames.StartGrammars("/m", 1000, 10)]
MESSAGES[frames.CheckGrammar] = [
    frames.CheckGrammar(GrammarSource(Kind.JSON, "{}", is_compact=True, is_closed=True)),
    frames.CheckGrammar(GrammarSource(Kind.REGEX, "ä", whitespace=" ?")),
]
MESSAGES[frames.GrammarAccepted] = [frames.GrammarAccepted("{}", 5)]
MESSAGES[frames.GrammarRefused] = [frames.GrammarRefused("structured_outputs.json", "why")]
UNIONS = (
    frames.ToEngine,
    frames.FromEngine,
    frames.ToShard,
    frames.FromShard,
    frames.FromLoader,
    frames.ToLoader,
    frames.LocateAdapter,
    frames.FromDownload,
    frames.LookAt,
    frames.FoldersSeen,
    frames.ToText,
    frames.FromText,
    frames.ToGrammar,
    frames.FromGrammar,
)
CASES = [pytest.param(union, kind, id=kind.__name__) for union in UNIONS for kind in (get_args(union) or (union,))]


@pytest.fixture
def sockets() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    made: list[socket.socket] = []

    def make() -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair()
        made.extend(pair)
        return pair

    yield make
    for one in made:
        one.close()


class Pair:
    """Two channels, connected to each other."""

    def __init__(self, make: Callable[[], tuple[socket.socket, socket.socket]], incoming: Any) -> None:
        self.sockets, self.descriptors = make(), make()
        self.left, self.right = (
            Channel[Any](one, other, incoming) for one, other in zip(self.sockets, self.descriptors, strict=True)
        )

    def close_left(self) -> None:
        self.sockets[0].close()
        self.descriptors[0].close()

    def close(self) -> None:
        for channel in (self.left, self.right):
            channel.close()


@pytest.fixture
def pair(sockets: Callable[[], tuple[socket.socket, socket.socket]]) -> Iterator[Callable[[Any], Pair]]:
    made: list[Pair] = []

    def make(incoming: Any) -> Pair:
        made.append(Pair(sockets, incoming))
        return made[-1]

    yield make
    for one in made:
        one.close()


def encoded(message: Any) -> bytes:
    content = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(content)) + content


def test_every_message_of_the_schema_is_tried() -> None:
    kinds = {kind for kind in vars(frames).values() if isinstance(kind, type) and issubclass(kind, frames.Frame)}
    assert MESSAGES.keys() == kinds - {frames.Frame}
    assert {kind for union in UNIONS for kind in (get_args(union) or (union,))} == MESSAGES.keys()


@pytest.mark.parametrize(("union", "kind"), CASES)
def test_a_message_arrives_as_it_was_sent(union: Any, kind: type, pair: Callable[[Any], Pair]) -> None:
    both = pair(union)
    for message in MESSAGES[kind]:
        both.left.send(message)
        (received,) = both.right.receive(wait=True)
        assert type(received) is kind
        assert received == message


def test_a_request_arrives_as_a_request(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    both.left.send(frames.AddRequest.of(REQUEST))
    received = both.right.receive(wait=True)[0].to_request()
    for name in ("request_id", "prompt_token_ids", "sampling", "seed", "adapters", "cache_salt", "stop_token_ids"):
        assert getattr(received, name) == getattr(REQUEST, name)


def test_a_message_of_another_kind_is_refused(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    both.left.send(frames.DoneReply(1, True))
    with pytest.raises(msgspec.ValidationError):
        both.right.receive(wait=True)


def test_messages_come_in_order_and_all_at_once(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    sent = [frames.UnloadAdapter(str(index)) for index in range(50)]
    for message in sent:
        both.left.send(message)
    assert both.right.receive(wait=True) == sent


def test_nothing_is_waited_for_unless_asked(pair: Callable[[Any], Pair]) -> None:
    assert pair(frames.ToEngine).right.receive(wait=False) == []


def test_a_message_in_pieces_is_put_together(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    content = encoded(frames.LoadAdapter(7, TABLE))
    for index, byte in enumerate(content):
        both.sockets[0].sendall(bytes([byte]))
        received = both.right.receive(wait=False)
        assert received == ([frames.LoadAdapter(7, TABLE)] if index == len(content) - 1 else [])


def test_what_follows_a_message_is_kept_for_the_next(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    first, second = frames.UnloadAdapter("a"), frames.UnloadAdapter("b")
    content = encoded(first) + encoded(second)
    both.sockets[0].sendall(content[:-3])
    assert both.right.receive(wait=True) == [first]
    both.sockets[0].sendall(content[-3:])
    assert both.right.receive(wait=True) == [second]


def test_a_message_larger_than_the_sockets_buffer(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    message = frames.FinishRequests(list(range(1 << 20)))
    sender = threading.Thread(target=both.left.send, args=(message,))
    sender.start()
    assert both.right.receive(wait=True) == [message]
    sender.join()


def test_a_descriptor_goes_with_its_message(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    numbers = [os.memfd_create(str(index)) for index in range(3)]
    for number in numbers:
        both.left.send(frames.LoadAdapter(7, TABLE), number)
    assert len(both.right.receive(wait=True)) == 3
    received = [both.right.receive_descriptor() for _ in numbers]
    assert [os.fstat(number).st_ino for number in received] == [os.fstat(number).st_ino for number in numbers]
    assert not set(received) & set(numbers)
    for number in (*numbers, *received):
        os.close(number)


# A closed peer.


def test_receiving_from_a_closed_peer(pair: Callable[[Any], Pair]) -> None:
    for wait in (True, False):
        both = pair(frames.ToEngine)
        both.close_left()
        with pytest.raises(ChannelClosed):
            both.right.receive(wait)


def test_a_peer_that_closes_in_the_middle_of_a_message(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    both.sockets[0].sendall(encoded(frames.UnloadAdapter("a"))[:-1])
    both.close_left()
    with pytest.raises(ChannelClosed):
        both.right.receive(wait=True)


def test_a_peer_that_left_messages_unread(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    both.right.send(frames.UnloadAdapter("a"))
    both.close_left()
    with pytest.raises(ChannelClosed):
        both.right.receive(wait=True)


def test_sending_to_a_closed_peer(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    both.close_left()
    with pytest.raises(ChannelClosed):
        both.right.send(frames.UnloadAdapter("a"))
    with pytest.raises(ChannelClosed):
        both.right.send(frames.LoadAdapter(7, TABLE), both.sockets[1].fileno())


def test_no_descriptor_comes_from_a_closed_peer(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    both.close_left()
    with pytest.raises(ChannelClosed):
        both.right.receive_descriptor()


def test_no_descriptor_comes_from_a_peer_that_left_one_unread(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    both.right.send(frames.LoadAdapter(7, TABLE), both.sockets[1].fileno())
    both.close_left()
    with pytest.raises(ChannelClosed):
        both.right.receive_descriptor()


def test_a_byte_without_a_descriptor_is_no_descriptor(pair: Callable[[Any], Pair]) -> None:
    both = pair(frames.ToEngine)
    both.descriptors[0].sendall(b"\0")
    with pytest.raises(ChannelClosed):
        receive_descriptor(both.descriptors[1])


# The parent's end.


def with_child(talk: Callable[[Child[Any], socket.socket, socket.socket], Awaitable[None]]) -> None:
    """Runs talk(child, the other end of its frames, the other end of its descriptors)."""

    async def run() -> None:
        (mine, frames_end), (descriptors, descriptors_end) = socket.socketpair(), socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=mine)
        process: Any = None  # not needed here
        child = Child[Any](process, reader, writer, descriptors, msgspec.msgpack.Decoder(frames.FromEngine))
        with frames_end, descriptors_end, descriptors:
            await talk(child, frames_end, descriptors_end)
            writer.close()

    asyncio.run(asyncio.wait_for(run(), 100))


def test_the_parent_reads_messages_in_pieces() -> None:
    async def talk(child: Child[Any], frames_end: socket.socket, _: socket.socket) -> None:
        sent = MESSAGES[frames.Updates] + MESSAGES[frames.Ready]
        content = b"".join(map(encoded, sent))
        first = asyncio.ensure_future(child.receive())
        for start in range(0, len(content), 7):
            frames_end.sendall(content[start : start + 7])
            await asyncio.sleep(0)
        assert [await first, *[await child.receive() for _ in sent[1:]]] == sent

    with_child(talk)


def test_the_parent_and_the_child_understand_each_other() -> None:
    async def talk(child: Child[Any], frames_end: socket.socket, descriptors_end: socket.socket) -> None:
        channel = Channel[Any](frames_end, descriptors_end, frames.ToEngine)
        number = os.memfd_create("test")
        child.descriptors.setblocking(False)
        await child.send_with(frames.LoadAdapter(7, TABLE), number)
        await child.writer.drain()
        assert channel.receive(wait=True) == [frames.LoadAdapter(7, TABLE)]
        received = channel.receive_descriptor()
        assert os.fstat(received).st_ino == os.fstat(number).st_ino
        channel.send(frames.DoneReply(1, True), received)
        assert await child.receive() == frames.DoneReply(1, True)
        back = child.receive_descriptor()
        for one in (number, received, back):
            os.close(one)
        channel.close()

    with_child(talk)


@pytest.mark.parametrize(
    "content", [b"", b"\x05", encoded(frames.DoneReply(1, True))[:-1], LENGTH.pack(MAX_FRAME_BYTES + 1) + b"x" * 10]
)
def test_the_parent_is_told_of_a_child_that_is_gone_or_mad(content: bytes) -> None:
    async def talk(child: Child[Any], frames_end: socket.socket, _: socket.socket) -> None:
        frames_end.sendall(content)
        frames_end.close()
        with pytest.raises(ChannelClosed):
            await child.receive()

    with_child(talk)


def test_the_parent_cannot_send_once_it_has_closed() -> None:
    async def talk(child: Child[Any], frames_end: socket.socket, descriptors_end: socket.socket) -> None:
        descriptors_end.close()
        with pytest.raises(ChannelClosed):
            await child.send_with(frames.LoadAdapter(7, TABLE), frames_end.fileno())
        child.writer.close()
        with pytest.raises(ChannelClosed):
            child.send(frames.UnloadAdapter("a"))

    with_child(talk)


def test_a_child_is_killed_when_whoever_waits_for_its_end_is_cancelled() -> None:
    async def body() -> int | None:
        child = await start_child("blora.engine.processes.lookout", Any)
        os.kill(child.process.pid, signal.SIGSTOP)  # it will not end by itself
        stop = asyncio.create_task(child.stop(3600))
        await asyncio.sleep(0.05)
        stop.cancel()
        return await child.process.wait()

    assert asyncio.run(asyncio.wait_for(body(), 100)) == -signal.SIGKILL
