"""Oracle: what a request gets when it runs alone, on an engine in this process. Every answer under load has to equal
it: tokens, text and how it ended, and the beginning of an answer that was cut off."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from blora.bench.load import Planned, Record
from blora.bench.load.record import OK, Answer

ABORTED = "ABORT"
TOLERANCE = 1e-6  # of logprobs, which the wire rounds to float32
OPTIONS = {"block_size": 4, "threads": 1}  # as the servers have them: sums are cut at the ends of blocks


class Oracle:
    def __init__(self, model: Path, adapters: Mapping[str, Path], options: Mapping[str, Any]) -> None:
        self._model, self._adapters, self._options = model, adapters, options
        self._known: dict[str, list[Answer]] = {}

    def __enter__(self) -> Self:
        self._llm: Any = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._llm is not None:
            self._llm.close()

    def differences(self, records: Iterable[Record]) -> list[str]:
        """Returns what is wrong with the answers of these records, one text for each wrong one."""
        return [told for record in records if (told := self._difference(record))]

    def answer(self, planned: Planned) -> list[Answer]:
        """Returns the samples of a request that runs alone. The same one is computed only once."""
        key = json.dumps([planned.prompt, planned.adapter, planned.max_tokens, planned.sampling], sort_keys=True)
        if key not in self._known:
            self._known[key] = self._compute(planned)
        return self._known[key]

    def _difference(self, record: Record) -> str:
        if not record.answers:
            return "an answer without a sample" if record.status == OK else ""
        is_aborted = any(answer.finish_reason == ABORTED for answer in record.answers)
        is_whole = record.status == OK and not is_aborted  # whoever unloads an adapter can end its users
        num_tokens = max(len(answer.token_ids) for answer in record.answers)
        asked = record.planned if is_whole else _cut(record.planned, num_tokens)
        for index, (found, alone) in enumerate(zip(record.answers, self.answer(asked), strict=False)):
            place = len(found.token_ids)
            if found.token_ids != (alone.token_ids if is_whole else alone.token_ids[:place]):
                return f"sample {index} for {record.planned.adapter or 'the base model'}: other tokens than alone"
            pairs = list(zip(found.logprobs, alone.logprobs, strict=False))
            if others := [pair for pair in pairs if abs(pair[0] - pair[1]) > TOLERANCE]:
                return f"sample {index}: logprob {others[0][0]}, alone {others[0][1]}"
            ends = [(answer.finish_reason, answer.text) for answer in (found, alone)]
            if is_whole and ends[0] != ends[1]:
                return f"sample {index}: {ends[0]}, alone {ends[1]}"
        return ""

    def _compute(self, planned: Planned) -> list[Answer]:
        from blora.engine import LLM, SamplingParams  # imports torch, which load does not need

        if self._llm is None:
            self._llm = LLM(str(self._model), adapters=dict(self._adapters), **OPTIONS | self._options)
        sampling = SamplingParams(max_tokens=planned.max_tokens, **planned.sampling)
        prompt = planned.prompt if isinstance(planned.prompt, str) else list(planned.prompt)
        (output,) = self._llm.generate([prompt], sampling, lora_request=planned.adapter or None, use_tqdm=False)
        return [
            Answer(list(s.token_ids), _logprobs(s), s.text, (s.finish_reason or "").upper()) for s in output.outputs
        ]


def _cut(planned: Planned, num_tokens: int) -> Planned:
    """The request for so many tokens, or a few more where it may not ask for less."""
    return replace(planned, max_tokens=min(planned.max_tokens, max(num_tokens, planned.sampling.get("min_tokens", 1))))


def _logprobs(sample: Any) -> list[float]:
    positions = zip(sample.token_ids, sample.logprobs or (), strict=False)
    return [position[token].logprob for token, position in positions]
