"""The messages between the front end, the engine process, its shards, the adapter loader, downloads and texts.

Holds fixed schemas and no logic.
"""

from collections.abc import Sequence

import msgspec

from blora.adapters import AdapterReport, ImageTable, Layout, TargetModule
from blora.scheduler import (
    AdapterUse,
    History,
    LogitEdits,
    Matcher,
    PageCopy,
    Request,
    RowUpdate,
    SamplingParams,
    ScheduledRow,
    StepCosts,
    StepReport,
)

from ..config import EngineConfig
from ..facts import Facts
from ..grammar.grammars import GrammarOrder
from ..grammar.source import GrammarSource
from ..outputs import AdapterState, EngineLoad
from ..text.text_work import TextOrder, TextTokens


class Frame(msgspec.Struct, frozen=True, tag=True):
    """The base of all messages, each tagged with its type."""


# Front end -> engine.


class Start(Frame, frozen=True):
    """The first message: the engine to start. Carries the descriptor of its logbook."""

    config: EngineConfig
    model: str  # folder or .gguf file


OF_MESSAGE = ("grammar", "history")  # fields of AddRequest that a Request does not have


class AddRequest(Frame, frozen=True):
    request_id: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    seed: int
    sample_index: int
    eos_token_ids: frozenset[int]
    further_eos_token_ids: frozenset[int]
    adapters: tuple[AdapterUse, ...]
    activation: int
    priority: int
    tenant: str
    weights: tuple[float, float]
    cache_salt: bytes
    num_unsalted_tokens: int
    bad_sequences: tuple[tuple[int, ...], ...]
    edits: LogitEdits
    deadline: float | None  # time.monotonic(), which all processes of a machine share
    begin_by: float | None  # the same
    leader: int | None
    num_alone: int
    grammar: GrammarOrder | None = None  # what the text has to match
    history: History | None = None  # what an engine that has ended told of it

    @staticmethod
    def of(request: Request) -> "AddRequest":
        return AddRequest(
            **{name: getattr(request, name) for name in AddRequest.__struct_fields__ if name not in OF_MESSAGE}
        )

    def after(self, history: History | None, num_alone: int) -> "AddRequest":
        """The same request for another engine, which goes on after this history."""
        if history is None and not num_alone:
            return self
        return msgspec.structs.replace(self, history=history, num_alone=num_alone)

    def to_begin_by(self, deadline: float | None) -> "AddRequest":
        return self if deadline == self.begin_by else msgspec.structs.replace(self, begin_by=deadline)

    @property
    def num_tokens(self) -> int:
        num_told = 0 if self.history is None else len(self.history.output_token_ids)
        return len(self.prompt_token_ids) + self.edits.num_tokens + num_told

    @property
    def told_token_ids(self) -> Sequence[int]:
        """The tokens of the answer that there are already."""
        return () if self.history is None else self.history.output_token_ids

    def to_request(self, matcher: Matcher | None = None) -> Request:
        """matcher: of `grammar`, after `told_token_ids`."""
        if (matcher is None) is not (self.grammar is None):
            raise RuntimeError(f"request {self.request_id} has a grammar or a matcher without the other")
        fields = {name: value for name, value in msgspec.structs.asdict(self).items() if name not in OF_MESSAGE}
        request = Request(**fields, matcher=matcher)
        if self.history is not None:
            request.resume(self.history)
        return request


class FinishRequests(Frame, frozen=True):
    request_ids: list[int]


class ResetPrefixCache(Frame, frozen=True):
    call_id: int
    also_running: bool  # whether nothing of running requests can be found any more, either


class LoadAdapter(Frame, frozen=True):
    """Carries the descriptor of the sealed image. Answered once requests may use the adapter."""

    call_id: int
    table: ImageTable


class DropImage(Frame, frozen=True):
    """Drops the image of an adapter that no request uses; LoadAdapter brings it again."""

    digest: str


class UnloadAdapter(Frame, frozen=True):
    digest: str


