# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterEventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_EVENT_KIND_UNSPECIFIED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_LOADED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_ACTIVATED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_REMOVED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_RESIDENT: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_EVICTED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_PINNED: _ClassVar[AdapterEventKind]
    ADAPTER_EVENT_KIND_UNPINNED: _ClassVar[AdapterEventKind]
ADAPTER_EVENT_KIND_UNSPECIFIED: AdapterEventKind
ADAPTER_EVENT_KIND_LOADED: AdapterEventKind
ADAPTER_EVENT_KIND_ACTIVATED: AdapterEventKind
ADAPTER_EVENT_KIND_REMOVED: AdapterEventKind
ADAPTER_EVENT_KIND_RESIDENT: AdapterEventKind
ADAPTER_EVENT_KIND_EVICTED: AdapterEventKind
ADAPTER_EVENT_KIND_PINNED: AdapterEventKind
ADAPTER_EVENT_KIND_UNPINNED: AdapterEventKind

class LoadAdapterRequest(_message.Message):
    __slots__ = ("name", "path", "pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    pinned: bool
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., pinned: _Optional[bool] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("adapter", "report")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    report: AdapterReport
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., report: _Optional[_Union[AdapterReport, _Mapping]] = ...) -> None: ...

class UploadAdapterRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("name", "files", "pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    files: _containers.RepeatedCompositeFieldContainer[UploadedFile]
    pinned: bool
    def __init__(self, name: _Optional[str] = ..., files: _Optional[_Iterable[_Union[UploadedFile, _Mapping]]] = ..., pinned: _Optional[bool] = ...) -> None: ...

class UploadedFile(_message.Message):
    __slots__ = ("name", "num_bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class UploadAdapterResponse(_message.Message):
    __slots__ = ("adapter", "report")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    report: AdapterReport
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., report: _Optional[_Union[AdapterReport, _Mapping]] = ...) -> None: ...

class InspectAdapterRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class InspectAdapterResponse(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: AdapterReport
    def __init__(self, report: _Optional[_Union[AdapterReport, _Mapping]] = ...) -> None: ...

class ActivateAdapterRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ActivateAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class WarmAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WarmAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name", "abort")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    name: str
    abort: bool
    def __init__(self, name: _Optional[str] = ..., abort: _Optional[bool] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ...) -> None: ...

class GetAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class PinAdapterRequest(_message.Message):
    __slots__ = ("name", "pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    pinned: bool
    def __init__(self, name: _Optional[str] = ..., pinned: _Optional[bool] = ...) -> None: ...

class PinAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ...) -> None: ...

class WatchAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchAdaptersResponse(_message.Message):
    __slots__ = ("revision", "snapshot", "event")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    revision: int
    snapshot: AdapterSnapshot
    event: AdapterEvent
    def __init__(self, revision: _Optional[int] = ..., snapshot: _Optional[_Union[AdapterSnapshot, _Mapping]] = ..., event: _Optional[_Union[AdapterEvent, _Mapping]] = ...) -> None: ...

class AdapterSnapshot(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ...) -> None: ...

class AdapterEvent(_message.Message):
    __slots__ = ("kind", "name", "version", "digest")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    kind: AdapterEventKind
    name: str
    version: int
    digest: str
    def __init__(self, kind: _Optional[_Union[AdapterEventKind, str]] = ..., name: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "digest", "path", "ranks", "modules", "num_bytes", "num_pages", "pinned", "resident", "num_requests", "warnings", "version", "versions", "usage", "num_copies", "invocation_tokens", "num_copied_bytes", "copy_seconds", "in_host_memory", "set_aside", "owner")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_COPIES_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_COPIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IN_HOST_MEMORY_FIELD_NUMBER: _ClassVar[int]
    SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    path: str
    ranks: _containers.RepeatedScalarFieldContainer[int]
    modules: _containers.RepeatedScalarFieldContainer[str]
    num_bytes: int
    num_pages: int
    pinned: bool
    resident: bool
    num_requests: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    version: int
    versions: _containers.RepeatedCompositeFieldContainer[AdapterVersion]
    usage: AdapterUsage
    num_copies: int
    invocation_tokens: _containers.RepeatedScalarFieldContainer[int]
    num_copied_bytes: int
    copy_seconds: float
    in_host_memory: bool
    set_aside: str
    owner: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ..., ranks: _Optional[_Iterable[int]] = ..., modules: _Optional[_Iterable[str]] = ..., num_bytes: _Optional[int] = ..., num_pages: _Optional[int] = ..., pinned: _Optional[bool] = ..., resident: _Optional[bool] = ..., num_requests: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ..., version: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[AdapterVersion, _Mapping]]] = ..., usage: _Optional[_Union[AdapterUsage, _Mapping]] = ..., num_copies: _Optional[int] = ..., invocation_tokens: _Optional[_Iterable[int]] = ..., num_copied_bytes: _Optional[int] = ..., copy_seconds: _Optional[float] = ..., in_host_memory: _Optional[bool] = ..., set_aside: _Optional[str] = ..., owner: _Optional[str] = ...) -> None: ...

