"""World: all that is outside the front end: the children that it starts, and the files that they read.

Each child runs the real code of blora where there is some that can be run, and has a body of a few lines here where the
real one reads files. Owns the faults that wait to happen.
"""

import asyncio
import hashlib
import os
import random
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from simulation.process import SimulatedProcess
from simulation.runner import SimulatedRunner, page_of

from blora.adapters import AdapterReport, ImageTable, Layout
from blora.adapters.device_pool import DevicePool
from blora.engine.errors import EngineBroken
from blora.engine.facts import Facts
from blora.engine.ipc.channel import ChannelClosed, Child
from blora.engine.ipc.logbook import open_logbook
from blora.engine.ipc.messages import (
    AdapterInspected,
    AdapterLocated,
    AdapterRead,
    AdapterUnreadable,
    AddRequest,
    CheckGrammar,
    FolderSeen,
    FoldersSeen,
    GrammarRefused,
    InspectAdapter,
    LocateAdapter,
    LookAt,
    LookInto,
    ReadAdapter,
    ReadText,
    ReadUploaded,
    Ready,
    Start,
    StartFailed,
    StartText,
    ToEngine,
    ToGrammar,
    ToLoader,
    ToText,
)
from blora.engine.ipc.sealed_memory import seal
from blora.engine.parallel.shards import NO_SHARDS
from blora.engine.processes.engine import EngineLoop
from blora.engine.processes.text import TextReader
from blora.engine.startup.start import make_core
from blora.engine.step.core import EngineCore
from blora.engine.text.tokenizer import load_tokenizer
from blora.scheduler import Limits

PAGE_BYTES = 64
BLOCK_SIZE = 4
VOCAB_SIZE = 260
MAX_MODEL_LEN = 96
TURNS_PER_CHECK = 3
TEMPORARY = re.compile(rb"blora-(uploads?|simulation)-\w+|(?<=/)adapter-\w{8}(?!\w)")  # names that the system draws


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter as it lies in a folder."""

    digest: str
    num_pages: int
    invocation_tokens: tuple[int, ...] = ()
    problem: str = ""  # why it cannot be read

    def table(self) -> ImageTable:
        return ImageTable(
            self.digest, "float32", self.num_pages, PAGE_BYTES, (), (), invocation_tokens=self.invocation_tokens
        )

    def image(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        pages = b"".join(page_of(self.digest, index, PAGE_BYTES) for index in range(self.num_pages))
        return np.frombuffer(pages, dtype=np.uint8)

    def encode(self) -> bytes:
        """As an upload brings it."""
        return f"{self.digest} {self.num_pages}".encode()

    @staticmethod
    def decode(content: bytes) -> "AdapterFiles":
        digest, num_pages = content.decode().split(" ")
        return AdapterFiles(digest, int(num_pages))


@dataclass(slots=True)
class Faults:
    """The faults that happen at the next opportunity, in the order of the children's modules."""

    deaths: dict[str, int] = field(default_factory=dict)  # name of a child -> so many of its next orders end it
    hangs: dict[str, int] = field(default_factory=dict)  # name of a child -> so many of its next orders are not done
    num_failing_starts: int = 0  # of engines


@dataclass(slots=True)
class Sizes:
    num_pages: int
    max_num_seqs: int
    max_num_batched_tokens: int
    copied_pages: int