class PinAdapter(Frame, frozen=True):
    call_id: int
    digest: str
    is_pinned: bool


class WarmAdapter(Frame, frozen=True):
    call_id: int
    digest: str


class GetState(Frame, frozen=True):
    call_id: int
    digests: list[str]


class Nudge(Frame, frozen=True):
    """Asks for a sign of life, which is a beat of the logbook."""


ToEngine = (
    Start
    | AddRequest
    | FinishRequests
    | ResetPrefixCache
    | LoadAdapter
    | DropImage
    | UnloadAdapter
    | PinAdapter
    | WarmAdapter
    | GetState
    | Nudge
)


# Engine -> front end.


class Ready(Frame, frozen=True):
    facts: Facts
    dtype: str
    page_bytes: int
    layout: Layout  # how adapters lie in a page
    num_shards: int


class StartFailed(Frame, frozen=True):
    reason: str


class Updates(Frame, frozen=True):
    """The results of one step; one message a step."""

    rows: list[RowUpdate]
    unloaded: list[str]  # digests of adapters that have left the engine
    residency: dict[str, bool]  # digest -> whether it is resident now, for adapters whose residency changed
    step_costs: StepCosts | None = None  # None if they have hardly changed
    unpinned: list[str] = []  # digests of adapters whose pins have ended, because they could not be copied
    step: StepReport | None = None  # None if no row was computed


class DoneReply(Frame, frozen=True):
    """The answer to LoadAdapter, PinAdapter, WarmAdapter and ResetPrefixCache."""

    call_id: int
    is_done: bool


class StateReply(Frame, frozen=True):
    call_id: int
    load: EngineLoad
    adapters: list[AdapterState]  # in the order of GetState.digests


class CallFailed(Frame, frozen=True):
    """The answer to a call over which an error was raised. The engine goes on as if the call had not come."""

    call_id: int
    error: str  # the type of the error: its text may hold what is nobody else's business


FromEngine = Ready | StartFailed | Updates | DoneReply | StateReply | CallFailed


# First shard of an engine -> another shard and back.


class StartShard(Frame, frozen=True):
    """The first message: the model that the shard loads."""

    config: EngineConfig
    model: str  # folder or .gguf file
    index: int


class BuildShard(Frame, frozen=True):
    """The second message, once the shard has met the others: it builds its arena and backend."""

    num_pages: int  # pages of the arena


class ShardRow(msgspec.Struct, frozen=True):
    """A row of a ShardStep: the facts that a shard needs to compute it. Only the first shard samples."""

    new_token_ids: list[int]
    start: int
    block_table: list[int]
    adapters: tuple[AdapterUse, ...]
    num_base_tokens: int
    is_sampled: bool
    num_scored_tokens: int

    @staticmethod
    def of(row: ScheduledRow) -> "ShardRow":
        return ShardRow(
            new_token_ids=list(row.new_token_ids),
            start=row.start,
            block_table=list(row.block_table),
            adapters=row.adapters,
            num_base_tokens=row.num_base_tokens,
            is_sampled=row.is_sampled,
            num_scored_tokens=row.num_scored_tokens,
        )

    @property
    def num_new_tokens(self) -> int:
        return len(self.new_token_ids)

    @property
    def end(self) -> int:
        return self.start + self.num_new_tokens


class ShardStep(Frame, frozen=True):
    """One step to compute; one message a step."""

    copies: list[PageCopy]
    rows: list[ShardRow]  # in batch order; empty if the step has only copies
    adapter_pages: dict[str, list[int]]  # digest -> its pages, for every adapter the rows use


class TakeAdapter(Frame, frozen=True):
    """Carries the descriptor of the sealed image. The only message of a running engine that a shard answers."""

    table: ImageTable


class ForgetAdapter(Frame, frozen=True):
    """Drops an adapter that no request uses any more."""

    digest: str


ToShard = StartShard | BuildShard | ShardStep | TakeAdapter | DropImage | ForgetAdapter


