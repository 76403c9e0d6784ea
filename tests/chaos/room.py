"""Room: what a scenario works with: models, adapters, servers in processes of their own, load, and the oracle.

Models and adapters are made once and kept in .cache/chaos; everything else goes with the room.
"""

import asyncio
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load, save
from served import Served, serving
from tiny import make_adapter, make_model

from blora.bench.load import BloraTarget, Load, Planned, Record

from .oracle import Oracle
from .process_facts import ProcessFacts

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/chaos"
REAL_MODEL = ROOT / ".cache/models/SmolLM2-135M-Instruct"
PLANTED = Path(__file__).parent / "planted"
SHOWN_LINES = 15  # of the log of a server with which a scenario failed
MODEL_LENGTH = 4096  # of the tiny model
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# All load of the program runs in one event loop: gRPC's threads go on calling the first one that they served.
RUNNER = asyncio.Runner()

Beside = Callable[[Load], Coroutine[Any, Any, None]]


class Room:
    def __init__(self, name: str, seed: int, scale: float) -> None:
        self.seed, self.scale = seed, scale
        self.num_layers = 4  # of the tiny model
        self.rng = random.Random(f"{name} {seed}")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="blora-chaos-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def scaled(self, number: int, least: int = 1) -> int:
        """A number of the gate at this run's scale."""
        return max(round(number * self.scale), least)

    def some(self, records: Sequence[Record], most: int) -> list[Record]:
        """At most so many of the records: first those whose streams paused longest, which are the ones that something
        happened to, and as many drawn from all others."""
        paused = sorted(records, key=lambda record: -max(record.gaps, default=0.0))[: most // 2]
        known = set(map(id, paused))
        others = [record for record in records if id(record) not in known]
        return paused + self.rng.sample(others, min(most - len(paused), len(others)))

    def seconds(self, seconds: float, least: float = 3.0) -> float:
        return max(seconds * self.scale, least)

    @property
    def tiny(self) -> Path:
        """A random Llama of a few layers in float32; a step of one row takes less than a millisecond."""
        fields = {"num_hidden_layers": self.num_layers, "max_position_embeddings": MODEL_LENGTH}
        return _made(self._cache / "model", lambda folder: make_model(folder, **fields))

    @property
    def _cache(self) -> Path:
        return CACHE / f"tiny-{self.num_layers}-layers"

    @property
    def real(self) -> Path:
        if not (REAL_MODEL / CONFIG.replace("adapter_", "")).exists():
            raise FileNotFoundError(f"{REAL_MODEL} is missing: run `make model`")
        return REAL_MODEL

    @property
    def adapter(self) -> Path:
        """An adapter of the tiny model, of rank 4 on all modules, as PEFT writes it."""
        return _made(self._cache / "adapter", lambda folder: make_adapter(self.tiny, folder))

    def adapters(self, count: int) -> dict[str, Path]:
        """Adapters of the tiny model, each with its own weights, large enough to change most tokens; ranks 1 to 8."""
        source = self.adapter
        return {
            f"a{seed}": _made(
                self._cache / f"adapters/{seed}", lambda folder, seed=seed: clone_adapter(source, folder, seed)
            )  # type: ignore[misc]
            for seed in range(count)
        }

    def real_adapters(self, count: int) -> dict[str, Path]:
        """Adapters of the default model, of rank 8 on all modules, with small random weights."""
        from blora.bench.random_adapters import ALL_MODULES, make_adapters  # imports torch

        made = make_adapters(self.real, CACHE / "real-adapters", count, (8,), ALL_MODULES)
        return {f"a{index}": path for index, path in enumerate(made)}

    @contextmanager
    def server(
        self, model: Path, *options: str, adapters: dict[str, Path] | None = None, planted: str = ""
    ) -> Iterator["Server"]:
        """planted: a module of `planted`, which changes the server's processes as they start."""
        given = [f"--adapter={name}={path}" for name, path in (adapters or {}).items()]
        log = self.folder / f"server-{len(list(self.folder.glob('server-*')))}.log"
        environment = {"CHAOS_PLANTED": planted, "CHAOS_FOLDER": str(self.folder)}
        path = os.pathsep.join([str(PLANTED), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            with (
                log.open("w") as errors,
                serving(
                    model, *given, *options, stderr=errors, environment={**environment, "PYTHONPATH": path}
                ) as served,
            ):
                yield Server(served, log)
        except Exception:
            print(*log.read_text().splitlines()[-SHOWN_LINES:], sep="\n", flush=True)
            raise

    def order(self, name: str, content: str) -> None:
        """Gives an order to what was planted: a file of this name, whole at once."""
        written = self.folder / f"{name}.written"
        written.write_text(content)
        written.rename(self.folder / name)

    def drive(self, server: "Server", plan: Sequence[Planned], *beside: Beside) -> Load:
        """Sends a plan. beside: what happens meanwhile; it begins with the load, and the drive waits for it."""

        async def whole() -> Load:
            async with BloraTarget(server.address, num_connections=4) as target:
                load = Load(plan, target)
                await asyncio.gather(load.run(), *(coroutine(load) for coroutine in beside))
                return load

        return RUNNER.run(whole())

    def oracle(self, model: Path, adapters: dict[str, Path] | None = None, **options: Any) -> Oracle:
        return self._stack.enter_context(Oracle(model, adapters or {}, options))


class Server:
    """A served process, and facts about it."""

    def __init__(self, served: Served, log: Path) -> None:
        self.process, self.address, self.client = served.process, served.address, served.client
        self.settle, self.wait_serving, self.engine_pid = served.settle, served.wait_serving, served.engine_pid
        self.facts = ProcessFacts(served.process.pid)
        self._log = log

    def log(self, *levels: str) -> list[str]:
        """The lines of the log that begin with one of the levels; all without one."""
        return [line for line in self._log.read_text().splitlines() if not levels or line.startswith(levels)]


def _made(folder: Path, make: Callable[[Path], object]) -> Path:
    """Returns the folder, made now if it is missing; in one move, so that one with a name is whole."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        make(made)
        made.rename(folder)
    return folder


def clone_adapter(source: Path, folder: Path, seed: int) -> Path:
    """Writes an adapter of the same modules with other weights, of rank 1 to 8."""
    rank, draw = 1 + seed % 8, np.random.default_rng(seed)
    shapes = {name: tensor.shape for name, tensor in load((source / WEIGHTS).read_bytes()).items()}
    tensors = {
        name: draw.normal(0, 0.3, (rank, shape[1]) if ".lora_A." in name else (shape[0], rank)).astype(np.float32)
        for name, shape in shapes.items()
    }
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(json.loads((source / CONFIG).read_text()) | {"r": rank}))
    (folder / WEIGHTS).write_bytes(save(tensors))
    return folder


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, dirs_exist_ok=True))


def ok(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.status == "OK"]
