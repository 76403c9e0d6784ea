"""AdapterCatalog: what the front end knows of adapters: names, versions, tables, usage, and what happened to them.

Reads no file and imports no torch.
"""

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from ..errors import InvalidRequest
from ..facts import Facts
from ..outputs import AdapterEvent, AdapterInfo, AdapterState, AdapterUsage, AdapterVersion, LoRARequest, RequestMetrics
from ..text.adapter_tokenizers import AdapterTokenizers
from ..text.tokenizer import Tokenizer, is_encodable

logger = logging.getLogger(__name__)
MAX_EVENTS = 1024  # kept for those who watch; whoever falls further behind starts again from a snapshot


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """What a name, or one of its versions, means."""

    name: str
    version: Version
    table: ImageTable

    @property
    def reference(self) -> str:
        """Which means this version even when another one is active."""
        return f"{self.name}@{self.version.number}"


class AdapterCatalog:
    """An adapter is named "name", which means its active version, or "name@2"."""

    def __init__(self, facts: Facts, max_versions: int, tokenizer: Tokenizer) -> None:
        self.facts = facts  # a request for the base model is checked against them
        self._registry = Registry(max_versions)
        self._tables: dict[str, ImageTable] = {}  # by digest
        self._usage: dict[str, AdapterUsage] = {}  # by name
        self._events: deque[AdapterEvent] = deque(maxlen=MAX_EVENTS)
        self.revision = 0  # number of events so far
        self._told_pins: set[tuple[str, int]] = set()  # name and number: those that events tell of
        self._tokenizers = AdapterTokenizers(tokenizer, facts.vocab_size)
        self._expected: Counter[str] = Counter()  # digest -> loads that are under way

    # What is asked for.

    def resolve(self, reference: str) -> str:
        """The digest behind a reference. Raises AdapterNotFound."""
        return self._registry.resolve(reference)

    def is_to_load(self, request: LoRARequest) -> bool:
        """Whether a LoRARequest asks for a load. Raises InvalidRequest for a loaded name with another path."""
        if not request.lora_path:
            return False
        if request.load_inplace or request.lora_name not in self._registry:
            return True
        _, version = self._registry.find(request.lora_name)
        if not _is_same_path(version.path, str(request.lora_path)):
            reason = f"{request.lora_name!r:.140} is loaded from another path; load_inplace=True replaces it"
            raise InvalidRequest("lora_request", reason)
        return False

    def num_pages(self, digests: Iterable[str]) -> int:
        """Pages that the adapters take beside the pinned ones: what is pinned by others is as good as not there."""
        return sum(self._tables[digest].num_pages for digest in {*digests} | self._registry.pinned_digests())

    # Checks.

    def check_name(self, name: str) -> None:
        if not isinstance(name, str) or not is_valid_name(name):
            raise InvalidRequest("name", f"{name!r:.140} is not 1 to 128 letters, digits, '.', '-' or '_'")

    def check_path(self, path: str | Path) -> None:
        """Only what can name a file at all: whether it does is found when it is read."""
        if not isinstance(path, str | Path) or not str(path) or not is_encodable(str(path)) or "\0" in str(path):
            raise InvalidRequest("path", f"{path!r:.140} is not a path")

    def check_size(self, path: str, num_pages: int) -> None:
        """Raises AdapterTooLarge for an adapter beside which not even one block of KV would fit."""
        if num_pages + 1 > self.facts.num_pages:
            raise AdapterTooLarge(f"adapter {path!r} needs {num_pages} of {self.facts.num_pages} pages of memory")

    def judge_text(self, path: str, table: ImageTable) -> None:
        """Once, before `add_text`. Raises AdapterRejected, maybe after seconds of work."""
        self._tokenizers.judge(path, table.text, table.vocab_size)

    def add_text(self, path: str, table: ImageTable) -> ImageTable:
        """Takes in what an adapter says about text, which was judged, until `forget`, and out of its table, to which
        warnings come. Raises AdapterRejected."""
        warnings = self._tokenizers.add(path, table.digest, table.text, table.vocab_size)
        return replace(table, text=AdapterText(), warnings=(*table.warnings, *warnings))

    def check_report(self, report: AdapterReport) -> AdapterReport:
        """A report that says, too, whether the adapter goes with the tokenizer and into the engine's memory."""
        return self.check_room(self._tokenizers.check_report(report))

    def check_room(self, report: AdapterReport) -> AdapterReport:
        """A report that says, too, whether the adapter goes into the engine's memory."""
        try:
            self.check_size(report.path, report.num_pages)
        except AdapterTooLarge as error:
            return replace(report, problems=(*report.problems, str(error)))
        return report

    # Names come and go. Each returns the digests that have lost a name: see `is_published` and `is_pinned`.

    def publish(self, name: str, path: str, table: ImageTable) -> set[str]:
        """Makes loaded weights the active version of a name."""
        for warning in table.warnings:
            logger.warning("adapter %s: %s", name, warning)
        self._tables[table.digest] = table
        with self._noting(name):
            return self._registry.publish(name, table.digest, path, time.time())

    def activate(self, name: str, number: int) -> set[str]:
        """Makes a name mean a version that is kept. Raises AdapterNotFound."""
        with self._noting(name):
            return self._registry.activate(name, number)

    def withdraw(self, reference: str) -> set[str]:
        """Takes a name or one of its versions away. Raises AdapterNotFound, InvalidRequest for the active version."""
        name = base_name(reference)
        try:
            with self._noting(name):
                return self._registry.withdraw(reference)
        except ValueError as error:
            raise InvalidRequest("name", str(error)) from None
        finally:
            if name not in self._registry:
                self._usage.pop(name, None)

    def forget(self, digest: str) -> None:
        """Forgets an adapter that is gone from the engine, unless it was loaded again meanwhile."""
        if not self.is_published(digest) and not self._expected[digest]:
            self._tables.pop(digest, None)
            self._tokenizers.forget(digest)

    @contextlib.contextmanager
    def expecting(self, digest: str) -> Iterator[None]:
        """While an adapter is on its way to the engine, what is known of it is kept: the same content may be forgotten
        under another name meanwhile. Forgotten in the end unless it was published."""
        self._expected[digest] += 1
        try:
            yield
        finally:
            self._expected[digest] -= 1
            self.forget(digest)
            self._expected += Counter()  # drops what is 0

    def is_published(self, digest: str) -> bool:
        """Whether any version means it; what none means is to be unloaded."""
        return self._registry.is_published(digest)

    def is_pinned(self, digest: str) -> bool:
        """Whether any pinned version means it."""
        return digest in self._registry.pinned_digests()

    def set_pinned(self, reference: str, is_pinned: bool) -> None:
        """Requests are checked against it from now on; `note_pin` tells of it."""
        self._registry.set_pinned(reference, is_pinned)

    def aliases(self, digest: str) -> list[tuple[str, int]]:
        """Name and number of every version that means it."""
        return self._registry.aliases(digest)

    def drop_pins(self, digest: str) -> None:
        """Of all versions that mean it."""
        for name, number in self._registry.aliases(digest):
            self.set_pinned(f"{name}@{number}", False)
            self._note_lost_pins(name)

    # What happened.

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Adds the events that lead from the versions before to those after."""
        before, was_active = self._versions_by_number(name)
        yield
        after, active = self._versions_by_number(name)
        self._note_lost_pins(name)
        for number in after.keys() - before.keys():
            self._note("loaded", name, number, after[number].digest)
        if active is not None and active != was_active:
            self._note("activated", name, active, after[active].digest)
        for number in before.keys() - after.keys():
            self._note("removed", name, number, before[number].digest)

    def _versions_by_number(self, name: str) -> tuple[dict[int, Version], int | None]:
        """And the number of the active one."""
        if name not in self._registry:
            return {}, None
        return {kept.number: kept for kept in self._registry.versions(name)}, self._registry.find(name)[1].number

    def _note(self, kind: str, name: str, number: int, digest: str) -> None:
        self.revision += 1
        self._events.append(AdapterEvent(self.revision, kind, name, number, digest))

    def note_pin(self, reference: str) -> None:
        """A pin stands, or is taken away."""
        name, version = self._registry.find(reference)
        pin = name, version.number
        if self._registry.is_pinned(*pin) and pin not in self._told_pins:
            self._told_pins.add(pin)
            self._note("pinned", *pin, version.digest)
        self._note_lost_pins(name)

    def _note_lost_pins(self, name: str) -> None:
        for pin in [pin for pin in self._told_pins if pin[0] == name and not self._registry.is_pinned(*pin)]:
            self._told_pins.discard(pin)
            with contextlib.suppress(AdapterNotFound):  # that it is gone is told anyway
                _, version = self._registry.find("{}@{}".format(*pin))
                self._note("unpinned", *pin, version.digest)

    def note_residency(self, changes: Mapping[str, bool]) -> None:
        """Takes in which contents are resident, or no more so: digest -> whether it is."""
        for digest, is_resident in changes.items():
            for name, number in self._registry.aliases(digest):
                self._note("resident" if is_resident else "evicted", name, number, digest)

    def break_off_events(self) -> None:
        """Too much has happened to be told piece by piece: all who watch start again from a snapshot."""
        self._events.clear()
        self.revision += 1

    def events_after(self, revision: int) -> list[AdapterEvent] | None:
        """None when some of them are kept no more."""
        num_new = self.revision - revision
        return None if num_new > len(self._events) else list(self._events)[len(self._events) - num_new :]

    def count(self, name: str, num_prompt_tokens: int, num_cached_tokens: int, metrics: RequestMetrics) -> None:
        """Takes in what a request used that has ended. One whose adapter is unloaded is not counted."""
        if name not in self._registry:
            return
        usage = self._usage.get(name, AdapterUsage())
        self._usage[name] = usage.plus(num_prompt_tokens, num_cached_tokens, metrics)

    # What is known.

    def tokenizer_of(self, digests: Sequence[str]) -> Tokenizer:
        """What a request for these adapters uses. Raises InvalidRequest for adapters that add different tokens."""
        return self._tokenizers.of(digests)

    @property
    def base_tokenizer(self) -> Tokenizer:
        return self._tokenizers.base

    def facts_of(self, digests: Sequence[str]) -> Facts:
        """What a request for these adapters is checked against: one may have a vocabulary of its own."""
        own = [size for digest in digests if (size := self._tables[digest].vocab_size) is not None]
        return replace(self.facts, vocab_size=own[0]) if own else self.facts

    def table_of(self, digest: str) -> ImageTable:
        return self._tables[digest]

    def all(self) -> list[NamedAdapter]:
        """The active version of every name, by name."""
        return [self.named(name) for name in self._registry.names()]

    def named(self, reference: str) -> NamedAdapter:
        """Raises AdapterNotFound."""
        name, version = self._registry.find(reference)
        return NamedAdapter(name, version, self._tables[version.digest])

    def describe(self, adapter: NamedAdapter, state: AdapterState, in_host_memory: bool) -> AdapterInfo:
        """What is known of an adapter here, and what the engine says of it."""
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
        )

    def check_integrity(self, digests: Iterable[str]) -> None:
        """digests: of the adapters that there are. Raises RuntimeError unless these, and what is being loaded, are all
        that is known, and usage is counted of what has a name."""
        there = {*digests}
        if lost := (self._tables.keys() ^ there | self._tokenizers.digests() - there) - self._expected.keys():
            raise RuntimeError(f"adapters {lost} are known and not there, or there and not known")
        if nameless := self._usage.keys() - set(self._registry.names()):
            raise RuntimeError(f"usage is counted of {nameless}, which no version has")

    def _versions(self, name: str) -> tuple[AdapterVersion, ...]:
        """None of a name that has gone meanwhile."""
        versions, active = self._versions_by_number(name)
        return tuple(
            AdapterVersion(kept.number, kept.digest, kept.path, kept.loaded_at, kept.number == active)
            for kept in versions.values()
        )


def _is_same_path(one: str, other: str) -> bool:
    return one == other or Path(one).absolute() == Path(other).absolute()
