"""Run: one seed of the simulation from its start to its end, and the command line.

`PYTHONPATH=tests:. python -m simulation.run --seeds 2000 --steps 300` runs many seeds; `--seed 7` runs one again. One
that fails prints its shortest trace.
"""

import argparse
import asyncio
import gc
import json
import logging
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from byte_tokenizer import make_tokenizer
from simulation.client import Call, Generation
from simulation.clock import Standstill
from simulation.clock import run as run_in_virtual_time
from simulation.operations import FOLDERS, INVOCATION, NAMES, Operation, operations
from simulation.shrink import shortest
from simulation.world import PAGE_BYTES, VOCAB_SIZE, AdapterFiles, Sizes, World

from blora.engine import AsyncLLM

LONGEST = 3600.0  # virtual seconds for what is left to end
ENDS = ("idle", "drain", "shutdown")


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    violations: tuple[str, ...]
    trace: str  # the hash of all frames, outputs and outcomes with their times
    num_finished: int  # requests
    num_engines: int


@cache
def model_folder() -> str:
    """A model without weights, which no simulated engine reads."""
    folder = Path(tempfile.mkdtemp(prefix="blora-simulation-"))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 256,
    }
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer(folder)
    return str(folder)


class Simulation:
    def __init__(self, seed: int, script: Sequence[Operation]) -> None:
        self.seed, self.script = seed, script
        draw = random.Random(f"simulation {seed}")
        self.sizes = Sizes(
            num_pages=draw.choice((26, 32, 48)),
            max_num_seqs=draw.choice((2, 4, 8)),
            max_num_batched_tokens=draw.choice((8, 24, 64)),
            copied_pages=draw.choice((1, 2, 8)),
        )
        self.options: dict[str, Any] = {
            "block_size": 4,
            "seed": seed,
            "enable_prefix_caching": draw.random() < 0.8,
            "scheduling_policy": draw.choice(("fair", "fair", "fcfs", "priority")),
            "max_num_queued_reqs": draw.choice((8, 64)),
            "max_passed_over": draw.choice((16, 65536)),
            "max_adapter_versions": draw.choice((1, 2, 3)),
            "host_cache": draw.choice((None, 2 * PAGE_BYTES, 8 * PAGE_BYTES)),
            "adapter_upload_bytes": 4096,
            "adapters": dict(zip(NAMES, FOLDERS, strict=True)) if draw.random() < 0.8 else {},
        }
        self.end = draw.choice(ENDS)
        self.calls: list[Call] = []

    def run(self) -> Outcome:
        self.world = World(self.seed, self.sizes)
        for folder in FOLDERS:
            self.world.files[folder] = AdapterFiles(f"{folder.rpartition('/')[2]}0", 1 + len(folder) % 4)
        watch = _Watch(self.world.violations)
        try:
            run_in_virtual_time(self._run)
        except (Standstill, TimeoutError) as error:
            waiting = [f"{call.kind} {call.number}" for call in self.calls if not call.has_ended]
            self.world.violations.append(f"standstill: {error}; these wait: {waiting}")
        finally:
            watch.end()
        finished = [call for call in self.calls if call.outcome == "finished"]
        return Outcome(
            self.seed,
            tuple(self.world.violations),
            self.world.trace.hexdigest(),
            len(finished),
            self.world.num_engines,
        )

    async def _run(self) -> None:
        class SimulatedLLM(AsyncLLM):
            _start_child = staticmethod(self.world.start_child)

        self.llm = SimulatedLLM(model_folder(), **self.options)
        await self.llm.start()
        for number, operation in enumerate(self.script):
            await asyncio.sleep(operation.after)
            self._do(number, operation)
            self._check_front_end()
        async with asyncio.timeout(LONGEST):
            await getattr(self, f"_end_by_{self.end}")()
        await asyncio.sleep(1.0)
        self._judge()

    def _do(self, number: int, operation: Operation) -> None:
        self.world.note(str(operation))
        values = operation.values
        match operation.kind:
            case "generate" | "generate_by_path":
                self.calls.append(Generation(number, values, self.llm, self.world))
            case "cancel":
                self._a_call(values["call"], lambda call: call.cancel())
            case "abort":
                asyncio.ensure_future(self.llm.abort(f"request {self._label(values['call'])}"))
            case "change_files":
                self._change_files(**values)
            case "kill_engine":
                self._kill_engine(**values)
            case "break_engine" | "fail_steps" | "fail_starts" | "kill_child" | "fault_child":
                self._fault(operation)
            case _:
                self.calls.append(Call(number, operation.kind, values, self.llm, self.world))

    def _a_call(self, index: int, do: Any) -> None:
        running = [call for call in self.calls if not call.has_ended]
        if running:
            do(running[index % len(running)])

    def _label(self, index: int) -> int:
        running = [call.number for call in self.calls if isinstance(call, Generation) and not call.has_ended]
        return running[index % len(running)] if running else -1

    def _change_files(self, folder: str, digest: str, num_pages: int, is_activated: bool, problem: str) -> None:
        self.world.files[folder] = AdapterFiles(digest, num_pages, INVOCATION if is_activated else (), problem)

    def _kill_engine(self, frames: int | None) -> None:
        for process in self.world.running("engine"):
            if frames is None:
                process.kill()
            else:
                process.frames_to_live = frames

    def _fault(self, operation: Operation) -> None:
        world, values = self.world, operation.values
        match operation.kind:
            case "break_engine" if world.runner is not None:
                world.runner.is_broken = True
            case "fail_steps" if world.runner is not None:
                world.runner.num_failing_steps = values["count"]
            case "fail_starts":
                world.faults.num_failing_starts = values["count"]
            case "kill_child":
                for process in world.running(values["child"]):
                    process.kill()
            case "fault_child":
                kind = world.faults.hangs if values["hangs"] else world.faults.deaths
                kind[values["child"]] = 1

    # The end.

    async def _end_by_idle(self) -> None:
        """All that was asked for ends, and the engine has everything back."""
        world = self.world
        world.faults = type(world.faults)()
        for process in world.running("engine"):
            process.frames_to_live = None
        for call in self.calls:
            if call.kind == "watch":
                call.cancel()
        await asyncio.gather(*(call.task for call in self.calls), return_exceptions=True)
        while not self.llm.is_serving:
            await asyncio.sleep(0.1)
        for info in await self.llm.list_adapters():
            await self.llm.unload_adapter(info.name)
        while (info := await self.llm.get_info()).num_running + info.num_waiting or not self.llm.is_serving:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)
        self._check("the front end", self.llm.check_idle)
        assert world.core is not None
        self._check("the engine", world.core.check_idle)
        if world.core.num_free_pages != self.sizes.num_pages or world.core.images():
            world.violations.append(
                f"{world.core.num_free_pages} of {self.sizes.num_pages} pages are free, images {world.core.images()}"
            )
        await self.llm.shutdown()

    async def _end_by_drain(self) -> None:
        await self.llm.drain()
        await self.llm.shutdown()
        await asyncio.gather(*(call.task for call in self.calls), return_exceptions=True)

    async def _end_by_shutdown(self) -> None:
        await self.llm.shutdown()
        await asyncio.gather(*(call.task for call in self.calls), return_exceptions=True)

    # Checks.

    def _check_front_end(self) -> None:
        self._check("the front end", self.llm.check_integrity)

    def _check(self, what: str, check: Any) -> None:
        try:
            check()
        except RuntimeError as error:
            self.world.violations.append(f"{what}: {error}")

    def _judge(self) -> None:
        for call in self.calls:
            self.world.violations += call.faults()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            self.world.violations.append(f"tasks are left: {left}")
        running = [process for process in self.world._processes if process.returncode is None]
        if running:
            self.world.violations.append(f"processes are left: {[process.name for process in running]}")