class AdapterUsage(_message.Message):
    __slots__ = ("num_requests", "num_prompt_tokens", "num_cached_tokens", "num_generated_tokens", "queue_seconds", "last_used")
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_FIELD_NUMBER: _ClassVar[int]
    num_requests: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    queue_seconds: float
    last_used: float
    def __init__(self, num_requests: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., last_used: _Optional[float] = ...) -> None: ...

class AdapterVersion(_message.Message):
    __slots__ = ("number", "digest", "path", "loaded_at", "active")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: str
    path: str
    loaded_at: float
    active: bool
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ..., loaded_at: _Optional[float] = ..., active: _Optional[bool] = ...) -> None: ...

class AdapterReport(_message.Message):
    __slots__ = ("path", "problems", "warnings", "kind", "digest", "modules", "layers", "applied_tensors", "ignored_tensors", "num_disk_bytes", "num_host_bytes", "num_device_bytes", "num_pages", "vocab_size", "refused_tensors", "name_changes", "unknown_fields")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_TENSORS_FIELD_NUMBER: _ClassVar[int]
    IGNORED_TENSORS_FIELD_NUMBER: _ClassVar[int]
    NUM_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_TENSORS_FIELD_NUMBER: _ClassVar[int]
    NAME_CHANGES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELDS_FIELD_NUMBER: _ClassVar[int]
    path: str
    problems: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    kind: str
    digest: str
    modules: _containers.RepeatedCompositeFieldContainer[ModuleReport]
    layers: _containers.RepeatedCompositeFieldContainer[LayerReport]
    applied_tensors: _containers.RepeatedScalarFieldContainer[str]
    ignored_tensors: _containers.RepeatedScalarFieldContainer[str]
    num_disk_bytes: int
    num_host_bytes: int
    num_device_bytes: int
    num_pages: int
    vocab_size: int
    refused_tensors: _containers.RepeatedScalarFieldContainer[str]
    name_changes: _containers.RepeatedScalarFieldContainer[str]
    unknown_fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, path: _Optional[str] = ..., problems: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ..., kind: _Optional[str] = ..., digest: _Optional[str] = ..., modules: _Optional[_Iterable[_Union[ModuleReport, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[LayerReport, _Mapping]]] = ..., applied_tensors: _Optional[_Iterable[str]] = ..., ignored_tensors: _Optional[_Iterable[str]] = ..., num_disk_bytes: _Optional[int] = ..., num_host_bytes: _Optional[int] = ..., num_device_bytes: _Optional[int] = ..., num_pages: _Optional[int] = ..., vocab_size: _Optional[int] = ..., refused_tensors: _Optional[_Iterable[str]] = ..., name_changes: _Optional[_Iterable[str]] = ..., unknown_fields: _Optional[_Iterable[str]] = ...) -> None: ...

class ModuleReport(_message.Message):
    __slots__ = ("name", "rank", "scaling", "norm", "gain_norm", "shift_norm", "rows_norm")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    GAIN_NORM_FIELD_NUMBER: _ClassVar[int]
    SHIFT_NORM_FIELD_NUMBER: _ClassVar[int]
    ROWS_NORM_FIELD_NUMBER: _ClassVar[int]
    name: str
    rank: int
    scaling: float
    norm: float
    gain_norm: float
    shift_norm: float
    rows_norm: float
    def __init__(self, name: _Optional[str] = ..., rank: _Optional[int] = ..., scaling: _Optional[float] = ..., norm: _Optional[float] = ..., gain_norm: _Optional[float] = ..., shift_norm: _Optional[float] = ..., rows_norm: _Optional[float] = ...) -> None: ...

class LayerReport(_message.Message):
    __slots__ = ("name", "norm")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    name: str
    norm: float
    def __init__(self, name: _Optional[str] = ..., norm: _Optional[float] = ...) -> None: ...
