"""Errors inside the engine process cost the request, the adapter or the call that they come over, and nothing else. An
error that costs more ends the loop, and the logbook names what the engine was at."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blora.adapters import AdapterImage, pack, read_checkpoint
from blora.engine import EngineConfig
from blora.engine.errors import EngineBroken
from blora.engine.ipc.logbook import Activity, Entry
from blora.engine.ipc.messages import (
    AddRequest,
    CallFailed,
    DoneReply,
    FinishRequests,
    GetState,
    LoadAdapter,
    PinAdapter,
    Ready,
    Start,
    StateReply,
    UnloadAdapter,
    Updates,
    WarmAdapter,
)
from blora.engine.ipc.sealed_memory import seal
from blora.engine.model.targets import adapter_targets
from blora.engine.processes import engine as engine_process
from blora.engine.processes.engine import EngineLoop
from blora.engine.startup.start import StartedEngine, start_engine
from blora.scheduler import FinishReason, Request, RowUpdate, SamplingParams, Step

NUM_TOKENS = 3
PROMPT = [5, 6, 7, 8, 9]
ERRORS = pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyError], ids=lambda error: error.__name__)
Break = Callable[..., None]


class FakeChannel:
    def __init__(self) -> None:
        self.messages: deque[Any] = deque()
        self.descriptors: deque[int] = deque()
        self.sent: list[Any] = []

    def receive(self, wait: bool) -> list[Any]:
        assert self.messages or not wait, "the engine waits for ever"
        messages, self.messages = list(self.messages), deque()
        return messages

    def receive_descriptor(self) -> int:
        return self.descriptors.popleft()

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def wake_with(self, _: object) -> None:
        raise AssertionError("there are no shards")


class World:
    """A real core under a loop whose channel is a list."""

    def __init__(self, engine: StartedEngine, image: AdapterImage) -> None:
        self.core, self.image, self.digest = engine.core, image, image.table.digest
        self.channel = FakeChannel()
        self.loop = EngineLoop(self.channel, engine.core, engine.shards)  # type: ignore[arg-type]
        self.load()

    def give(self, *messages: Any) -> list[Any]:
        """Gives messages to the loop and runs it until it has no work. Returns what it sent."""
        self.channel.messages.extend(messages)
        self.channel.sent.clear()
        while self.channel.messages or self.core.has_work:
            self.loop.turn()
        return list(self.channel.sent)

    def load(self, **changes: Any) -> list[Any]:
        self.channel.descriptors.append(seal(self.image.pages))
        return self.give(LoadAdapter(1, replace(self.image.table, **changes)))

    def ask(self, request_id: int, adapter: str | None = None) -> AddRequest:
        sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        adapters = () if adapter is None else ((adapter, 1.0),)
        return AddRequest.of(Request(request_id, [request_id, *PROMPT], sampling, NUM_TOKENS, 0, adapters=adapters))

    def ends(self, sent: list[Any]) -> dict[int, RowUpdate]:
        """The last update of each request."""
        return {row.request_id: row for message in sent if isinstance(message, Updates) for row in message.rows}

    def check_sound(self) -> None:
        self.core.check_integrity()
        ends = self.ends(self.give(self.ask(90), self.ask(91, self.digest)))
        assert [ends[request_id].finish_reason for request_id in (90, 91)] == [FinishReason.LENGTH] * 2
        self.core.check_idle()

    def end_all(self, *request_ids: int) -> None:
        """After an error that ends the real process."""
        for request_id in request_ids:
            self.core.finish(request_id)
        self.core.is_failing = False
        self.check_sound()


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> StartedEngine:
    config = EngineConfig(model=str(tiny_model), memory="2MB", block_size=4, backend="reference", threads=1)
    return start_engine(config, tiny_model)


@pytest.fixture(scope="module")
def image(engine: StartedEngine, tiny_adapters: dict[str, Path]) -> AdapterImage:
    checkpoint = read_checkpoint(tiny_adapters["r8"], adapter_targets(engine.model_config), max_elements=1 << 20)
    return pack(checkpoint, engine.dtype, engine.page_bytes, engine.layout, engine.cuts)


@pytest.fixture
def world(engine: StartedEngine, image: AdapterImage) -> Iterator[World]:
    world = World(engine, image)
    yield world
    world.check_sound()
    world.give(UnloadAdapter(world.digest))


def raising(error: type[Exception], when: Callable[..., bool] = lambda *_: True, times: int = 1) -> Callable[..., Any]:
    """A wrapper of a method that raises the error at the first `times` calls that `when` says."""
    left = [times]

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if left[0] and when(*args):
                left[0] -= 1
                raise error("injected")
            return method(*args, **kwargs)

        return run

    return wrap


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Break:
    def inject(owner: Any, name: str, wrap: Callable[..., Any]) -> None:
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))

    return inject


def concerns(request_id: int) -> Callable[[Step], bool]:
    return lambda step: any(row.request_id == request_id for row in step.rows)


@ERRORS
@pytest.mark.parametrize("place", ["add", "push"])
def test_a_request_that_cannot_be_accepted_costs_nobody_else(
    world: World, inject: Break, error: type[Exception], place: str
) -> None:
    owner = world.core.scheduler if place == "add" else world.core.scheduler._waiting
    inject(owner, place, raising(error, lambda request: request.request_id == 2))
    ends = world.ends(world.give(world.ask(1), world.ask(2, world.digest), world.ask(3, world.digest)))
    assert [ends[index].finish_reason for index in (1, 2, 3)] == [
        FinishReason.LENGTH,
        FinishReason.ERROR,
        FinishReason.LENGTH,
    ]
    assert ends[2].error == engine_process.NOT_ACCEPTED


def test_a_request_for_an_adapter_that_the_engine_lacks_fails_alone(world: World) -> None:
    ends = world.ends(world.give(world.ask(1), world.ask(2, "unknown")))
    assert (ends[1].finish_reason, ends[2].error) == (FinishReason.LENGTH, engine_process.NOT_ACCEPTED)


@ERRORS
@pytest.mark.parametrize("place", ["map", "pool", "register"])
@pytest.mark.parametrize("is_known", [False, True])
def test_an_adapter_that_cannot_be_registered_costs_its_load(
    world: World, inject: Break, error: type[Exception], place: str, is_known: bool
) -> None:
    if not is_known:
        world.give(UnloadAdapter(world.digest))
    owner, name = {
        "map": (engine_process, "map_sealed"),
        "pool": (world.core._pool, "add"),
        "register": (world.core._residency, "register"),
    }[place]
    inject(owner, name, raising(error))
    assert CallFailed(1, error.__name__) in world.load()
    assert (world.digest in world.core.images()) is is_known
    assert world.load() == [DoneReply(1, True)]


def test_a_table_that_does_not_fit_costs_its_load(world: World) -> None:
    world.give(UnloadAdapter(world.digest))
    table = world.image.table
    for changes in ({"page_bytes": 2 * table.page_bytes}, {"num_pages": table.num_pages + 1}, {"dtype": "float64"}):
        assert any(isinstance(message, CallFailed) for message in world.load(**changes))
    assert world.load() == [DoneReply(1, True)]


@ERRORS
def test_a_copy_that_fails_costs_the_requests_that_wait_for_it(
    world: World, inject: Break, error: type[Exception]
) -> None:
    inject(world.core._pool._copier, "copy", raising(error))
    ends = world.ends(world.give(world.ask(1), world.ask(2, world.digest)))
    assert ends[1].finish_reason is FinishReason.LENGTH
    assert ends[2].finish_reason is FinishReason.ERROR and "could not be copied" in str(ends[2].error)
    assert world.ends(world.give(world.ask(3, world.digest)))[3].finish_reason is FinishReason.LENGTH


def test_a_pin_whose_copy_fails_ends_and_is_told(world: World, inject: Break) -> None:
    inject(world.core._pool._copier, "copy", raising(RuntimeError))
    sent = world.give(PinAdapter(3, world.digest, True))
    assert sent[0] == DoneReply(3, True)
    assert [message.unpinned for message in sent if isinstance(message, Updates)] == [[world.digest]]
    assert not world.core.adapter_state(world.digest).is_pinned


@ERRORS
def test_a_row_that_cannot_be_computed_fails_alone(world: World, inject: Break, error: type[Exception]) -> None:
    inject(world.core._runner, "execute", raising(error, concerns(2), times=100))
    ends = world.ends(world.give(world.ask(1), world.ask(2), world.ask(3, world.digest)))
    assert [index for index, end in ends.items() if end.finish_reason is FinishReason.ERROR] == [2]
    assert ends[1].finish_reason is ends[3].finish_reason is FinishReason.LENGTH


def test_an_error_that_does_not_come_back_costs_nobody(world: World, inject: Break) -> None:
    inject(world.core._runner, "execute", raising(RuntimeError))
    ends = world.ends(world.give(world.ask(1), world.ask(2)))
    assert ends[1].finish_reason is ends[2].finish_reason is FinishReason.LENGTH


def test_errors_over_all_rows_end_the_engine_before_anybody_hears_of_them(world: World, inject: Break) -> None:
    inject(world.core._runner, "execute", raising(RuntimeError, times=3))
    with pytest.raises(EngineBroken):
        world.give(world.ask(1), world.ask(2))
    assert not world.channel.sent
    assert world.core.logbook.entry() == Entry(Activity.EXECUTING, (1, 2))
    world.end_all(1, 2)


def test_errors_over_all_rows_of_one_adapter_are_theirs(world: World, inject: Break) -> None:
    inject(world.core._runner, "execute", raising(RuntimeError, times=3))
    ends = world.ends(world.give(world.ask(1, world.digest), world.ask(2, world.digest)))
    assert ends[1].finish_reason is ends[2].finish_reason is FinishReason.ERROR


def test_errors_over_one_request_after_another_end_the_engine(world: World, inject: Break) -> None:
    inject(world.core._runner, "execute", raising(RuntimeError, times=3))
    for request_id in (1, 2):
        assert world.ends(world.give(world.ask(request_id)))[request_id].finish_reason is FinishReason.ERROR
    with pytest.raises(EngineBroken):
        world.give(world.ask(3))
    assert world.core.logbook.entry() == Entry(Activity.EXECUTING, (3,))
    world.end_all(3)


@ERRORS
@pytest.mark.parametrize(("place", "activity"), [("_make_room", Activity.PLANNING), ("_advance", Activity.COMMITTING)])
def test_other_errors_end_the_engine_and_are_blamed_on_whose_turn_it_was(
    world: World, inject: Break, error: type[Exception], place: str, activity: Activity
) -> None:
    inject(world.core.scheduler, place, raising(error, lambda request, *_: request.request_id == 2))
    with pytest.raises(error):
        world.give(world.ask(1), world.ask(2), world.ask(3))
    assert world.core.logbook.entry() == Entry(activity, (2,))
    world.end_all(1, 2, 3)


@ERRORS
def test_an_error_while_a_request_is_ended_accuses_nobody(world: World, inject: Break, error: type[Exception]) -> None:
    inject(world.core.scheduler, "finish", raising(error))
    with pytest.raises(error):
        world.give(FinishRequests([1]))
    assert world.core.logbook.entry() == Entry(Activity.WAITING)


@ERRORS
def test_a_call_that_fails_costs_the_call(world: World, inject: Break, error: type[Exception]) -> None:
    for name in ("adapter_state", "pin_adapter", "warm_adapter", "reset_prefix_cache"):
        inject(world.core, name, raising(error))
    calls = [GetState(2, [world.digest]), PinAdapter(3, world.digest, True), WarmAdapter(4, world.digest)]
    failed = [CallFailed(index, error.__name__) for index in (2, 3, 4)]
    assert [message for message in world.give(*calls) if isinstance(message, CallFailed)] == failed
    answers = world.give(*calls, PinAdapter(5, world.digest, False))
    assert isinstance(answers[0], StateReply) and answers[1:4] == [DoneReply(index, True) for index in (3, 4, 5)]


def test_a_call_that_leaves_the_engine_unsound_ends_it(world: World, inject: Break) -> None:
    def spoil(_: Callable[..., Any]) -> Callable[..., Any]:
        def run(digest: str) -> bool:
            world.core._residency._adapters[digest].num_users += 1
            raise RuntimeError("injected")

        return run

    inject(world.core, "pin_adapter", spoil)
    with pytest.raises(RuntimeError, match="is used 0 and 0 times"):
        world.give(PinAdapter(3, world.digest, True))
    world.core._residency._adapters[world.digest].num_users -= 1


def test_the_vocabulary_of_grammars_is_made_before_the_engine_is_ready(
    engine: StartedEngine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made beside steps, it would hold them up."""
    channel, load, num_sent = FakeChannel(), engine_process.load_tokenizer, list[int]()
    channel.messages.append(Start(EngineConfig(model=str(tiny_model)), str(tiny_model)))
    channel.descriptors.append(-1)

    def noted(path: Path) -> Any:
        num_sent.append(len(channel.sent))
        return load(path)

    monkeypatch.setattr(engine_process, "start_engine", lambda *_: engine)
    monkeypatch.setattr(engine_process, "open_logbook", lambda _: None)
    monkeypatch.setattr(engine_process, "load_tokenizer", noted)
    monkeypatch.setattr(FakeChannel, "bell", lambda _: lambda: None, raising=False)
    loop = engine_process.start(channel)  # type: ignore[arg-type]
    assert loop is not None and loop._matchers is not None
    assert loop._matchers._grammars.vocabulary.width >= 260
    assert num_sent == [0] and isinstance(channel.sent[0], Ready)


@pytest.mark.parametrize("error", [RuntimeError("why"), EngineBroken("why"), BaseException("a panic")], ids=repr)
def test_whatever_ends_the_engine_tells_the_front_end_before_the_exit(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit of a process takes a while: its channel closes before."""
    happened = list[str]()

    class FakeChannel:
        def close(self) -> None:
            happened.append("closed")

    def start(_: object) -> None:
        raise error

    monkeypatch.setattr(engine_process, "set_up_as_told", lambda *_: None)
    monkeypatch.setattr(engine_process.sys, "argv", ["engine", "text:INFO"])
    monkeypatch.setattr(engine_process, "open_channel", lambda *_: FakeChannel())
    monkeypatch.setattr(engine_process, "start", start)
    monkeypatch.setattr(engine_process.signal, "signal", lambda *_: None)
    monkeypatch.setattr(engine_process.logger, "error", lambda *_, **__: happened.append("told"))
    with pytest.raises(SystemExit):
        engine_process.main()
    assert happened == ["told", "closed"]