class ShardLoaded(Frame, frozen=True):
    """The shard has loaded its tensors and comes to meet the others."""


class ShardReady(Frame, frozen=True):
    """The shard has built its arena and backend and waits for steps."""


class AdapterTaken(Frame, frozen=True):
    """The answer to TakeAdapter."""

    error: str | None = None  # the type of the error, if the shard cannot take it


FromShard = ShardLoaded | ShardReady | StartFailed | AdapterTaken


# Front end -> adapter loader and back.


class ReadAdapter(Frame, frozen=True):
    path: str
    roots: list[str] | None  # folders below which the path must lie; None allows any place
    targets: list[TargetModule]
    dtype: str
    page_bytes: int
    layout: Layout
    max_elements: int  # the most elements that fit into the arena; a larger adapter is refused unread
    vocab_size: int  # width of the logits
    model: str  # folder or .gguf file, for its tokenizer and for adapters that depend on its tensors
    num_shards: int  # shards that share the model


class InspectAdapter(Frame, frozen=True):
    """Asks for the report that reading an adapter would give; the loader keeps nothing."""

    order: ReadAdapter


class ReadUploaded(Frame, frozen=True):
    """Carries the descriptor of the sealed files, one after another."""

    order: ReadAdapter
    files: list[tuple[str, int]]  # name and bytes of each
    folder: str  # an empty folder that the loader writes the files into; the front end owns it


class LookInto(Frame, frozen=True):
    """Asks which adapters a folder holds."""

    folder: str


ToLoader = ReadAdapter | InspectAdapter | ReadUploaded | LookInto


class AdapterRead(Frame, frozen=True):
    """Carries the descriptor of the sealed image."""

    table: ImageTable
    report: AdapterReport
    fingerprint: str  # of the files that were read
    signatures: bytes | None = None  # of the file of signatures beside them


class AdapterUnreadable(Frame, frozen=True):
    problems: list[str]


class AdapterInspected(Frame, frozen=True):
    report: AdapterReport


class FolderSeen(Frame, frozen=True):
    adapters: dict[str, str]  # name of a subfolder -> a text that changes when its files change


FromLoader = AdapterRead | AdapterUnreadable | AdapterInspected | FolderSeen


# Front end -> lookout and back.


class LookAt(Frame, frozen=True):
    """Asks what the file system says of adapters' files."""

    folders: list[str]


class FoldersSeen(Frame, frozen=True):
    fingerprints: list[str]  # in the order of LookAt.folders; empty for a folder without an adapter's files


# Front end -> download and back.


class LocateAdapter(Frame, frozen=True):
    path: str  # a hub id
    max_file_bytes: int


class AdapterLocated(Frame, frozen=True):
    folder: str


FromDownload = AdapterLocated | AdapterUnreadable


# Front end -> text process and back.


class StartText(Frame, frozen=True):
    """The first message."""

    model: str  # folder or .gguf file, for its tokenizer
    facts: Facts
    niceness: int  # of the process


class ReadText(Frame, frozen=True):
    order: TextOrder


class TextRead(Frame, frozen=True):
    tokens: TextTokens


class TextRefused(Frame, frozen=True):
    field: str  # the argument to change
    reason: str


ToText = StartText | ReadText
FromText = TextRead | TextRefused


# Front end -> grammar process and back.


class StartGrammars(Frame, frozen=True):
    """The first message."""

    model: str  # folder or .gguf file, for its tokenizer
    vocab_size: int  # width of the logits
    niceness: int  # of the process


class CheckGrammar(Frame, frozen=True):
    source: GrammarSource


class GrammarAccepted(Frame, frozen=True):
    text: str  # as the library reads it
    num_bytes: int  # of memory that it takes


class GrammarRefused(Frame, frozen=True):
    field: str  # the argument to change
    reason: str


ToGrammar = StartGrammars | CheckGrammar
FromGrammar = GrammarAccepted | GrammarRefused
