"""Simulation: one engine and its clients from the start to the end, as a seed and a script have them.

The seed draws the sizes of the engine and its end; the script is what happens to it.
"""

import asyncio
import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulation.client import Call, Generation
from simulation.clock import Standstill
from simulation.clock import run as run_in_virtual_time
from simulation.log_watch import LogWatch
from simulation.model import make_llm
from simulation.operations import FAULTS, FOLDERS, INVOCATION, NAMES, Operation
from simulation.verdict import history, unfounded
from simulation.world import PAGE_BYTES, AdapterFiles, Sizes, World

from blora.engine.adapter_store.loader_client import READ_TIMEOUT

LONGEST = 3600.0  # virtual seconds for what is left to end
ENDS = ("idle", "drain", "shutdown")


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    violations: tuple[str, ...]
    trace: str  # the hash of all frames, outputs and outcomes with their times
    num_finished: int  # requests
    num_engines: int


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
            "max_queue_seconds": draw.choice((None, None, 0.05, 1.0)),
            "max_adapter_versions": draw.choice((1, 2, 3)),
            "host_cache": draw.choice((None, 2 * PAGE_BYTES, 8 * PAGE_BYTES)),
            "adapter_upload_bytes": 4096,
            "adapters": dict(zip(NAMES, FOLDERS, strict=True)) if draw.random() < 0.8 else {},
        }
        self.end = draw.choice(ENDS)
        self.starts_by_itself = not self.options["adapters"] and draw.random() < 0.5
        self.kills_at_the_end = draw.random() < 0.2
        self.ending_at = float("inf")
        self.calls: list[Call] = []

    def run(self) -> Outcome:
        self.world = World(self.seed, self.sizes)
        for folder in FOLDERS:
            self.world.write_files(folder, AdapterFiles(f"{folder.rpartition('/')[2]}0", 1 + len(folder) % 4), 0.0)
        watch = LogWatch(self.world)
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
        self.llm = make_llm(self.world, **self.options)
        if not self.starts_by_itself:
            await self.llm.start()
        for number, operation in enumerate(self.script):
            await asyncio.sleep(operation.after)
            self._do(number, operation)
            self._check_front_end()
        async with asyncio.timeout(LONGEST):
            if self.end != "shutdown":
                await self.llm.start()
            self.ending_at = asyncio.get_running_loop().time()
            await getattr(self, f"_end_by_{self.end}")()
        await asyncio.sleep(1.0)
        self._judge()

    def _do(self, number: int, operation: Operation) -> None:
        self.world.note(str(operation))
        if operation.kind in FAULTS and self.llm._parts_or_none is None:
            return  # a first start that fails is no engine to simulate
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
            case "stand_still":
                self._stand_still(**values)
            case "break_engine" | "fail_steps" | "fail_copies" | "fail_starts" | "kill_child" | "fault_child":
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
        files = AdapterFiles(digest, num_pages, INVOCATION if is_activated else (), problem)
        self.world.write_files(folder, files, asyncio.get_running_loop().time())

    def _kill_engine(self, frames: int | None, status: int) -> None:
        for process in self.world.running("engine"):
            if frames is None:
                process.die(status)
            else:
                process.frames_to_live, process.last_status = frames, status

    def _stand_still(self, seconds: float) -> None:
        for process in self.world.running("engine"):
            process.stand_still()
            asyncio.get_running_loop().call_later(seconds, process.go_on)

    def _fault(self, operation: Operation) -> None:
        world, values = self.world, operation.values
        match operation.kind:
            case "break_engine" if world.runner is not None:
                world.runner.is_broken = True
            case "fail_steps" if world.runner is not None:
                world.runner.num_failing_steps = values["count"]
            case "fail_copies" if world.runner is not None:
                world.runner.num_failing_copies = values["count"]
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
        await asyncio.sleep(1.0 + self._seconds_of_hung_reads())
        self._check("the front end", self.llm.check_idle)
        assert world.core is not None
        self._check("the engine", world.core.check_idle)
        if world.core.num_free_pages != self.sizes.num_pages or world.core.images():
            world.violations.append(
                f"{world.core.num_free_pages} of {self.sizes.num_pages} pages are free, images {world.core.images()}"
            )
        await self.llm.shutdown()

    def _seconds_of_hung_reads(self) -> float:
        """A read whose callers have left goes on; one that hangs ends at its time."""
        hangs = any(operation.values.get("hangs") for operation in self.script if operation.kind == "fault_child")
        return READ_TIMEOUT if hangs else 0.0

    async def _end_by_drain(self) -> None:
        if self.kills_at_the_end:
            asyncio.get_running_loop().call_later(0.02, self._kill_engine, None, -9)
        await self.llm.drain()
        await self.llm.shutdown()
        await asyncio.gather(*(call.task for call in self.calls), return_exceptions=True)

    async def _end_by_shutdown(self) -> None:
        await self.llm.shutdown()
        await asyncio.gather(*(call.task for call in self.calls), return_exceptions=True)

    # Checks.

    def _check_front_end(self) -> None:
        if self.llm._parts_or_none is not None:
            self._check("the front end", self.llm.check_integrity)

    def _check(self, what: str, check: Any) -> None:
        try:
            check()
        except RuntimeError as error:
            self.world.violations.append(f"{what}: {error}")

    def _judge(self) -> None:
        names = history(self.calls, self.options["adapters"], self.world)
        for call in self.calls:
            self.world.violations += call.faults()
            self.world.violations += unfounded(call, self.script, self.world, self.ending_at)
            if isinstance(call, Generation):
                self.world.violations += call.faults_of_adapters(names, self.options["max_adapter_versions"] == 1)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            self.world.violations.append(f"tasks are left: {left}")
        running = [process for process in self.world._processes if process.returncode is None]
        if running:
            self.world.violations.append(f"processes are left: {[process.name for process in running]}")


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
