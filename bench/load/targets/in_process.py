"""InProcessTarget: an engine of the generator's own, without a door. What a load over a door costs beyond this one is
the door's price."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self

from blora.engine import AsyncLLM, LoRARequest, RequestOutput, RequestOutputKind, SamplingParams
from blora.engine.server.status import STATUS_CODES

from ..driver import CANCELLED, Clock
from ..record import OK, Record


class InProcessTarget:
    """Use as `async with InProcessTarget(model, options) as target`. options: those of the engine, and `adapters`, the
    folders of adapters by name."""

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = dict(options)
        self._adapters: Mapping[str, str] = self._options.pop("adapters", {})

    async def __aenter__(self) -> Self:
        self._llm = AsyncLLM(self._model, **self._options)
        await self._llm.__aenter__()
        for name, path in self._adapters.items():
            await self._llm.load_adapter(name, Path(path))
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._llm.__aexit__(*exception)

    async def ask(self, record: Record, clock: Clock) -> None:
        planned = record.planned
        now = record.sent = clock()
        deadline = None
        if planned.deadline is not None:
            deadline = asyncio.get_running_loop().time() + planned.seconds + planned.deadline - now
        prompt = planned.prompt if isinstance(planned.prompt, str) else {"prompt_token_ids": list(planned.prompt)}
        try:
            sampling = SamplingParams(
                max_tokens=planned.max_tokens, output_kind=RequestOutputKind.DELTA, **planned.sampling
            )
            adapter = LoRARequest(planned.adapter) if planned.adapter else None
            outputs = self._llm.generate(
                prompt,
                sampling,
                lora_request=adapter,
                priority=planned.priority,
                tenant=planned.tenant,
                deadline=deadline,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    if await _took(output, record, clock):
                        return
            record.note_end(clock(), OK)
        except Exception as error:  # of any kind: a target only notes failures
            code = next((code for kind, code in STATUS_CODES.items() if isinstance(error, kind)), None)
            record.note_end(clock(), "INTERNAL" if code is None else code.name, str(error))
            record.retry_after = getattr(error, "retry_after", None)


async def _took(output: RequestOutput, record: Record, clock: Clock) -> bool:
    """Adds the news to the record; returns whether the client leaves."""
    note(output, record, clock())
    cancel_after = record.planned.cancel_after
    if cancel_after is not None and record.num_tokens >= cancel_after:
        record.note_end(clock(), CANCELLED, "the client left")
        return True
    if record.planned.read_pause:
        await asyncio.sleep(record.planned.read_pause)
    return False


def note(output: RequestOutput, record: Record, now: float) -> None:
    record.request_id = output.request_id
    record.told_prompt_tokens = len(output.prompt_token_ids)
    count = 0
    for sample in output.outputs:
        answer = record.answer(sample.index)
        answer.text += sample.text
        answer.token_ids.extend(sample.token_ids)
        count += len(sample.token_ids)
        if sample.finish_reason:
            answer.finish_reason = sample.finish_reason.upper()
    if count:
        record.note_tokens(now, count)
