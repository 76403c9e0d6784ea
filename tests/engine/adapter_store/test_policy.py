"""AdapterPolicy: random operations that overlap, requests, failing reads and dying engines; every order is checked."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blora.adapters import AdapterText, ImageTable
from blora.engine.adapter_store.catalog import AdapterCatalog, NamedAdapter
from blora.engine.adapter_store.image_ledger import ImageLedger
from blora.engine.adapter_store.orders import (
    AbortRequests,
    AwaitUnloaded,
    BringBack,
    DropImage,
    GiveImage,
    GiveKeptImage,
    Immediate,
    Operation,
    Order,
    Pin,
    ReadAgain,
    Unload,
    Unpin,
    Warm,
    carry_out,
)
from blora.engine.adapter_store.policy import AdapterPolicy
from blora.engine.adapter_store.source import Source
from blora.engine.adapter_store.stages import MOVES, AdapterStages, Stage
from blora.engine.errors import AdapterNotFound, AdapterRejected, AdapterTooLarge, EngineUnavailable, InvalidRequest
from blora.engine.facts import Facts

NAMES, CONTENTS = ["a", "b"], ["1", "2", "3"]
FOLDERS = ["1", "2", "3", "shared"]  # a content has a folder of its own
FACTS = Facts(vocab_size=10, max_model_len=10, block_size=4, num_pages=10)
REFERENCES = st.builds("{}{}".format, st.sampled_from(NAMES), st.sampled_from(["", "", "@1", "@2", "@3"]))
TOKENIZER: Any = SimpleNamespace(
    chat_template=None,
    special_tokens={},
    added_token_contents=dict,
    derive=lambda *_, **__: SimpleNamespace(added_tokens=()),
)


class Cancelled(BaseException):
    """As asyncio's."""


REFUSALS = (AdapterNotFound, AdapterRejected, AdapterTooLarge, EngineUnavailable, InvalidRequest, Cancelled)


def table_of(digest: str) -> ImageTable:
    """Content n has n bytes, and a chat template."""
    text = AdapterText(chat_template=digest)
    return ImageTable(digest, "float32", num_pages=1, page_bytes=int(digest), modules=(), warnings=(), text=text)


class Engine:
    def __init__(self) -> None:
        self.adapters: set[str] = set()
        self.images: set[str] = set()
        self.pinned: set[str] = set()
        self.freed: deque[str] = deque()  # not yet confirmed


class Task:
    """An operation under way, as a task of an event loop: it runs on until an order takes time."""

    def __init__(
        self,
        world: "World",
        operation: Operation[Any],
        on_end: Callable[[BaseException | None], None] = lambda _: None,
        kind: str = "operation",
    ) -> None:
        """kind: or "request", which may end while its images are read, or "read"."""
        self.world, self.operation, self.on_end, self.kind = world, operation, on_end, kind
        self.order: Any = None  # the one that it waits for
        self.engine: Engine | None = None  # the one that was given GiveImage's image
        self.is_new = False  # this engine did not have it
        self.failure: BaseException | None = None  # of this order, known already
        self.digests: set[str] = set()  # of AwaitUnloaded: those that have yet to go
        self.go_on()

    def go_on(self, reply: Any = None) -> None:
        """reply: an exception is the order's failure."""
        self.order = self.failure = None
        try:
            while isinstance(order := self._next(reply), Immediate):
                reply = self.world.do_now(order)
        except StopIteration:
            self.on_end(None)
        except REFUSALS as error:
            self.on_end(error)
        else:
            self.order = order
            self.world.begin(self)

    def _next(self, reply: Any) -> Order:
        return self.operation.throw(reply) if isinstance(reply, BaseException) else self.operation.send(reply)


class Read:
    """A shared read."""

    def __init__(self) -> None:
        self.waiting: list[Task] = []
        self.has_begun = False


