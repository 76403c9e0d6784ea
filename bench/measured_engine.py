"""MeasuredEngine: an engine in this process with random adapters loaded. It measures one pass of rows through it.

Prefix caching is off, so that each pass computes everything.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blora.engine import LLM, SamplingParams, StructuredOutputsParams
from blora.engine.model_files.hub import resolve_model
from blora.engine.model_files.read_config import load_model_config
from blora.engine.step.core import EngineCore

from .random_adapters import ALL_MODULES, make_adapters
from .stopwatch import Stopwatch

STEP = "step"
WARM_ROWS = 64  # adapters that one pass makes resident
SPARE_BYTES = 64 << 20
SPARE_SHARE = 1.25  # a default arena has this many times the bytes that rows and adapters fill


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The engine and the adapters to build before a measurement. dtype, backend, threads, memory: the engine's options.
    memory: None takes as much as the rows and adapters need."""

    model: str
    max_rows: int
    max_len: int  # tokens of prompt and output
    adapters: int = 0
    ranks: tuple[int, ...] = (16,)
    modules: tuple[str, ...] = ALL_MODULES
    dtype: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    memory: int | float | str | None = None
    adapter_folder: Path = Path(".cache/bench-adapters")


@dataclass(frozen=True, slots=True)
class Pass:
    """Times of one pass, in seconds."""

    seconds: float
    decode_steps: Sequence[float]  # time of each step after the last row's first token
    first_tokens: Sequence[float]  # time of each row from the call to its first token


class MeasuredEngine:
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        folder = resolve_model(setup.model, None)
        self._model_config = load_model_config(folder)
        self.adapter_folders = paths = self._make_adapters(folder)
        self.adapter_bytes = sum((path / "adapter_model.safetensors").stat().st_size for path in paths)
        self.llm = LLM(str(folder), **self._options())
        self._names = [path.name for path in paths]
        for name, path in zip(self._names, paths, strict=True):
            self.llm.load_adapter(name, path)
        self.make_resident()

    def _make_adapters(self, folder: Path) -> list[Path]:
        setup = self.setup
        if not setup.adapters:
            return []
        kinds = "all" if set(setup.modules) == set(ALL_MODULES) else "+".join(sorted(setup.modules))
        spec = f"{folder.name}-{kinds}-{'+'.join(map(str, setup.ranks))}"
        return make_adapters(folder, setup.adapter_folder / spec, setup.adapters, setup.ranks, setup.modules)

    def _options(self) -> dict[str, Any]:
        setup, config = self.setup, self._model_config
        options: dict[str, Any] = {
            "dtype": setup.dtype,
            "backend": setup.backend,
            "threads": setup.threads,
            "memory": self._needed_memory() if setup.memory is None else setup.memory,
            "max_num_seqs": max(setup.max_rows, WARM_ROWS),
            "max_model_len": min(setup.max_len, config.max_position_embeddings),
            "enable_prefix_caching": False,
            "host_cache": None,
            "generation_config": "vllm",
        }
        return options

    def _needed_memory(self) -> int:
        setup, config = self.setup, self._model_config
        item_bytes = 4 if self.dtype == "float32" else 2
        token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * item_bytes
        num_tokens = max(setup.max_rows, WARM_ROWS) * (setup.max_len + 16)  # a row's last block is seldom full
        adapters = self.adapter_bytes * item_bytes // 2  # values in the files have 16 bits
        return int((num_tokens * token_bytes + adapters) * SPARE_SHARE) + SPARE_BYTES

    @property
    def vocab_size(self) -> int:
        return self._model_config.vocab_size

    @property
    def dtype(self) -> str:
        """The data type of the model, KV and adapters."""
        return self._model_config.dtype if self.setup.dtype == "auto" else self.setup.dtype

    @property
    def num_resident(self) -> int:
        return sum(adapter.resident for adapter in self.llm.list_adapters())

    def adapter_name(self, index: int | None) -> str | None:
        """Returns the name of an adapter by its index; None is the base model."""
        return None if index is None else self._names[index]

    def make_resident(self) -> None:
        """Uses every adapter once. An adapter that memory has no room for is copied again when it is needed."""
        for first in range(0, len(self._names), WARM_ROWS):
            indexes = list(range(first, min(first + WARM_ROWS, len(self._names))))
            self.run([[0]] * len(indexes), indexes, 1)

    def first_tokens(self, adapters: Sequence[str], prompt_len: int, num_tokens: int) -> list[float]:
        """Runs one greedy request for each adapter, all at once; returns the seconds from the call to each first
        token."""
        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": [index % self.vocab_size] * prompt_len} for index in range(len(adapters))]
        started = time.monotonic()
        outputs = self.llm.generate(prompts, sampling, lora_request=list(adapters), use_tqdm=False)
        return [output.metrics.first_token_ts - started for output in outputs if output.metrics is not None]

    def run(
        self,
        prompts: Sequence[list[int]],
        adapters: Sequence[int | None],
        num_tokens: int,
        whats: Sequence[StructuredOutputsParams | None] | None = None,
    ) -> Pass:
        """Runs all rows at once, greedily, for num_tokens each. adapters: each row's adapter by its index; None is the
        base model. whats: what each row's text has to match; None if no row has anything."""
        sampling = [
            SamplingParams(
                temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, structured_outputs=what
            )
            for what in whats or [None] * len(prompts)
        ]
        names = [self.adapter_name(adapter) for adapter in adapters]
        with Stopwatch() as stopwatch:
            stopwatch.watch(EngineCore, "step", STEP, starts_record=True)
            started = time.monotonic()
            outputs = self.llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts], sampling, lora_request=names, use_tqdm=False
            )
            seconds = time.monotonic() - started
        metrics = [output.metrics for output in outputs if output.metrics is not None]
        for output in outputs:
            sample = output.outputs[0]
            if len(sample.token_ids) != num_tokens:
                raise RuntimeError(f"a row ended after {len(sample.token_ids)} of {num_tokens} tokens: {sample.error}")
        all_started = max(row.first_token_ts for row in metrics)
        return Pass(
            seconds,
            [step.seconds[STEP] for step in stopwatch.records if step.start >= all_started],
            [row.first_token_ts - started for row in metrics],
        )