class World:
    def __init__(self, seed: int, sizes: Sizes) -> None:
        self.sizes = sizes
        self.files: dict[str, AdapterFiles] = {}  # by folder
        self._contents: dict[str, list[tuple[float, str]]] = {}  # by folder: since when it holds which digest
        self.faults = Faults()
        self.violations: list[str] = []
        self.requests: dict[tuple[int, ...], dict[int, AddRequest]] = {}  # prompt -> sample -> what an engine got
        self.engine: SimulatedProcess | None = None  # the newest
        self.core: EngineCore | None = None
        self.runner: SimulatedRunner | None = None
        self.num_engines = 0
        self.was_given_up = False  # too many engines in a row have computed nothing
        self._readers: dict[int, TextReader] = {}  # of text processes
        self.trace = hashlib.sha256()
        self._random = random.Random(f"world {seed}")
        self._num_processes = 0
        self._num_turns = 0  # of engines
        self._processes: list[SimulatedProcess] = []
        self._bodies: dict[str, tuple[Any, Callable[[SimulatedProcess], Coroutine[Any, Any, None]]]] = {
            "engine": (ToEngine, self._run_engine),
            "loader": (ToLoader, lambda process: self._serve(process, self._load)),
            "lookout": (LookAt, lambda process: self._serve(process, self._look_at)),
            "download": (LocateAdapter, lambda process: self._serve(process, self._locate)),
            "text": (ToText, lambda process: self._serve(process, self._read_text)),
            "grammar": (ToGrammar, lambda process: self._serve(process, self._check_grammar)),
        }

    def all_digests(self) -> set[str]:
        uploads = {files.digest for files in self.files.values()}
        return uploads | {digest for contents in self._contents.values() for _, digest in contents}

    def write_files(self, folder: str, files: AdapterFiles, now: float) -> None:
        self.files[folder] = files
        self._contents.setdefault(folder, []).append((now, files.digest))

    def digests_between(self, folder: str, start: float, end: float) -> set[str]:
        """What the folder has held meanwhile."""
        contents = self._contents.get(folder, [])
        if not contents:
            return set()
        ends = [since for since, _ in contents[1:]] + [float("inf")]
        return {
            digest for (since, digest), until in zip(contents, ends, strict=True) if since <= end and until >= start
        }

    def note(self, *facts: object) -> None:
        """Adds to the trace."""
        self.trace.update(repr((asyncio.get_running_loop().time(), facts)).encode())

    def _note_frame(self, what: str, pid: int, content: bytes) -> None:
        self.note(what, pid)
        self.trace.update(TEMPORARY.sub(b"folder", content) if b"blora-" in content else content)

    def seconds(self, most: float) -> float:
        return self._random.random() * most

    async def start_child(self, module: str, incoming: Any) -> Child[Any]:
        """Takes the place of blora's."""
        name = module.rpartition(".")[2]
        outgoing, body = self._bodies[name]
        await asyncio.sleep(self.seconds(0.02))
        process = SimulatedProcess(self._num_processes, name, incoming, outgoing, self._note_frame)
        self._num_processes += 1
        self._processes.append(process)
        process.run(body(process))
        return process.child

    def running(self, name: str) -> list[SimulatedProcess]:
        return [process for process in self._processes if process.name == name and process.returncode is None]

    # The engine.

    async def _run_engine(self, process: SimulatedProcess) -> None:
        try:
            loop = await self._start_engine(process)
            while loop is not None:
                if not self.core.has_work:
                    await process.arrive()
                loop.turn()
                self._check_now_and_then(self.core)
                await process.pass_time()
        except (ChannelClosed, EngineBroken):
            raise
        except Exception as error:
            self.violations.append(f"the engine raised {type(error).__name__}: {error}")
            raise

    def _check_now_and_then(self, core: EngineCore) -> None:
        """The check looks at every page and request, which takes longer than the turn."""
        self._num_turns += 1
        if self._num_turns % TURNS_PER_CHECK == 0:
            core.check_integrity()

    def _heed(self, message: Any) -> None:
        if isinstance(message, AddRequest):
            samples = self.requests.setdefault(tuple(message.prompt_token_ids), {})
            samples.setdefault(message.sample_index, message)

    async def _start_engine(self, process: SimulatedProcess) -> EngineLoop | None:
        process.heed = self._heed
        await process.arrive()
        (start,) = process.receive(wait=True)
        assert isinstance(start, Start)
        logbook = open_logbook(process.receive_descriptor())
        await asyncio.sleep(0.01 + self.seconds(0.05))
        if self.faults.num_failing_starts:
            self.faults.num_failing_starts -= 1
            process.send(StartFailed("a simulated fault of the start"))
            return None
        sizes = self.sizes
        runner = SimulatedRunner(BLOCK_SIZE, process.spend, self.violations.append)
        pages = torch.zeros((sizes.num_pages, PAGE_BYTES), dtype=torch.uint8)
        runner.pool = DevicePool(pages, torch.float32, Layout.CPU, runner)
        limits = Limits(sizes.max_num_batched_tokens, sizes.max_num_seqs)
        plan = SimpleNamespace(config=start.config, num_copied_pages=sizes.copied_pages, limits=limits)
        copies = SimpleNamespace(is_beside=False)
        executor = SimpleNamespace(arena=None, copies=copies, adapters=runner.pool, runner=runner)
        core = make_core(plan, executor, sizes.num_pages, NO_SHARDS, process.now, logbook)  # type: ignore[arg-type]
        self.engine, self.core, self.runner = process, core, runner
        self.num_engines += 1
        facts = Facts(VOCAB_SIZE, MAX_MODEL_LEN, BLOCK_SIZE, sizes.num_pages)
        process.send(Ready(facts, "float32", PAGE_BYTES, Layout.CPU, 1))
        return EngineLoop(process, core, NO_SHARDS, process.now)  # type: ignore[arg-type]

    # Children that do one order after another.

    async def _serve(self, process: SimulatedProcess, do: Callable[..., Coroutine[Any, Any, None]]) -> None:
        while True:
            await process.arrive()
            for order in process.receive(wait=True):
                await asyncio.sleep(0.001 + self.seconds(0.05))
                if self._take(self.faults.deaths, process.name):
                    return
                if self._take(self.faults.hangs, process.name):
                    await asyncio.sleep(1e6)
                await do(process, order)

    def _take(self, faults: dict[str, int], name: str) -> bool:
        if not faults.get(name):
            return False
        faults[name] -= 1
        return True

    async def _load(self, process: SimulatedProcess, order: Any) -> None:
        match order:
            case ReadAdapter():
                self._read(process, order.path, self.files.get(order.path))
            case ReadUploaded(read, _, folder):
                with os.fdopen(process.receive_descriptor(), "rb") as content:
                    content.seek(0)
                    self.files[folder] = AdapterFiles.decode(content.read())
                self._read(process, read.path, self.files[folder])
            case InspectAdapter(read):
                found = self.files.get(read.path)
                problems = ("is missing",) if found is None else (found.problem,) if found.problem else ()
                process.send(AdapterInspected(AdapterReport(read.path, problems)))
            case LookInto():
                process.send(FolderSeen({}))

    def _read(self, process: SimulatedProcess, path: str, found: AdapterFiles | None) -> None:
        if found is None or found.problem:
            process.send(AdapterUnreadable([found.problem if found else "is missing"]))
            return
        descriptor = seal(found.image())
        process.send(AdapterRead(found.table(), AdapterReport(path, digest=found.digest), found.digest), descriptor)
        os.close(descriptor)

    async def _look_at(self, process: SimulatedProcess, order: LookAt) -> None:
        found = [self.files.get(folder) for folder in order.folders]
        process.send(FoldersSeen(["" if files is None else files.digest for files in found]))

    async def _locate(self, process: SimulatedProcess, order: LocateAdapter) -> None:
        await asyncio.sleep(self.seconds(2.0))
        process.send(AdapterLocated(f"/hub/{order.path}"))

    async def _check_grammar(self, process: SimulatedProcess, order: ToGrammar) -> None:
        if isinstance(order, CheckGrammar):
            process.send(GrammarRefused("structured_outputs", "no request of a simulation has any"))

    async def _read_text(self, process: SimulatedProcess, order: ToText) -> None:
        match order:
            case StartText(model, facts):
                self._readers[process.pid] = TextReader(load_tokenizer(Path(model)), facts)
            case ReadText(work):
                process.send(self._readers[process.pid].read(work))
