"""AsyncRequests: the requests of AsyncLLM, from a call to its outputs: read, accepted, given to the engine, ended.

Owns the requests that are being read, and wakes their readers. It outlives the engines of its AsyncLLM, whose phase
says whether a request can begin.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from blora.scheduler import FinishReason, LogitEdits, RequestOutputKind, RowUpdate

from ..adapter_store.lifecycle import AsyncAdapters
from ..errors import DeadlineExceeded, EngineUnavailable, InvalidRequest, ReaderTooSlow
from ..events import tell
from ..front_end.calls import Call, first_deadline, first_token_deadline
from ..front_end.front_end import Checked, FrontEnd, Opened, Prepared
from ..front_end.output_processor import UserRequest
from ..front_end.resumption import Resumption
from ..front_end.shared_prompts import beginnings, num_common
from ..front_end.unread import furthest_behind
from ..grammar.grammars import GrammarOrder
from ..ipc.deadline import PASSED, Deadline
from ..ipc.engine_connection import EngineConnection
from ..ipc.grammar_client import GrammarClient
from ..ipc.messages import FinishRequests
from ..ipc.text_client import TextClients
from ..ipc.turns import Turns
from ..outputs import RequestOutput
from ..text.text_work import TextTokens

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Reader:
    """A user's request that is being read."""

    user: UserRequest
    grown: asyncio.Event  # set when there is news for the reader; the rows of a stream share it
    error: Exception | None = None  # what ended the request before its time


