"""AdapterCatalog: the names of adapters and everything known under them: versions, pins, tables, texts, usage, events.

Reads no file and imports no torch. AdapterPolicy decides when the catalog forgets an adapter.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blora.adapters import (
    AdapterNotFound,
    AdapterReport,
    AdapterText,
    AdapterTooLarge,
    ImageTable,
    Registry,
    Version,
    base_name,
    is_valid_name,
)

from ..errors import AdapterSetAside, InvalidRequest, LimitReached
from ..events import tell
from ..facts import Facts
from ..identity.tenant import Tenant
from ..outputs import AdapterEvent, AdapterInfo, AdapterState, AdapterUsage, AdapterVersion, LoRARequest, RequestMetrics
from ..text.adapter_tokenizers import AdapterTokenizers
from ..text.tokenizer import Tokenizer, is_encodable
from .owners import AdapterOwners
from .source import Source

logger = logging.getLogger(__name__)
Looks = Mapping[str, str]  # folder -> the fingerprint that its files have now
MAX_SET_ASIDE = 1024  # adapters; clients can bring new ones without end
MAX_NAMES = 1 << 16  # loaded at once; the facts of one take tens of kilobytes
MAX_EVENTS = 1024  # kept for clients that watch; a client that falls further behind starts again from a snapshot


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """A version of a name, and the content that it means."""

    name: str
    version: Version
    table: ImageTable

    @property
    def reference(self) -> str:
        """A reference that means this version even when another one is active."""
        return f"{self.name}@{self.version.number}"


class AdapterCatalog:
    """A reference to an adapter is "name", which means the active version of the name, or "name@2"."""

    def __init__(self, facts: Facts, max_versions: int, tokenizer: Tokenizer) -> None:
        self.facts = facts  # requests for the base model are checked against them
        self._registry = Registry(max_versions)
        self._tables: dict[str, ImageTable] = {}  # by digest
        self._sources: dict[tuple[str, int], Source] = {}  # by name and number of each version
        self._int_ids: dict[str, set[int]] = {}  # name -> each lora_int_id for which its weights were found to be these
        self._usage: dict[str, AdapterUsage] = {}  # by name
        self._owners = AdapterOwners(lambda name: name in self._registry)
        self._events: deque[AdapterEvent] = deque(maxlen=MAX_EVENTS)
        self.revision = 0  # number of events so far
        self._on_change: Callable[[], None] = lambda: None
        self.resident: set[str] = set()  # digests of what the engine has in its arena
        self._told_pins: set[tuple[str, int]] = set()  # name and number of the pinned versions that events tell of
        self._tokenizers = AdapterTokenizers(tokenizer, facts.vocab_size)
        self._set_aside: dict[str, str] = {}  # digest -> reason, also of adapters whose first load it ended

    # Requests ask.

    def resolve(self, reference: str) -> str:
        """The digest behind a reference. Raises AdapterNotFound, AdapterSetAside."""
        digest = self._registry.resolve(reference)
        if digest in self._set_aside:
            raise AdapterSetAside(reference, self._set_aside[digest])
        return digest

    def folder_to_look_at(self, request: LoRARequest) -> str | None:
        """The folder behind a loaded name with its path, whose files may have changed. Other requests need no look."""
        if not request.lora_path or request.load_inplace or request.lora_name not in self._registry:
            return None
        source = self._active_source(request.lora_name)
        return source.folder if _is_same_path(source.path, str(request.lora_path)) else None

    def is_to_load(self, request: LoRARequest, looks: Looks) -> bool:
        """Whether a LoRARequest asks for a load: of an unknown name, of a name for another lora_int_id, or of files
        that have changed. looks: see `folder_to_look_at`. Raises InvalidRequest for a loaded name with another path."""
        name = request.lora_name
        if not request.lora_path:
            return False
        if request.load_inplace or name not in self._registry:
            return True
        if request.lora_int_id not in self._int_ids.get(name, {request.lora_int_id}):
            return True
        source = self._active_source(name)
        if not _is_same_path(source.path, str(request.lora_path)):
            reason = f"{name!r:.140} is loaded from another path; load_inplace=True or another lora_int_id replaces it"
            raise InvalidRequest("lora_request", reason)
        return self._has_changed(name, source.folder, looks.get(source.folder, ""))

    def _active_source(self, name: str) -> Source:
        return self._sources[name, self._registry.find(name)[1].number]

    def _has_changed(self, name: str, folder: str, fingerprint: str) -> bool:
        """Whether a folder holds other files than any version that is kept: after a return to an older version, the
        files of the newer one are no news. A folder without its files has nothing newer."""
        kept = [self._sources[name, version.number] for version in self._registry.versions(name)]
        known = {source.fingerprint for source in kept if source.folder == folder}
        return fingerprint not in {"", *known}

    def num_pages(self, digests: Iterable[str]) -> int:
        """Pages of the adapters and of the pinned ones together: a request can never have the pages of a pinned
        adapter."""
        return sum(self._tables[digest].num_pages for digest in {*digests} | self._registry.pinned_digests())

    # Checks of an adapter that is to be loaded.

    def check_name(self, name: str) -> None:
        """Checks the name of an adapter to load. Raises InvalidRequest, LimitReached."""
        if not isinstance(name, str) or not is_valid_name(name):
            rule = "1 to 128 letters, digits, '.', '-', '_' or '/', with a letter or digit first and after each '/'"
            raise InvalidRequest("name", f"{name!r:.140} is not {rule}")
        if name not in self._registry and self._registry.num_names >= MAX_NAMES:
            raise LimitReached(f"{MAX_NAMES} names of adapters are loaded; unload some")

    def check_path(self, path: str | Path) -> None:
        """Raises InvalidRequest for a path that can name no file. Whether the file exists shows when it is read."""
        if not isinstance(path, str | Path) or not str(path) or not is_encodable(str(path)) or "\0" in str(path):
            raise InvalidRequest("path", f"{path!r:.140} is not a path")

    def check_size(self, path: str, num_pages: int) -> None:
        """Raises AdapterTooLarge for an adapter that leaves no room for a single block of KV."""
        if num_pages + 1 > self.facts.num_pages:
            raise AdapterTooLarge(f"adapter {path!r} needs {num_pages} of {self.facts.num_pages} pages of memory")

    def judge_text(self, path: str, table: ImageTable) -> None:
        """Judges an adapter's text once, before `add_text`, which may take seconds. Raises AdapterRejected."""
        self._tokenizers.judge(path, table.text, table.vocab_size)

    def add_text(self, path: str, table: ImageTable) -> ImageTable:
        """Moves an adapter's text, which was judged, from its table into the catalog, until `forget`. The returned
        table has the warnings about it. Raises AdapterRejected."""
        warnings = self._tokenizers.add(path, table.digest, table.text, table.vocab_size)
        return replace(table, text=AdapterText(), warnings=(*table.warnings, *warnings))

    def check_report(self, report: AdapterReport) -> AdapterReport:
        """The report with further problems, if the adapter does not go with the tokenizer or into the engine's
        memory."""
        return self.check_room(self._tokenizers.check_report(report))

    def check_room(self, report: AdapterReport) -> AdapterReport:
        """The report with a further problem, if the adapter does not go into the engine's memory."""
        try:
            self.check_size(report.path, report.num_pages)
        except AdapterTooLarge as error:
            return replace(report, problems=(*report.problems, str(error)))
        return report

    # Names come and go. Each method returns the digests that have lost a version, or their last pin: see
    # `is_published` and `is_pinned`.

    def publish(self, name: str, source: Source, table: ImageTable, owner: Tenant | None = None) -> set[str]:
        """Makes an adapter that the engine has the active version of a name. owner: see `check_publisher`."""
        for warning in table.warnings:
            logger.warning("adapter %s: %s", name, warning)
        self._tables[table.digest] = table
        if name in self._registry and self._registry.resolve(name) != table.digest:
            self._int_ids.pop(name, None)
        self._owners.note_published(name, owner)
        with self._noting(name):
            lost = self._registry.publish(name, table.digest, source.path, time.time())
            self._sources[name, self._registry.find(name)[1].number] = source
        return lost

    def note_int_id(self, request: LoRARequest) -> None:
        """The adapter of a LoRARequest has just been loaded for it. Until its content changes, its lora_int_id is no
        news."""
        if request.lora_name in self._registry:
            self._int_ids.setdefault(request.lora_name, set()).add(request.lora_int_id)

    def int_ids(self) -> set[int]:
        """Each lora_int_id for which an adapter has been loaded."""
        return {int_id for int_ids in self._int_ids.values() for int_id in int_ids}

    def find_int_id(self, int_id: int) -> str | None:
        """The name that was loaded for a lora_int_id, if there is one. Raises InvalidRequest for an id of several."""
        names = sorted(name for name, int_ids in self._int_ids.items() if int_id in int_ids)
        if len(names) > 1:
            raise InvalidRequest("lora_id", f"{int_id} is the id of {', '.join(names[:8])}: take one by its name")
        return names[0] if names else None

    def named_by_int_id(self, int_id: int) -> str:
        """As `find_int_id`. Raises AdapterNotFound, too."""
        name = self.find_int_id(int_id)
        if name is None:
            raise AdapterNotFound(f"lora_int_id={int_id}")
        return name

    def activate(self, name: str, number: int) -> set[str]:
        """Makes a name mean a version that is kept. Raises AdapterNotFound."""
        with self._noting(name):
            return self._registry.activate(name, number)

    def withdraw(self, reference: str) -> set[str]:
        """Takes away a name, or one of its versions. Raises AdapterNotFound, InvalidRequest for the active one of
        several versions."""
        name = base_name(reference)
        try:
            with self._noting(name):
                return self._registry.withdraw(reference)
        except ValueError as error:
            raise InvalidRequest("name", str(error)) from None
        finally:
            if name not in self._registry:
                self._usage.pop(name, None)
                self._int_ids.pop(name, None)
                self._owners.forget(name)

    def forget(self, digest: str) -> None:
        """Erases the table and the text of an adapter that no version means. An unknown digest is fine."""
        self._tables.pop(digest, None)
        self._tokenizers.forget(digest)
        self.resident.discard(digest)

    def set_aside(self, digest: str, reason: str) -> None:
        """Refuses requests for an adapter, and pins it no more, until `take_back`."""
        self._set_aside[digest] = reason
        if len(self._set_aside) > MAX_SET_ASIDE:
            del self._set_aside[next(iter(self._set_aside))]
        self.end_pins(digest)

    def take_back(self, digest: str) -> None:
        """An adapter may be loaded again, even if it was set aside."""
        self._set_aside.pop(digest, None)

    def why_set_aside(self, digest: str) -> str | None:
        return self._set_aside.get(digest)

    def is_published(self, digest: str) -> bool:
        """Whether any version of any name means it."""
        return self._registry.is_published(digest)

    def is_pinned(self, digest: str) -> bool:
        """Whether any pinned version means it."""
        return digest in self._registry.pinned_digests()

    def set_pinned(self, reference: str, is_pinned: bool) -> None:
        """Requests are checked against the pin from now on; `note_pin` tells clients of it. Raises AdapterNotFound."""
        self._registry.set_pinned(reference, is_pinned)

    def end_pins(self, digest: str) -> None:
        """Ends the pins of all versions that mean a content."""
        for name, number in self._registry.aliases(digest):
            self.set_pinned(f"{name}@{number}", False)
            self._note_lost_pins(name)

    def claiming(self, name: str, owner: Tenant | None) -> contextlib.AbstractContextManager[None]:
        """See AdapterOwners."""
        return self._owners.claiming(name, owner)

    def check_publisher(self, name: str, owner: Tenant | None) -> None:
        """See AdapterOwners."""
        self._owners.check_publisher(name, owner)

    def check_owner(self, reference: str, owner: Tenant | None) -> None:
        """Raises AdapterNotFound, PermissionDenied unless the adapter is this tenant's; None is for everything."""
        self._owners.check(self._registry.find(reference)[0], owner)

    # Events.

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls back whenever `revision` has changed."""
        self._on_change = callback

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Adds the events that lead from the versions of a name before to those after."""
        before, was_active = self._versions_by_number(name)
        yield
        after, active = self._versions_by_number(name)
        self._note_lost_pins(name)
        for number in after.keys() - before.keys():
            self._note("loaded", name, number, after[number].digest)
        if active is not None and active != was_active:
            self._note("activated", name, active, after[active].digest)
        for number in before.keys() - after.keys():
            del self._sources[name, number]
            self._note("removed", name, number, before[number].digest)

    def _versions_by_number(self, name: str) -> tuple[dict[int, Version], int | None]:
        """The versions of a name, and the number of the active one."""
        if name not in self._registry:
            return {}, None
        return {kept.number: kept for kept in self._registry.versions(name)}, self._registry.find(name)[1].number

    def _note(self, kind: str, name: str, number: int, digest: str) -> None:
        self.revision += 1
        self._events.append(AdapterEvent(self.revision, kind, name, number, digest))
        text, level = f"adapter {name}@{number} is {kind}", logging.DEBUG if kind == "resident" else logging.INFO
        tell(logger, f"adapter_{kind}", text, level, adapter=name, version=number, digest=digest)
        self._on_change()

    def note_pin(self, reference: str) -> None:
        """Tells clients of a pin that was set or has ended. Raises AdapterNotFound."""
        name, version = self._registry.find(reference)
        pin = name, version.number
        if self._registry.is_pinned(*pin) and pin not in self._told_pins:
            self._told_pins.add(pin)
            self._note("pinned", *pin, version.digest)
        self._note_lost_pins(name)

    def _note_lost_pins(self, name: str) -> None:
        for pin in [pin for pin in sorted(self._told_pins) if pin[0] == name and not self._registry.is_pinned(*pin)]:
            self._told_pins.discard(pin)
            with contextlib.suppress(AdapterNotFound):  # the removal of the version is an event of its own
                _, version = self._registry.find("{}@{}".format(*pin))
                self._note("unpinned", *pin, version.digest)

    def note_residency(self, changes: Mapping[str, bool]) -> None:
        """Tells clients which contents have become resident, or are so no longer: digest -> whether it is resident."""
        for digest, is_resident in changes.items():
            (self.resident.add if is_resident else self.resident.discard)(digest)
            for name, number in self._registry.aliases(digest):
                self._note("resident" if is_resident else "evicted", name, number, digest)

    def break_off_events(self) -> None:
        """Too much has happened to be told event by event: all clients start again from a snapshot."""
        self.resident.clear()
        self._events.clear()
        self.revision += 1
        self._on_change()

    def events_after(self, revision: int) -> list[AdapterEvent] | None:
        """None when some of the events are not kept any more."""
        num_new = self.revision - revision
        return None if num_new > len(self._events) else list(self._events)[len(self._events) - num_new :]

    def count(self, name: str, num_prompt_tokens: int, num_cached_tokens: int, metrics: RequestMetrics) -> None:
        """Adds a request that has ended to the usage of a name. A name that has gone has none."""
        if name not in self._registry:
            return
        usage = self._usage.get(name, AdapterUsage())
        self._usage[name] = usage.plus(num_prompt_tokens, num_cached_tokens, metrics)

    # Facts.

    def tokenizer_of(self, digests: Sequence[str]) -> Tokenizer:
        """The tokenizer of a request for these adapters. Raises InvalidRequest for adapters that add different
        tokens."""
        return self._tokenizers.of(digests)

    @property
    def base_tokenizer(self) -> Tokenizer:
        return self._tokenizers.base

    def facts_of(self, digests: Sequence[str]) -> Facts:
        """The facts that a request for these adapters is checked against: an adapter may have its own vocabulary."""
        own = [size for digest in digests if (size := self._tables[digest].vocab_size) is not None]
        return replace(self.facts, vocab_size=own[0]) if own else self.facts

    def table_of(self, digest: str) -> ImageTable:
        return self._tables[digest]

    def digests(self) -> set[str]:
        """The digests of all adapters whose tables are known."""
        return set(self._tables)

    def published(self) -> set[str]:
        """The digests of all adapters that versions mean."""
        return self._registry.digests()

    @property
    def num_names(self) -> int:
        return self._registry.num_names

    def aliases(self, digest: str) -> list[tuple[str, int]]:
        """Name and number of every version that means a content."""
        return self._registry.aliases(digest)

    def all(self) -> list[NamedAdapter]:
        """The active version of every name, by name."""
        return [self.named(name) for name in self._registry.names()]

    def named(self, reference: str) -> NamedAdapter:
        """Raises AdapterNotFound."""
        name, version = self._registry.find(reference)
        return NamedAdapter(name, version, self._tables[version.digest])

    def describe(self, adapter: NamedAdapter, state: AdapterState, in_host_memory: bool) -> AdapterInfo:
        """An adapter as users see it. state: what the engine says of it."""
        table, version = adapter.table, adapter.version
        return AdapterInfo(
            name=adapter.name,
            digest=table.digest,
            path=version.path,
            ranks=tuple(sorted({module.rank for module in table.modules if module.rank})),
            modules=tuple(sorted({module.name.rpartition(".")[2] for module in table.modules})),
            num_bytes=table.num_bytes,
            num_pages=table.num_pages,
            pinned=state.is_pinned,
            resident=state.is_resident,
            in_host_memory=in_host_memory,
            num_requests=state.num_requests,
            warnings=table.warnings,
            version=version.number,
            versions=self._versions(adapter.name),
            usage=self._usage.get(adapter.name, AdapterUsage()),
            num_copies=state.num_copies,
            num_copied_bytes=state.num_copied_pages * table.page_bytes,
            copy_seconds=state.copy_seconds,
            invocation_tokens=table.invocation_tokens,
            set_aside=self._set_aside.get(table.digest, ""),
            owner=self._owners.of(adapter.name),
        )

    def check_integrity(self, there: Collection[str], coming: Collection[str]) -> None:
        """there, coming: the digests of the adapters that are loaded or leave, and of those that come. Raises
        RuntimeError unless the catalog knows these and no others, and counts the usage of existing names only."""
        if lost := self._tables.keys() ^ set(there) | self._tokenizers.digests() - {*there, *coming}:
            raise RuntimeError(f"adapters {lost} are known and not there, or there and not known")
        if nameless := {*self._usage, *self._int_ids, *self._owners.names()} - set(self._registry.names()):
            raise RuntimeError(f"usage, ids or owners are kept of {nameless}, which no version has")
        versions = {alias for digest in self._registry.digests() for alias in self._registry.aliases(digest)}
        if versions != self._sources.keys():
            raise RuntimeError(
                f"sources of {versions ^ self._sources.keys()} are missing, or of versions that have gone"
            )

    def _versions(self, name: str) -> tuple[AdapterVersion, ...]:
        """Empty for a name that has gone meanwhile."""
        versions, active = self._versions_by_number(name)
        return tuple(
            AdapterVersion(kept.number, kept.digest, kept.path, kept.loaded_at, kept.number == active)
            for kept in versions.values()
        )


def _is_same_path(one: str, other: str) -> bool:
    return one == other or Path(one).absolute() == Path(other).absolute()
