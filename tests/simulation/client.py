"""Clients: calls of AsyncLLM that run beside each other, and what each of them has come to."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from simulation.names import NameHistory
from simulation.oracle import TYPED, Sample, faults_of_prompt_logprobs, faults_of_sample
from simulation.runner import FIRST_CHARACTER
from simulation.world import AdapterFiles, World

from blora.engine import AsyncLLM, LoRARequest, RequestOutput, SamplingParams
from blora.engine.adapter_store.upload import UploadedFile
from blora.scheduler import RequestOutputKind

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Call:
    """A call of a client. `outcome` is what it returned, or the error that it raised."""

    def __init__(self, number: int, kind: str, values: dict[str, Any], llm: AsyncLLM, world: World) -> None:
        self.number, self.kind, self.values = number, kind, values
        self.llm, self.world = llm, world
        self.outcome: object = None
        self.is_cancelled = False
        self.num_ends = 0
        self.started = asyncio.get_running_loop().time()
        self.ended = float("inf")
        self.task = asyncio.create_task(self._run())

    @property
    def has_ended(self) -> bool:
        return self.task.done()

    def cancel(self) -> None:
        self.is_cancelled = True
        self.task.cancel()

    async def _run(self) -> None:
        try:
            self.outcome = await getattr(self, f"_{self.kind}")(**self.values)
        except asyncio.CancelledError:
            self.outcome = "cancelled"
            if not self.is_cancelled:
                self.world.violations.append(f"call {self.number} was cancelled by nobody")
        except TYPED as error:
            self.outcome = error
        except Exception as error:
            self.outcome = error
            self.world.violations.append(f"call {self.number}, {self.kind}: {type(error).__name__}: {error}")
        self.ended = asyncio.get_running_loop().time()
        self.num_ends += 1
        self.world.note("call", self.number, self.kind, _told(self.outcome))

    def faults(self) -> list[str]:
        """What is wrong with a call that has ended."""
        was_begun = not self.task.cancelled()
        return (
            [] if self.num_ends == was_begun else [f"call {self.number}, {self.kind}, has ended {self.num_ends} times"]
        )

    # Adapters.

    async def _load(self, name: str, folder: str, pinned: bool) -> Any:
        return await self.llm.load_adapter(name, folder, pinned=pinned)

    async def _upload(self, name: str, digest: str, num_pages: int) -> Any:
        content = AdapterFiles(digest, num_pages).encode()
        files = [UploadedFile("adapter_config.json", len(content), hashlib.sha256(content).hexdigest())]
        return await self.llm.upload_adapter(name, files, self._chunks(content))

    async def _chunks(self, content: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(content), 3):
            await asyncio.sleep(self.world.seconds(0.01))
            yield content[at : at + 3]

    async def _unload(self, name: str, abort: bool) -> Any:
        return await self.llm.unload_adapter(name, abort=abort)

    async def _activate(self, name: str, version: int) -> Any:
        return await self.llm.activate_adapter(name, version)

    async def _pin(self, name: str, pinned: bool) -> Any:
        return await self.llm.pin_adapter(name, pinned)

    async def _warm(self, name: str) -> Any:
        return await self.llm.warm_adapter(name)

    async def _inspect(self, folder: str) -> Any:
        return await self.llm.inspect_adapter(folder)

    async def _list(self) -> Any:
        return await self.llm.list_adapters()

    async def _info(self) -> Any:
        return await self.llm.get_info()

    async def _reset(self, also_running: bool) -> Any:
        return await self.llm.reset_prefix_cache(also_running)

    async def _watch(self, num_events: int) -> Any:
        async with aclosing(self.llm.watch_adapters()) as news:
            async for _ in news:
                num_events -= 1
                if not num_events:
                    break


class Generation(Call):
    """A request of n samples. Its prompt ends with its number, so that no other has the same."""

    def __init__(self, number: int, values: dict[str, Any], llm: AsyncLLM, world: World) -> None:
        sampling: dict[str, Any] = values["sampling"]
        kind_of_output = RequestOutputKind[sampling["output_kind"]]
        self.sampling = SamplingParams(**sampling | {"output_kind": kind_of_output})
        self.prompt = [*values["prompt"], number // 32, 32 + number % 32]
        self.label = f"request {number}"
        self.samples = {index: Sample() for index in range(self.sampling.n)}
        self.prompt_logprobs: list[Any] | None = None
        self.num_finished = 0
        super().__init__(number, "generate", values, llm, world)

    def _in_form(self) -> Any:
        salt = {"cache_salt": self.values["salt"]} if self.values["salt"] else {}
        text = "".join(chr(token_id + FIRST_CHARACTER) for token_id in self.prompt)
        match self.values["form"]:
            case "text":
                return {"prompt": text, **salt}
            case "chat":  # its template is the client's, which the text process runs
                return {"messages": [{"role": "user", "content": text}], "chat_template": TEMPLATE, **salt}
        return {"prompt_token_ids": self.prompt, **salt}

    def _adapter(self) -> Any:
        if "path" in self.values:
            name, folder = self.values["path"]
            return LoRARequest(name, 1, folder)
        return dict(self.values["adapters"]) or None

    async def _generate(self, closes_after: int | None, pause: float, seconds: float | None, **_: Any) -> Any:
        stream = self.llm.generate(
            self._in_form(),
            self.sampling,
            self.label,
            lora_request=self._adapter(),
            priority=self.values["priority"],
            tenant=self.values["tenant"],
            deadline=None if seconds is None else self.started + seconds,
        )
        async with aclosing(stream) as outputs:
            async for output in outputs:
                self._note(output)
                if closes_after is not None:
                    closes_after -= 1
                    if not closes_after and not output.finished:
                        return "closed"
                await asyncio.sleep(pause)
        return "finished" if self.num_finished else "ended without an end"

    def _note(self, output: RequestOutput) -> None:
        if self.num_finished:
            self.world.violations.append(f"{self.label}: an output comes after the last one")
        self.num_finished += output.finished
        is_delta = self.sampling.output_kind is RequestOutputKind.DELTA
        if output.prompt_logprobs:
            self.prompt_logprobs = (
                [*(self.prompt_logprobs or ()), *output.prompt_logprobs] if is_delta else list(output.prompt_logprobs)
            )
        for part in output.outputs:
            sample = self.samples[part.index]
            before = sample.token_ids if is_delta else []
            if not is_delta and part.token_ids[: len(sample.token_ids)] != sample.token_ids:
                self.world.violations.append(f"{self.label}: {part.token_ids} does not go on from {sample.token_ids}")
            sample.token_ids = [*before, *part.token_ids]
            sample.text = sample.text + part.text if is_delta else part.text
            sample.logprobs = [*(sample.logprobs if is_delta else ()), *(part.logprobs or ())]
            if part.finish_reason is not None and (is_delta or sample.finish_reason is None):
                sample.num_ends += 1
            sample.finish_reason, sample.stop_reason, sample.error = part.finish_reason, part.stop_reason, part.error
        told = [(part.index, tuple(part.token_ids), part.finish_reason) for part in output.outputs]
        self.world.note(self.label, told, output.finished)

    def faults(self) -> list[str]:
        faults = super().faults()
        if self.outcome == "ended without an end":
            faults.append("the stream ended without a last output")
        given = self.world.requests.get(tuple(self.prompt), {})
        is_whole = self.outcome == "finished"
        for index, sample in self.samples.items():
            if is_whole and sample.num_ends != 1:
                faults.append(f"sample {index} has ended {sample.num_ends} times")
            if index in given:
                faults += [f"sample {index}: {fault}" for fault in faults_of_sample(sample, given[index])]
            elif sample.token_ids:
                faults.append(f"sample {index} has tokens, and no engine was asked for it")
        if 0 in given:
            was_computed = is_whole and self.samples[0].finish_reason in ("stop", "length")
            faults += faults_of_prompt_logprobs(self.prompt_logprobs, given[0], was_computed)
        return [f"{self.label}: {fault}" for fault in faults]

    def faults_of_adapters(self, names: NameHistory, is_exact: bool) -> list[str]:
        """What is wrong with the adapters that the engine was given for it. is_exact: a name has one version only, so
        that a folder's files are always compared with those of the active one."""
        given = self.world.requests.get(tuple(self.prompt), {})
        if 0 not in given:
            return []
        wanted, found = self.values["adapters"], given[0].adapters
        if "path" in self.values:
            name, folder = self.values["path"]
            could = self.world.digests_between(folder, self.started if is_exact else 0.0, self.ended)
            is_right = len(found) == 1 and found[0][1] == 1.0 and found[0][0] in could
        else:
            is_right = [scale for _, scale in found] == [scale for _, scale in wanted] and all(
                names.could_mean(name, digest, self.started, self.ended)
                for (name, _), (digest, _) in zip(wanted, found, strict=True)
            )
        return [] if is_right else [f"{self.label}: adapters {found} for {self.values.get('path', wanted)}"]


def _told(outcome: object) -> str:
    """The outcome as a trace tells it: without the time of day."""
    return (
        outcome
        if isinstance(outcome, str)
        else f"{type(outcome).__name__} {outcome}"[:200]
        if isinstance(outcome, Exception)
        else type(outcome).__name__
    )
