"""AdapterPolicy: decides the life of adapters, for LLM and AsyncLLM alike. Gives orders, and carries out none.

Owns the stage of each adapter (see stages.py) and what uses it beside requests. The catalog owns the names, the ledger
the counts of images and of their users. The policy is synchronous, knows no file, process or engine, and waits for
nothing: its methods return orders, or are operations that yield them (see orders.py).
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from blora.adapters import AdapterNotFound, AdapterRejected, AdapterTooLarge, ImageTable, base_name

from ..events import tell
from ..identity.tenant import Tenant
from .catalog import AdapterCatalog, NamedAdapter
from .image_ledger import ImageLedger
from .orders import (
    AbortRequests,
    AwaitUnloaded,
    BringBack,
    DropImage,
    GiveImage,
    GiveKeptImage,
    Immediate,
    Operation,
    Pin,
    ReadAgain,
    Unload,
    Unpin,
    Warm,
)
from .source import Source
from .stages import AdapterStages, Stage

logger = logging.getLogger(__name__)


class AdapterPolicy:
    """Exists once an engine runs. Its caller carries out the orders before anything else happens."""

    def __init__(self, catalog: AdapterCatalog, ledger: ImageLedger) -> None:
        self._catalog = catalog
        self._ledger = ledger
        self._stages = AdapterStages()
        self._loads: Counter[str] = Counter()  # digest -> loads between `expect` and the end of `take_in`
        self._holds: Counter[str] = Counter()  # digest -> operations that hold it
        self._has_engine = True

    # Adapters come.

    def expect(self, path: str, table: ImageTable) -> ImageTable:
        """A load brings an adapter; `take_in` follows at once. Returns the table without the adapter's text, which the
        catalog keeps, and with all warnings. path: for messages. Raises AdapterRejected."""
        self.check_not_set_aside(path, table.digest)
        table = self._catalog.add_text(path, table)
        if self._stages.of(table.digest) in (Stage.ABSENT, Stage.UNLOADING):
            self._stages.move(table.digest, Stage.COMING)
        self._loads[table.digest] += 1
        return table

    def check_not_set_aside(self, path: str, digest: str) -> None:
        """Raises AdapterRejected for an adapter that no engine is given. path: for messages."""
        reason = self._catalog.why_set_aside(digest)
        if reason is not None:
            raise AdapterRejected(path, [f"its content is set aside: {reason}"])

    def take_in(
        self, name: str, table: ImageTable, image: Any, source: Source, owner: Tenant | None = None
    ) -> Operation[None]:
        """Makes an expected adapter the active version of a name. image: see GiveImage. owner: the tenant that loads
        it; None is for everything. Raises PermissionDenied for a name that was loaded meanwhile, and not by it."""
        try:
            yield GiveImage(table, image)
            self._catalog.check_publisher(name, owner)
            self._ledger.add(table.digest, table.num_bytes, source)
            lost = self._catalog.publish(name, source, table, owner)
            if self._stages.of(table.digest) is not Stage.LOADED:
                self._stages.move(table.digest, Stage.LOADED)
            yield from self._note_lost(lost)
        finally:
            yield from self._end_load(table.digest)

    def _end_load(self, digest: str) -> list[Immediate]:
        self._loads -= Counter((digest,))
        self._ledger.note_free()  # meanwhile its image was not dropped
        if digest in self._loads or self._stages.of(digest) is not Stage.COMING:
            return self.settle()
        # The load has failed. The engine may have the adapter all the same: its answer came too late.
        self._stages.move(digest, Stage.UNLOADING if self._has_engine else Stage.ABSENT)
        self._catalog.forget(digest)
        return [Unload(digest), *self.settle()]

    def read_again(self, digest: str) -> Operation[None]:
        """Brings back the image of an adapter that something uses. Raises AdapterRejected when the source holds another
        adapter now, or none."""
        if not self._ledger.is_used(digest) or digest in self._ledger:
            return  # its users have gone, or a load has brought the image
        try:
            with self._holding(digest):
                source = self._ledger.source_of(digest)
                image = yield from self._read(digest, source)
                table = self._catalog.table_of(digest)
                yield GiveImage(table, image)
                self._ledger.add(digest, table.num_bytes, source)
                self._ledger.num_reads += 1
        finally:
            yield from self.settle()

    def _read(self, digest: str, source: Source) -> Operation[Any]:
        try:
            return (yield ReadAgain(digest, source))
        except AdapterRejected as error:
            self._ledger.num_failures += 1
            raise source.changed(digest, error.problems) from None

    # Operations on adapters that are there.

    def activate(self, name: str, number: int) -> Operation[None]:
        """Makes a name mean a version that is kept. A version whose image cannot be had any more is not activated.
        Raises AdapterNotFound, AdapterRejected, AdapterSetAside."""
        digest = self._catalog.resolve(f"{name}@{number}")
        try:
            with self._holding(digest):
                yield BringBack((digest,))
                yield from self._note_lost(self._catalog.activate(name, number))
        finally:
            yield from self.settle()

    def warm(self, reference: str) -> Operation[None]:
        """Makes an adapter resident. Raises AdapterNotFound, AdapterRejected, AdapterSetAside, AdapterTooLarge."""
        digest = self._catalog.resolve(reference)
        yield from self._make_resident(digest, Warm(digest), f"there is no room now to warm adapter {reference!r}")

    def pin(self, reference: str) -> Operation[str]:
        """Makes an adapter resident for good; returns the reference of its version. Raises AdapterNotFound,
        AdapterRejected, AdapterSetAside, AdapterTooLarge."""
        self._catalog.resolve(reference)
        adapter = self._catalog.named(reference)
        digest, reference = adapter.table.digest, adapter.reference
        self._catalog.set_pinned(reference, True)  # at once: requests are checked against the pin from now on
        try:
            yield from self._make_resident(digest, Pin(digest), f"there is no room now to pin adapter {reference!r}")
        except (AdapterRejected, AdapterTooLarge):
            with suppress(AdapterNotFound):  # the version has gone meanwhile, and its pin with it
                self._catalog.set_pinned(reference, False)
            raise
        finally:
            yield from self._note_pin(adapter)
        return reference

    def unpin(self, reference: str) -> Operation[str]:
        """Ends the pin of an adapter; returns the reference of its version. Raises AdapterNotFound."""
        adapter = self._catalog.named(reference)
        self._catalog.set_pinned(adapter.reference, False)
        yield from self._note_pin(adapter)
        return adapter.reference

    def _make_resident(self, digest: str, order: Pin | Warm, refusal: str) -> Operation[None]:
        try:
            with self._holding(digest):
                yield BringBack((digest,))
                if not (yield order):
                    raise AdapterTooLarge(refusal)
        finally:
            yield from self.settle()

    def _note_pin(self, adapter: NamedAdapter) -> list[Immediate]:
        with suppress(AdapterNotFound):  # the version has gone meanwhile
            self._catalog.note_pin(adapter.reference)
        return self._note_lost([adapter.table.digest])

    @contextmanager
    def _holding(self, digest: str) -> Iterator[None]:
        """Meanwhile an adapter is not unloaded, and its image not dropped. `settle` follows."""
        self._ledger.hold(digest)
        self._holds[digest] += 1
        try:
            yield
        finally:
            self._holds -= Counter((digest,))
            self._ledger.release(digest)

    # Adapters go.

    def unload(self, reference: str, *, abort: bool = False) -> Operation[None]:
        """Takes away a name, or one of its versions, and waits until what only it meant is freed. abort: ends the
        requests that use it. Raises AdapterNotFound, InvalidRequest for the active one of several versions."""
        digests = self._catalog.withdraw(reference)
        self._note_unpublished(digests)
        if abort:
            yield AbortRequests(base_name(reference), frozenset(digests))
        yield from self._note_lost(digests)
        yield AwaitUnloaded(tuple(sorted(digests)))

    def _note_lost(self, digests: Iterable[str]) -> list[Immediate]:
        """Adapters may have lost a version or a pin: with the last version they leave, with the last pin they may be
        evicted. One that leaves is unpinned, too: it may be loaded again before it is unloaded."""
        self._note_unpublished(digests)
        self._ledger.note_free()
        return [*(Unpin(digest) for digest in sorted(digests) if not self._catalog.is_pinned(digest)), *self.settle()]

    def _note_unpublished(self, digests: Iterable[str]) -> None:
        for digest in sorted(digests):
            if self._stages.of(digest) is Stage.LOADED and not self._catalog.is_published(digest):
                self._stages.move(digest, Stage.LEAVING)

    def settle(self) -> list[Immediate]:
        """Follows whenever something has stopped using an adapter: unused adapters that leave are unloaded, and idle
        images beyond the limit are dropped."""
        return [*self._unload_unused(), *self._drop_excess()]

    def _unload_unused(self) -> list[Immediate]:
        unused = [digest for digest in self._stages.at(Stage.LEAVING) if not self._is_used(digest)]
        for digest in unused:
            # An engine that has ended has freed it, and another one is not given it.
            self._stages.move(digest, Stage.UNLOADING if self._has_engine else Stage.ABSENT)
            self._catalog.forget(digest)
            self._catalog.take_back(digest)
            self._ledger.forget(digest)
        return [Unload(digest) for digest in unused]

    def _is_used(self, digest: str) -> bool:
        return digest in self._loads or self._ledger.is_used(digest)

    def _drop_excess(self) -> list[Immediate]:
        if not self._has_engine:  # an engine that is being started is given the images
            return []
        return [DropImage(digest) for digest in self._ledger.take_excess(self._must_stay)]

    def _must_stay(self, digest: str) -> bool:
        """Whether an idle image is needed: the engine that a load gives it to would drop it after the load."""
        return digest in self._loads or self._catalog.is_pinned(digest)

    def note_unloaded(self, digest: str) -> None:
        """The engine has freed an adapter. It may be coming again already: then the load goes on."""
        if self._stages.of(digest) is Stage.UNLOADING:
            self._stages.move(digest, Stage.ABSENT)

    # Engines come and go.

    def lose_engine(self) -> list[Immediate]:
        """The engine has ended, and has freed everything."""
        self._has_engine = False
        for digest in self._stages.at(Stage.UNLOADING):
            self._stages.move(digest, Stage.ABSENT)
        self._catalog.break_off_events()
        return self.settle()

    def equip(self) -> Operation[None]:
        """Gives another engine, which has no user yet, what the one before had. Orders are to this engine. Pin has no
        reply here: see `lose_pin`."""
        given = [digest for digest in self._ledger.images() if self._catalog.why_set_aside(digest) is None]
        for digest in given:
            if digest in self._ledger:
                error = yield GiveKeptImage(self._catalog.table_of(digest))
                if error is not None:
                    self.set_aside(digest, f"an engine that was started could not take it ({error})")
        for digest in given:
            if digest not in self._ledger:  # unloaded meanwhile
                yield Unload(digest)
        for digest in self._ledger.digests():
            if digest in self._ledger and self._catalog.is_pinned(digest):  # or the pin has its image read again
                yield Pin(digest)

    def set_aside(self, digest: str, reason: str) -> None:
        """No engine is given an adapter any more, until it has been unloaded. There is no engine now that has it."""
        names = ", ".join(f"{name}@{number}" for name, number in self._catalog.aliases(digest))
        text = f"adapter {digest} ({names or 'not loaded'}) is set aside: {reason}"
        tell(logger, "adapter_set_aside", text, logging.ERROR, digest=digest, names=names, reason=reason)
        self._catalog.set_aside(digest, reason)
        self._ledger.note_free()

    def meet_engine(self) -> list[Immediate]:
        """Another engine runs, and has been equipped."""
        self._has_engine = True
        return self.settle()

    def lose_pin(self, digest: str) -> list[Immediate]:
        """The engine can keep an adapter no longer that was pinned: another one has no room for it, say."""
        if not self._catalog.is_pinned(digest):
            return []
        names = ", ".join(f"{name}@{number}" for name, number in self._catalog.aliases(digest))
        logger.warning("%s cannot be kept in memory any more: the pin ends", names)
        self._catalog.end_pins(digest)
        self._ledger.note_free()
        return self.settle()

    # Facts.

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Returns the adapters whose images have to be brought back before requests for them are computed."""
        return self._ledger.missing(digests)

    def is_going(self, digest: str) -> bool:
        """Whether an adapter is on its way out. One that only a load still uses is not: the load brings it again."""
        stage = self._stages.of(digest)
        return stage is Stage.UNLOADING or (stage is Stage.LEAVING and self._ledger.is_used(digest))

    @property
    def num_going(self) -> int:
        return len(self._stages.at(Stage.LEAVING, Stage.UNLOADING))

    def check_integrity(self, uses: Iterable[str], images: Collection[str]) -> None:
        """uses: a digest for each adapter of each unfinished request. images: the digests of the images that exist.
        Raises RuntimeError unless stages, names, loads and images agree."""
        loaded, leaving = self._stages.at(Stage.LOADED), self._stages.at(Stage.LEAVING)
        if set(loaded) != self._catalog.published():
            raise RuntimeError(f"adapters {set(loaded) ^ self._catalog.published()} are loaded without a name, or not")
        known = {*loaded, *leaving}
        if known != set(self._ledger.digests()) or known != self._catalog.digests():
            raise RuntimeError(f"adapters {known} are there, not {self._ledger.digests()}, {self._catalog.digests()}")
        if unused := [digest for digest in leaving if not self._is_used(digest)]:
            raise RuntimeError(f"adapters {unused} leave, and nothing uses them")
        coming = set(self._stages.at(Stage.COMING))
        self._catalog.check_integrity(known, coming)
        if not coming <= self._loads.keys() <= coming | known:
            raise RuntimeError(f"adapters {coming} come, and {self._loads.keys()} are being loaded")
        if not self._has_engine and self._stages.at(Stage.UNLOADING):
            raise RuntimeError(f"no engine unloads {self._stages.at(Stage.UNLOADING)}")
        self._ledger.check_integrity([*uses, *self._holds.elements()], images)