class AsyncRequests:
    def __init__(
        self,
        connection: EngineConnection,
        front_end: FrontEnd,
        adapters: AsyncAdapters,
        texts: TextClients,
        grammars: GrammarClient,
        check_can_begin: Callable[[], None],
        load_missing: Callable[[Sequence[Checked]], Awaitable[None]],
    ) -> None:
        """check_can_begin: raises EngineUnavailable unless a request can begin. load_missing: loads the adapters that
        calls bring paths of."""
        self._connection = connection
        self._front_end = front_end
        self._adapters = adapters
        self._texts = texts
        self._grammars = grammars
        self._check_can_begin = check_can_begin
        self._load_missing = load_missing
        self._resumption = Resumption(front_end.outputs, front_end.suspects)
        self._readers: dict[UserRequest, _Reader] = {}
        self._turns = Turns()
        self._finishing = asyncio.Event()  # set when the last unfinished request may have ended

    # A request's way.

    async def run(
        self, calls: Sequence[Call], label: str | None, kind: RequestOutputKind | None = None
    ) -> AsyncGenerator[list[RequestOutput], None]:
        """Runs calls as rows that grow together. kind: None leaves each row its own kind and label; otherwise rows are
        shown so, under their index."""
        end, first_token = first_deadline(calls), first_token_deadline(calls)
        try:
            prepared = await Deadline(end, first_token).bound(self._begin(calls, label))
        except Exception as refusal:
            self._note_refusal(refusal, calls, label)
            raise
        grown = asyncio.Event()
        readers = [_Reader(entry.user, grown) for entry in prepared]
        for reader in readers:
            self._readers[reader.user] = reader
            reader.user.output_kind = kind or reader.user.output_kind
        texts = self._front_end.outputs
        unfinished = {str(index): reader.user for index, reader in enumerate(readers)}
        submission: asyncio.Task[None] | None = None
        end_alarms = self._set_alarms(list(unfinished.values()), end, first_token)
        try:
            submission = self._submit(prepared, grown)
            while unfinished:
                await grown.wait()
                grown.clear()
                news = {index: texts.take(user) for index, user in unfinished.items()}
                unfinished = {index: user for index, user in unfinished.items() if not user.is_finished}
                self._check_in_time(readers)
                is_lost = not all(texts.is_known(user) for user in unfinished.values())
                outputs = [
                    output if kind is None else replace(output, request_id=index)
                    for index, output in news.items()
                    if output is not None
                ]
                if outputs:
                    yield outputs
                for error in [reader.error for reader in readers if reader.error is not None]:
                    raise error
                if is_lost:
                    raise EngineUnavailable("the engine ended, and no other could go on with this request")
                if submission is not None and submission.done():
                    submission.result()
        finally:
            end_alarms()
            if submission is not None:
                submission.cancel()
            for reader in readers:
                self._end(reader)

    def _check_in_time(self, readers: Iterable[_Reader]) -> None:
        if any(reader.user.is_too_late for reader in readers):
            raise DeadlineExceeded(PASSED)
        if any(reader.user.has_waited_too_long for reader in readers):
            raise self._front_end.admission.waited_too_long()

    def _set_alarms(
        self, users: Sequence[UserRequest], end: float | None, first_token: float | None
    ) -> Callable[[], None]:
        """Has requests end at their deadlines, unless the returned function is called before."""

        def end_unbegun() -> None:
            self._abort([user for user in users if not user.has_begun], FinishReason.DEADLINE)

        alarms = ExitStack()
        alarms.callback(Deadline(end).alarm(partial(self._abort, users, FinishReason.DEADLINE)))
        alarms.callback(Deadline(first_token).alarm(end_unbegun))
        return alarms.close

    def _note_refusal(self, error: Exception, calls: Sequence[Call], label: str | None) -> None:
        reason = self._front_end.observations.note_refusal(error)
        name, tenant = f"{label or ''}"[:80], f"{calls[0].tenant if calls else ''}"[:80]
        text = f"request {name!r} of tenant {tenant!r} is refused: {reason}"
        tell(logger, "refused", text, request_id=name, tenant=tenant, reason=reason)

    async def _begin(self, calls: Sequence[Call], label: str | None) -> list[Prepared]:
        """Checks and accepts calls, and loads adapters for them where they bring a path."""
        self._check_can_begin()
        looks = await self._adapters.look_at(self._front_end.folders_to_look_at(calls))
        self._check_can_begin()
        self._check_label(label)
        opened = [self._front_end.open(call, looks) for call in calls]
        self._front_end.check_queue(opened)  # before anything takes long
        checked = await self._read(opened)
        if any(call.adapters.to_load for call in checked):
            await self._load_missing(checked)
            # They may have tokenizers and templates of their own.
            checked = await self._read([self._front_end.open_again(call) for call in checked])
        await self._turns.take(sum(call.cost for call in checked))
        self._check_can_begin()  # much may have happened meanwhile
        self._check_label(label)
        prepared = [self._front_end.prepare(self._front_end.check_again(call), label) for call in checked]
        self._front_end.accept(prepared)
        return prepared

    async def share_prompts(self, texts: Iterable[str]) -> None:
        """See AsyncLLM. A conversation that the chat template refuses is none that clients can send."""
        shared = []
        for pair in chain.from_iterable(map(beginnings, texts)):
            with suppress(InvalidRequest):
                one, other = [
                    (await self._read_one(self._front_end.open(Call(prompt), {}))).token_ids for prompt in pair
                ]
                shared.append(one[: num_common(one, other)])
        self._front_end.shared_prompts.replace(shared)

    async def _read(self, calls: Sequence[Opened]) -> list[Checked]:
        """Tokenises the texts of calls, long ones in a child: here all other requests would wait for them. Then has
        their grammars checked, unless one of the calls is to be refused anyway."""
        checked = [await self._read_one(call) for call in calls]
        if not any(call.grammar for call in calls):
            return checked
        await self._turns.take(sum(call.cost for call in checked))
        self._front_end.check_ahead(checked)
        return [replace(call, grammar=await self._grammar(call.opened)) for call in checked]

    async def _read_one(self, call: Opened) -> Checked:
        edits = await self._edits(call)
        tokens = await self._tokens(call)
        await self._turns.take(call.cost_of_check(tokens))
        return self._front_end.check(call, tokens, edits)

    async def _edits(self, call: Opened) -> LogitEdits:
        pieces = call.lists.pack(call.adapters.facts)
        while True:
            try:
                await self._turns.take(next(pieces))
            except StopIteration as end:
                edits: LogitEdits = end.value
                return edits

    async def _tokens(self, call: Opened) -> TextTokens:
        tokens = self._front_end.start_reading(call)
        return tokens if isinstance(tokens, TextTokens) else await self._texts.read(tokens, call.tenant.name)

    async def _grammar(self, call: Opened) -> GrammarOrder | None:
        if call.grammar is None:
            return None
        return await self._grammars.check(call.grammar, call.spelled_tokens, call.tenant.name)

    def _submit(self, prepared: Sequence[Prepared], grown: asyncio.Event) -> "asyncio.Task[None] | None":
        """Gives accepted requests to the engine: at once, or in a task when images of their adapters have to be read
        again first."""
        digests = dict.fromkeys(digest for entry in prepared for _, digest in entry.user.adapters)
        if not self._adapters.is_missing(digests):
            self._send(prepared)
            return None
        submission = asyncio.create_task(self._send_when_read(prepared, digests))
        submission.add_done_callback(partial(_wake, grown))
        return submission

    async def _send_when_read(self, prepared: Sequence[Prepared], digests: Iterable[str]) -> None:
        await self._adapters.bring_back(digests)
        self._send(prepared)

    def _send(self, prepared: Sequence[Prepared]) -> None:
        is_giving = self._resumption.has_to_give
        # Calls of a batch wait for one another.
        begin_by = self._front_end.admission.begin_by() if len(prepared) == 1 else None
        for entry in prepared:
            if self._front_end.outputs.is_known(entry.user):  # it may have ended while its adapter was read
                self._resumption.add(request.to_begin_by(begin_by) for request in entry.requests)
        if not is_giving:
            self.give()

    def give(self) -> None:
        """Gives the engine the requests that it does not have: some now, the others in the next turns of the loop. They
        wait while there is no engine."""
        resumption = self._resumption
        if self._connection.is_open:
            for request in resumption.take():
                self._connection.send(request)
            if resumption.has_to_give:
                asyncio.get_running_loop().call_soon(self.give)

    def _check_label(self, label: str | None) -> None:
        if label is not None and not isinstance(label, str):
            raise InvalidRequest("request_id", f"{label!r:.140} is not a text")
        if label is not None and any(user.request_id == label for user in self._readers):
            raise InvalidRequest("request_id", f"{label!r:.140} is the id of an unfinished request")

    def _end(self, reader: _Reader) -> None:
        self._finish(self._front_end.outputs.remove(reader.user))
        self._resumption.remove(reader.user.sample_ids)
        self._readers.pop(reader.user, None)

    def _finish(self, sample_ids: Sequence[int]) -> None:
        """Ends samples in the engine. Then adapters that they alone used may go."""
        if sample_ids:
            self._connection.send(FinishRequests(list(sample_ids)))
        self._adapters.settle()
        if not self._front_end.outputs.num_unfinished:
            self._finishing.set()

    # The engine's news.

    async def take_rows(self, rows: Iterable[RowUpdate]) -> None:
        """Has readers see what a step told of their requests, in several turns of the loop."""
        for progress in self._front_end.outputs.process(rows):
            self._finish(progress.to_finish)
            for user in progress.grown:
                self._readers[user].grown.set()
            self._end_if_unread(furthest_behind(progress.grown, self._readers))
            await self._turns.take(progress.cost)

    def fail(self, reasons: Mapping[int, str]) -> None:
        """Ends samples that no engine has, by their ids."""
        rows = [
            RowUpdate(sample_id, finish_reason=FinishReason.ERROR, error=reason)
            for sample_id, reason in reasons.items()
        ]
        for progress in self._front_end.outputs.process(rows):
            for user in progress.grown:
                self._readers[user].grown.set()

    def lose_engine(self) -> None:
        self._resumption.lose_engine()

    def give_up(self) -> None:
        """Unfinished requests wait for no other engine: see `run`."""
        for reader in list(self._readers.values()):
            self._front_end.outputs.remove(reader.user)
            reader.grown.set()
        self._adapters.settle()

    # Ends.

    def _abort(self, users: Iterable[UserRequest], reason: FinishReason = FinishReason.ABORT) -> None:
        for user in users:
            self._finish(self._front_end.outputs.fail(user, reason))
            self._readers[user].grown.set()

    def _end_if_unread(self, user: UserRequest | None) -> None:
        if user is not None:
            reason = f"request {user.request_id!r:.80} was ended: nobody reads its outputs"
            tell(logger, "unread", reason, logging.WARNING, request_id=user.request_id[:80])
            self._front_end.outputs.drop_news(user)
            self._end_with(ReaderTooSlow("too many logprobs waited to be read; read faster, or ask for fewer"), [user])

    def _end_with(self, error: Exception, users: Iterable[UserRequest]) -> None:
        """Ends requests. Their readers raise the error after the outputs so far."""
        for user in users:
            self._finish(self._front_end.outputs.remove(user))
            self._readers[user].error = error
            self._readers[user].grown.set()

    def abort_labels(self, labels: Collection[str], tenant: str | None) -> None:
        """tenant: whose requests alone are meant; None means all."""
        users = [user for user in self._readers if user.request_id in labels]
        self._abort([user for user in users if tenant is None or user.tenant == tenant])

    def abort_users(self, name: str, digests: Collection[str]) -> None:
        """Ends the requests that named this adapter and got one of these digests."""
        self._abort(self._front_end.outputs.users_of(name, digests))

    def abort_all(self) -> None:
        self._abort(list(self._readers))

    def end_all_with(self, error: Exception) -> None:
        self._end_with(error, self._front_end.outputs.users())

    async def become_idle(self) -> None:
        """Returns when no request is unfinished, whether or not the last outputs have been read."""
        while self._front_end.outputs.num_unfinished:
            self._finishing.clear()
            await self._finishing.wait()

    @property
    def num_resumed(self) -> int:
        """Samples that another engine has gone on with."""
        return self._resumption.num_resumed

    def check_integrity(self) -> None:
        """Raises RuntimeError when a request that has ended is kept for the next engine."""
        self._resumption.check_integrity([sample for user in self._readers for sample in user.sample_ids])

    def check_idle(self) -> None:
        """Raises RuntimeError when anything of a request is left."""
        num_left = len(self._readers) + self._front_end.outputs.num_unfinished
        if num_left:
            raise RuntimeError(f"idle, but {num_left} requests and samples are left")


def _wake(grown: asyncio.Event, submission: "asyncio.Task[None]") -> None:
    """Wakes the reader of a request whose submission has ended."""
    if not submission.cancelled():
        submission.exception()  # asyncio would report it when the reader has gone, and does not if it was looked at
    grown.set()