class _Watch(logging.Handler):
    """What the log calls critical, or an error of asyncio, is a violation; nothing else is shown."""

    def __init__(self, violations: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._violations = violations
        self._loggers = [logging.getLogger("blora"), logging.getLogger("asyncio")]
        self._propagates = [logger.propagate for logger in self._loggers]
        for logger in self._loggers:
            logger.addHandler(self)
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.CRITICAL or record.name == "asyncio":
            cause = record.exc_info[1] if record.exc_info else ""
            self._violations.append(f"log: {record.getMessage()} {cause!r}")

    def end(self) -> None:
        for logger, propagates in zip(self._loggers, self._propagates, strict=True):
            logger.removeHandler(self)
            logger.propagate = propagates


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def simulate(seed: int, script: Sequence[Operation]) -> Outcome:
    before = _descriptors()
    outcome = Simulation(seed, script).run()
    if _descriptors() != before:
        gc.collect()  # a mapped image is open until nothing refers to it
    if (num_left := _descriptors() - before) > 0:
        return replace(outcome, violations=(*outcome.violations, f"{num_left} file descriptors are left open"))
    return outcome


def explain(seed: int, steps: int) -> str:
    """The shortest trace of a seed that fails."""
    script = shortest(operations(seed, steps), lambda script: bool(simulate(seed, script).violations))
    outcome = simulate(seed, script)
    lines = [f"seed {seed} with {steps} steps fails after {len(script)} operations:", *map(str, script)]
    return "\n".join([*lines, "violations:", *outcome.violations[:8]])


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulates the whole engine on a virtual clock.")
    parser.add_argument("--seeds", type=int, default=100, help="seeds 0, 1, ... to run (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="operations of each seed (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="the only seed to run")
    parser.add_argument("--replays", type=int, default=100, help="of these seeds, run twice (default: %(default)s)")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds) if arguments.seed is None else [arguments.seed]
    num_finished = num_engines = 0
    for index, seed in enumerate(seeds):
        script = operations(seed, arguments.steps)
        outcome = simulate(seed, script)
        if outcome.violations:
            print(explain(seed, arguments.steps))
            return 1
        if index < arguments.replays and simulate(seed, script).trace != outcome.trace:
            print(f"seed {seed} with {arguments.steps} steps has another trace when it is run again")
            return 1
        num_finished += outcome.num_finished
        num_engines += outcome.num_engines
    print(f"{len(seeds)} seeds of {arguments.steps} steps: {num_finished} requests finished, {num_engines} engines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
