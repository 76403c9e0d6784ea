"""The messages between the front end, the engine process, its shards, the adapter loader and downloads.

Fixed schemas, no code.
"""

import msgspec

from blora.adapters import AdapterReport, ImageTable, Layout, TargetModule
from blora.scheduler import AdapterUse, CacheCounts, PageCopy, Request, RowUpdate, SamplingParams, ScheduledRow

from ..config import EngineConfig
from ..facts import Facts
from ..outputs import AdapterState


class Frame(msgspec.Struct, frozen=True, tag=True):
    """Every message names its type."""


# Front end -> engine.


class Start(Frame, frozen=True):
    """The first message."""

    config: EngineConfig
    model: str  # folder or .gguf file


class AddRequest(Frame, frozen=True):
    request_id: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    seed: int
    sample_index: int
    eos_token_ids: frozenset[int]
    adapters: tuple[AdapterUse, ...]
    activation: int
    priority: int
    tenant: str
    weights: tuple[float, float]
    cache_salt: bytes
    leader: int | None

    @staticmethod
    def of(request: Request) -> "AddRequest":
        return AddRequest(**{name: getattr(request, name) for name in AddRequest.__struct_fields__})

    def to_request(self) -> Request:
        return Request(**msgspec.structs.asdict(self))


class FinishRequests(Frame, frozen=True):
    request_ids: list[int]


class LoadAdapter(Frame, frozen=True):
    """A descriptor of the sealed image goes with it."""

    table: ImageTable


class DropImage(Frame, frozen=True):
    """Of an adapter that nobody uses; it comes again with LoadAdapter."""

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


ToEngine = (
    Start | AddRequest | FinishRequests | LoadAdapter | DropImage | UnloadAdapter | PinAdapter | WarmAdapter | GetState
)


# Engine -> front end.


class Ready(Frame, frozen=True):
    facts: Facts
    dtype: str
    page_bytes: int
    layout: Layout  # of adapters
    num_shards: int


class StartFailed(Frame, frozen=True):
    reason: str


class Updates(Frame, frozen=True):
    """What one step brought; one message a step."""

    rows: list[RowUpdate]
    unloaded: list[str]  # digests of adapters that are gone
    residency: dict[str, bool]  # digest -> whether it is resident now, of adapters for which that has changed


class PinReply(Frame, frozen=True):
    """To PinAdapter and WarmAdapter."""

    call_id: int
    is_done: bool


class StateReply(Frame, frozen=True):
    call_id: int
    num_free_pages: int
    num_running: int
    num_waiting: int
    counts: CacheCounts
    adapters: list[AdapterState]  # in the order asked


FromEngine = Ready | StartFailed | Updates | PinReply | StateReply


# First shard of an engine -> another shard and back.


class StartShard(Frame, frozen=True):
    """The first message: what it loads."""

    config: EngineConfig
    model: str  # folder or .gguf file
    index: int


class BuildShard(Frame, frozen=True):
    """The second one, when it has met the others: what it computes steps with."""

    num_pages: int


class ShardRow(msgspec.Struct, frozen=True):
    """Part of a ShardStep: what a shard that samples nothing has to know of a row."""

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
    """One message a step."""

    copies: list[PageCopy]
    rows: list[ShardRow]  # in batch order; none where there are only copies
    adapter_pages: dict[str, list[int]]  # digest -> its pages, for every adapter the rows use


class ForgetAdapter(Frame, frozen=True):
    """Nobody uses it any more."""

    digest: str


ToShard = StartShard | BuildShard | ShardStep | LoadAdapter | DropImage | ForgetAdapter


class ShardLoaded(Frame, frozen=True):
    """It has its weights, and comes to meet the others."""


class ShardReady(Frame, frozen=True):
    """It has all that it computes with, and waits for steps."""


FromShard = ShardLoaded | ShardReady | StartFailed


# Front end -> adapter loader and back.


class ReadAdapter(Frame, frozen=True):
    path: str
    roots: list[str] | None  # folders that it must lie in; None allows any place
    targets: list[TargetModule]
    dtype: str
    page_bytes: int
    layout: Layout
    max_elements: int  # that fit into the arena: an adapter of more is not even read
    vocab_size: int  # width of the logits
    model: str  # folder or .gguf file, for its tokenizer, and for adapters that are defined by its weights
    num_shards: int  # that share the model


class InspectAdapter(Frame, frozen=True):
    """What reading it would come to; nothing is kept."""

    order: ReadAdapter


class ReadUploaded(Frame, frozen=True):
    """A descriptor of the sealed files, one after another, goes with it."""

    order: ReadAdapter
    files: list[tuple[str, int]]  # name and bytes
    folder: str  # empty, for the loader to write them into; it is of whoever asks


class LookInto(Frame, frozen=True):
    """Which adapters a folder holds."""

    folder: str


ToLoader = ReadAdapter | InspectAdapter | ReadUploaded | LookInto


class AdapterRead(Frame, frozen=True):
    """A descriptor of the sealed image goes with it."""

    table: ImageTable
    report: AdapterReport


class AdapterUnreadable(Frame, frozen=True):
    problems: list[str]


class AdapterInspected(Frame, frozen=True):
    report: AdapterReport


class FolderSeen(Frame, frozen=True):
    adapters: dict[str, str]  # name of a subfolder -> what changes when its files do


FromLoader = AdapterRead | AdapterUnreadable | AdapterInspected | FolderSeen


# Front end -> download and back.


class LocateAdapter(Frame, frozen=True):
    path: str  # a hub id
    max_file_bytes: int


class AdapterLocated(Frame, frozen=True):
    folder: str


FromDownload = AdapterLocated | AdapterUnreadable
