"""Datasets that are files: conversations in ShareGPT's form, JSON lines of one's own, and traces with times."""

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .sample import Sample

CHARACTERS_A_TOKEN = 4  # of a text that no tokenizer counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareGPT:
    """The first question of each conversation and the length of its answer: [{"conversations": [{"value": ...}, ...]}].
    Questions under 4 characters, and conversations of one turn, are left out. Without `output_len` an answer may have
    as many tokens as the one in the file has, by four characters each."""

    path: Path
    output_len: int | None = None

    def draw(self, count: int, seed: int) -> list[Sample]:
        return _some(list(self._samples()), count, seed, self.path)

    def _samples(self) -> Iterator[Sample]:
        for conversation in _conversations(self.path):
            turns = conversation.get("conversations") or conversation.get("conversation") or []
            if len(turns) < 2:
                continue
            question, answer = str(turns[0]["value"]), str(turns[1]["value"])
            if len(question) >= CHARACTERS_A_TOKEN:
                tokens = self.output_len or max(math.ceil(len(answer) / CHARACTERS_A_TOKEN), 1)
                yield Sample(prompt=question, max_tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Custom:
    """JSON lines: {"prompt": text or token ids, "output_tokens": 40, "adapter": "a", "expected": "yes",
    "sampling": {...}}, all but the prompt optional."""

    path: Path
    output_len: int

    def draw(self, count: int, seed: int) -> list[Sample]:
        return _some([self._sample(line) for line in _lines(self.path)], count, seed, self.path)

    def _sample(self, line: Mapping[str, Any]) -> Sample:
        return Sample(
            prompt=_field(line, "prompt", self.path),
            max_tokens=line.get("output_tokens") or self.output_len,
            adapter=line.get("adapter"),
            expected=line.get("expected"),
            sampling=line.get("sampling", {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedTrace:
    """JSON lines with times, as Mooncake's and vLLM's `timed_trace` have them: {"timestamp": milliseconds,
    "input_length": 100, "output_length": 20, "hash_ids": [...], "adapter": "a"}. Prompts are random tokens; equal
    hash ids mean the same block of tokens, and prompts of one beginning begin alike."""

    path: Path
    vocab_size: int
    speed: float = 1.0  # how many times as fast as it was recorded
    block_size: int = 512  # tokens of a hash id
    _blocks: dict[Any, list[int]] = field(default_factory=dict, repr=False)

    def draw(self, count: int, seed: int) -> list[Sample]:
        lines = list(_lines(self.path))[:count]
        if not self.speed > 0:
            raise ValueError(f"the speed of a trace is {self.speed}; it has to be above 0")
        begin = min((_field(line, "timestamp", self.path) for line in lines), default=0.0)
        return [
            Sample(
                prompt=self._prompt(line, number, seed),
                max_tokens=max(_field(line, "output_length", self.path), 1),
                adapter=line.get("adapter"),
                seconds=(line["timestamp"] - begin) / 1e3 / self.speed,
            )
            for number, line in enumerate(lines)
        ]

    def _prompt(self, line: Mapping[str, Any], number: int, seed: int) -> list[int]:
        length = max(_field(line, "input_length", self.path), 1)
        blocks = [f"block {name} {seed}" for name in line.get("hash_ids", ())]
        tokens = [token for name in blocks for token in self._tokens(name, self.block_size)][:length]
        return tokens + self._tokens(f"rest {number} {seed}", length - len(tokens))

    def _tokens(self, name: str, count: int) -> list[int]:
        return random.Random(name).choices(range(self.vocab_size), k=count)


def _some(samples: list[Sample], count: int, seed: int, path: Path) -> list[Sample]:
    """Draws without order; a file that has fewer is gone through again."""
    if not samples:
        raise ValueError(f"{path} has no prompt that can be asked")
    source = random.Random(f"samples {seed}")
    found: list[Sample] = []
    while len(found) < count:
        found += source.sample(samples, len(samples))
    return found[:count]


def _conversations(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{path} is no JSON list of conversations")
    return found


def _field(line: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in line:
        raise ValueError(f"a line of {path} has no {name!r}; it has {', '.join(line) or 'nothing'}")
    return line[name]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Raises ValueError with the number of a line that is not what its form says."""
    for number, text in enumerate(path.read_text().splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is no JSON: {error}") from None
        if not isinstance(line, dict):
            raise ValueError(f"line {number} of {path} is no JSON object")
        yield line