class Request:
    def __init__(self, name: str, digests: list[str]) -> None:
        self.name, self.digests = name, digests
        self.task: Task | None = None  # brings images back; then it is sent
        self.is_sent = False


class World(RuleBasedStateMachine):
    """What LLM and AsyncAdapters are to the policy, and a model of what has to be true."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog, self.ledger = AdapterCatalog(FACTS, 2, TOKENIZER), ImageLedger(0)
        self.policy = AdapterPolicy(self.catalog, self.ledger)
        self.engine: Engine | None = Engine()
        self.next_engine: Engine | None = None  # that is being equipped
        self.equipment: Iterator[Order] | None = None
        self.unpinned: list[str] = []  # that the engine had no room to pin, when it was equipped
        self.images: set[str] = set()
        self.folders: dict[str, str] = {}  # what they hold
        self.tasks: list[Task] = []  # those that wait
        self.reads: dict[str, Read] = {}  # in their turn: the first one runs
        self.requests: list[Request] = []

    # Orders.

    def do_now(self, order: Immediate) -> None:
        match order:
            case Unpin(digest):
                if self.engine is not None:
                    self.engine.pinned.discard(digest)
            case DropImage(digest):
                assert self.engine is not None and digest in self.images
                assert digest not in self.used() and not self.catalog.is_pinned(digest)
                self.images.remove(digest)
                self.engine.images.discard(digest)
            case Unload(digest):
                assert digest not in self.used() and not self.catalog.is_published(digest)
                self.images.discard(digest)
                if self.engine is not None:
                    self.free(self.engine, digest)
            case AbortRequests(name, digests):
                for request in [r for r in self.requests if r.name == name and digests & {*r.digests}]:
                    self.end(request)

    def free(self, engine: Engine, digest: str) -> None:
        for held in (engine.adapters, engine.images, engine.pinned):
            held.discard(digest)
        engine.freed.append(digest)

    def begin(self, task: Task) -> None:
        """A task waits for its order."""
        self.tasks.append(task)
        match task.order:
            case BringBack(digests):
                missing = self.policy.missing(digests)
                for digest in missing:
                    self.reads.setdefault(digest, Read()).waiting.append(task)
                if missing:
                    self.begin_read()
                else:
                    self.answer_reads(task, None)
            case GiveImage(table):
                task.engine = self.engine
                if self.engine is None:
                    task.failure = EngineUnavailable("there is none")
                else:
                    task.is_new = table.digest not in self.engine.adapters
                    self.engine.adapters.add(table.digest)
                    self.engine.images.add(table.digest)
            case Pin(digest) | Warm(digest):
                assert self.engine is None or digest in self.engine.images
                task.failure = EngineUnavailable("there is none") if self.engine is None else None
            case AwaitUnloaded(digests):
                task.digests = set(digests)

    def answer(self, task: Task, reply: Any = None) -> None:
        self.tasks.remove(task)
        task.go_on(reply)

    def begin_read(self) -> None:
        """Reads take turns."""
        digest = next(iter(self.reads), "")
        if digest and not self.reads[digest].has_begun:
            self.reads[digest].has_begun = True
            Task(self, self.policy.read_again(digest), partial(self.end_read, digest), kind="read")

    def end_read(self, digest: str, failure: BaseException | None) -> None:
        for task in [task for task in self.reads.pop(digest).waiting if task in self.tasks]:
            task.failure = task.failure or failure
            if not any(task in read.waiting for read in self.reads.values()):
                self.answer_reads(task, task.failure)
        self.begin_read()

    def answer_reads(self, task: Task, failure: BaseException | None) -> None:
        assert failure or task.kind == "request" or self.images.issuperset(task.order.digests)
        self.answer(task, failure)

    # Requests.

    def used(self) -> list[str]:
        return [digest for request in self.requests for digest in request.digests]

    def end(self, request: Request) -> None:
        """With the task that brings its images back."""
        self.requests.remove(request)
        for digest in request.digests:
            self.ledger.release(digest)
        if request.task is not None and request.task in self.tasks:
            self.answer(request.task, Cancelled())
        self.settle()

    def settle(self) -> None:
        for order in self.policy.settle():
            self.do_now(order)

    def send(self, request: Request, error: BaseException | None) -> None:
        if request not in self.requests:
            return  # it has ended while its adapters were read
        if error is None:
            assert self.engine is not None and self.engine.images.issuperset(request.digests)
            request.is_sent = True
        else:
            self.end(request)

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def ask(self, name: str, data: st.DataObject) -> None:
        if self.engine is not None:
            with suppress(AdapterNotFound):
                others = [other for other in NAMES if other != name and data.draw(st.booleans())]
                digests = list({self.catalog.resolve(each): None for each in (name, *others)})
                request = Request(name, digests)
                self.requests.append(request)
                for digest in digests:
                    self.ledger.use(digest)
                request.task = Task(self, bring_back(digests), partial(self.send, request), kind="request")

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end_request(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.requests)))

    # Operations.

    @initialize(max_bytes=st.sampled_from([0, 0, 2, 4]))
    def load_some(self, max_bytes: int) -> None:
        self.ledger.max_bytes = max_bytes
        self.load("a", "1", False, True)
        self.load("b", "2", False, True)

    @rule(
        name=st.sampled_from(NAMES), content=st.sampled_from(CONTENTS), is_shared=st.booleans(), is_quick=st.booleans()
    )
    def load(self, name: str, content: str, is_shared: bool, is_quick: bool) -> None:
        """From the content's own folder, or one where others lie too; given to the engine at once, or later."""
        folder = "shared" if is_shared else content
        self.folders[folder] = content
        table = self.policy.expect(folder, table_of(content))
        Task(self, self.policy.take_in(name, table, content, Source(folder, folder)))
        if is_quick and self.tasks[-1] in self.can_be_answered():
            self.answer_order(self.tasks[-1], has_room=True)

    @rule(folder=st.sampled_from(FOLDERS), content=st.sampled_from(CONTENTS))
    def overwrite(self, folder: str, content: str) -> None:
        self.folders[folder] = content

    @precondition(lambda self: self.catalog.all())
    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        names = [adapter.name for adapter in self.catalog.all()]
        versions = [(name, number) for name in names for number in self.catalog._versions_by_number(name)[0]]
        Task(self, self.policy.activate(*data.draw(st.sampled_from(versions))))

    @rule(reference=REFERENCES)
    def warm(self, reference: str) -> None:
        Task(self, self.policy.warm(reference))

    @rule(reference=REFERENCES)
    def pin(self, reference: str) -> None:
        with suppress(AdapterNotFound):
            adapter = self.catalog.named(reference)
            Task(self, self.policy.pin(reference), partial(self.end_pin, adapter))

    def end_pin(self, adapter: NamedAdapter, error: BaseException | None) -> None:
        if isinstance(error, AdapterRejected | AdapterTooLarge):
            assert not self.catalog._registry.is_pinned(adapter.name, adapter.version.number)

    @rule(reference=REFERENCES)
    def unpin(self, reference: str) -> None:
        Task(self, self.policy.unpin(reference))

    @rule(reference=REFERENCES, abort=st.booleans())
    def unload(self, reference: str, abort: bool) -> None:
        Task(self, self.policy.unload(reference, abort=abort))

    # Answers.

    def can_be_answered(self) -> list[Task]:
        """An engine takes images one after another."""
        given: dict[str, Task] = {}
        for task in self.tasks:
            if isinstance(task.order, GiveImage):
                given.setdefault(task.order.table.digest, task)
        others = [task for task in self.tasks if not isinstance(task.order, BringBack | AwaitUnloaded | GiveImage)]
        return [*given.values(), *others]

    @precondition(lambda self: self.can_be_answered())
    @rule(data=st.data(), has_room=st.booleans())
    def answer_one(self, data: st.DataObject, has_room: bool) -> None:
        self.answer_order(data.draw(st.sampled_from(self.can_be_answered())), has_room)

    def answer_order(self, task: Task, has_room: bool) -> None:
        match task.order:
            case ReadAgain(_, source) as order:
                self.answer(task, self.found(order, self.folders[source.folder]))
            case GiveImage(table, image):
                assert image == table.digest
                self.answer(task, task.failure or self.give(task, table.digest, has_room))
            case Pin(digest):
                if digest in self.unpinned:  # replies come in the order of the messages
                    self.hear_of_no_room(digest)
                if self.engine is not None and has_room and not task.failure:
                    self.engine.pinned.add(digest)
                self.answer(task, task.failure or has_room)
            case Warm():
                self.answer(task, task.failure or has_room)

    def found(self, order: ReadAgain, content: str) -> Any:
        try:
            order.check(content)
        except AdapterRejected as error:
            return error
        return content

    def give(self, task: Task, digest: str, is_taken: bool) -> BaseException | None:
        """The engine's answer. What it cannot take it has forgotten, unless it had it before."""
        assert task.engine is not None
        if is_taken:
            self.images.add(digest)
            task.engine.adapters.add(digest)
            task.engine.images.add(digest)
            return None
        if task.is_new:
            for held in (task.engine.adapters, task.engine.images):
                held.discard(digest)
        return AdapterRejected(digest, ["the engine met an error"])

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A caller goes away. Shared reads go on."""
        tasks = [task for task in self.tasks if task.kind != "read"]
        if tasks:
            self.answer(data.draw(st.sampled_from(tasks)), Cancelled())

    # The engine.

    @precondition(lambda self: self.engine is not None and self.engine.freed)
    @rule()
    def confirm(self) -> None:
        assert self.engine is not None
        self.policy.note_unloaded(self.engine.freed.popleft())

    @precondition(lambda self: self.engine is not None)
    @rule(is_it_time=st.sampled_from([False, False, True]))
    def die(self, is_it_time: bool) -> None:
        if not is_it_time:
            return
        self.engine, self.unpinned = None, []
        for task in self.tasks:
            if isinstance(task.order, Pin | Warm | GiveImage):
                task.failure = EngineUnavailable("it has ended")
        for request in list(self.requests):
            self.requests.remove(request)
            for digest in request.digests:
                self.ledger.release(digest)
        for order in self.policy.lose_engine():
            self.do_now(order)

    @precondition(lambda self: self.engine is None)
    @rule(has_room=st.booleans(), is_quick=st.sampled_from([False, False, True]))
    def restart(self, has_room: bool, is_quick: bool = True) -> None:
        """Another engine is given one image more, which takes time, or all. After the last one it runs."""
        if self.equipment is None:
            self.next_engine, self.equipment = Engine(), self.policy.equip()
        engine = self.next_engine
        assert engine is not None
        for order in self.equipment:
            match order:
                case GiveKeptImage(table):
                    assert table.digest in self.images
                    engine.adapters.add(table.digest)
                    engine.images.add(table.digest)
                    if not is_quick:
                        return
                case Unload(digest):
                    self.free(engine, digest)
                case Pin(digest):
                    assert digest in engine.images
                    if has_room:
                        engine.pinned.add(digest)
                    else:
                        self.unpinned.append(digest)
        self.engine, self.next_engine, self.equipment = engine, None, None
        for order in self.policy.meet_engine():
            self.do_now(order)

    @precondition(lambda self: self.unpinned)
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        self.hear_of_no_room(data.draw(st.sampled_from(self.unpinned)))

    def hear_of_no_room(self, digest: str) -> None:
        self.unpinned.remove(digest)
        for order in self.policy.lose_pin(digest):
            self.do_now(order)

    # What has to be true.

    @invariant()
    def has_integrity(self) -> None:
        for task in [task for task in self.tasks if isinstance(task.order, AwaitUnloaded)]:
            task.digests = {digest for digest in task.digests if self.policy.is_going(digest)}
            if not task.digests:
                self.answer(task)
        self.policy.check_integrity(self.used(), self.images)
        coming = {task.order.table.digest for task in self.tasks if isinstance(task.order, GiveImage)}
        assert self.catalog.digests() <= self.catalog._tokenizers._own.keys() <= self.catalog.digests() | coming
        if self.engine is not None:
            assert self.images <= self.engine.images
            assert all(self.engine.images.issuperset(request.digests) for request in self.requests if request.is_sent)
            assert self.engine.adapters <= self.catalog.digests() | coming
            assert all(map(self.catalog.is_pinned, self.engine.pinned))
            assert self.ledger.num_bytes <= (self.ledger.max_bytes or 0) or not any(
                map(self.can_be_dropped, self.images)
            )

    def can_be_dropped(self, digest: str) -> bool:
        is_given = any(isinstance(task.order, GiveImage) and task.order.table.digest == digest for task in self.tasks)
        is_idle = not self.ledger.is_used(digest) and not self.catalog.is_pinned(digest) and not is_given
        return is_idle and self.ledger.source_of(digest).folder == digest  # which no other content overwrites

    def teardown(self) -> None:
        """Whatever happened: when all that was begun has ended, and no name is left, nothing is left."""
        while self.engine is None:
            self.restart(True)
        for request in list(self.requests):
            self.end(request)
        for _ in range(1000):
            if tasks := self.can_be_answered():
                self.answer_order(tasks[0], has_room=True)
        for adapter in self.catalog.all():
            self.unload(adapter.name, abort=False)
        while self.engine.freed:
            self.confirm()
        self.has_integrity()
        assert not self.tasks and not self.reads and not self.images and not self.engine.adapters
        assert not self.policy.num_going and not self.catalog.digests() and not self.ledger.digests()
        assert not self.catalog._tokenizers._own and not self.policy._loads and not self.policy._holds


def bring_back(digests: list[str]) -> Operation[None]:
    yield BringBack(tuple(digests))


TestPolicy = pytest.mark.slow(World.TestCase)
TestPolicy.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize(("stage", "to"), list(product(Stage, Stage)))
def test_a_move_that_the_table_lacks_is_an_error(stage: Stage, to: Stage) -> None:
    stages = AdapterStages()
    for step in ways()[stage]:
        stages.move("x", step)
    if to in MOVES[stage]:
        stages.move("x", to)
        assert stages.of("x") is to and stages.at(*(s for s in Stage if s is not Stage.ABSENT)) == (
            [] if to is Stage.ABSENT else ["x"]
        )
    else:
        with pytest.raises(RuntimeError, match=f"adapter x is {stage.value} and cannot become {to.value}"):
            stages.move("x", to)


def ways() -> dict[Stage, list[Stage]]:
    """A way from the beginning to each stage."""
    found: dict[Stage, list[Stage]] = {Stage.ABSENT: []}
    for stage in (queue := [Stage.ABSENT]):
        for to in MOVES[stage] - found.keys():
            found[to] = [*found[stage], to]
            queue.append(to)
    return found


def test_an_operation_that_fails_hears_of_it_and_may_still_give_orders() -> None:
    done = list[Order]()

    def operation() -> Operation[str]:
        try:
            assert (yield Pin("x")) == "reply to x"
            yield Pin("y")
        except AdapterTooLarge:
            yield Unpin("x")
        return "result"

    def do(order: Order) -> Any:
        done.append(order)
        if order == Pin("y"):
            raise AdapterTooLarge("no")
        return "reply to x"

    assert carry_out(operation(), do) == "result"
    assert done == [Pin("x"), Pin("y"), Unpin("x")]
