"""Stand-ins that need no model: a runner that records in each KV cell what was written there."""

import hashlib
from collections.abc import Iterable, Mapping

from blora.scheduler import (
    DEFAULT_FAIRNESS,
    AdapterResidency,
    BlockPool,
    Fairness,
    KVManager,
    Limits,
    PageCopy,
    Request,
    RowResult,
    SamplingParams,
    ScheduledRow,
    Scheduler,
    Step,
)
from blora.scheduler.forecast import MemoryForecast

VOCAB = 50


class CheckingRunner:
    """Keeps (token, position, adapters in force) in every KV cell and (adapter, page index) in every adapter page, and
    checks each cell that it reads. The next token is a hash of all it read, so that a wrong cell changes the output,
    too."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.cells: dict[tuple[int, int], object] = {}  # (page, offset) -> content of a KV cell
        self.adapter_cells: dict[int, object] = {}  # page -> (digest, index)
        self.guilty: set[int] = set()  # requests that make a step fail
        self.num_steps = 0

    def begin_copies(self, step: Step) -> None:
        for copy in step.copies:
            self._note_copy(copy)

    def finish_copies(self) -> None:
        """Copies are complete when they begin, so there is nothing to finish."""

    def _note_copy(self, copy: PageCopy) -> None:
        for index, page in enumerate(copy.page_ids, copy.first):
            self._clear(page)
            self.adapter_cells[page] = (copy.digest, index)

    def _clear(self, page: int) -> None:
        self.adapter_cells.pop(page, None)
        for offset in range(self.block_size):
            self.cells.pop((page, offset), None)

    def execute(self, step: Step) -> dict[int, RowResult]:
        self.num_steps += 1
        if any(row.request_id in self.guilty for row in step.rows):
            raise RuntimeError("a guilty row")
        for row in step.rows:  # all rows write before any row reads, as in a layer of a real step
            self._write(row)
        return {row.request_id: self._read(row, step.adapter_pages) for row in step.rows}

    def _write(self, row: ScheduledRow) -> None:
        for position in range(row.start, row.end):
            cell = self._cell(row, position)
            self.adapter_cells.pop(cell[0], None)
            self.cells[cell] = (row.token_ids[position], position, _in_force(row, position))

    def _read(self, row: ScheduledRow, adapter_pages: Mapping[str, object]) -> RowResult:
        for digest, _ in row.adapters:
            found = [self.adapter_cells.get(page) for page in adapter_pages[digest]]  # type: ignore[attr-defined]
            assert found == [(digest, index) for index in range(len(found))], (digest, found)
        for position in range(row.end):
            expected = (row.token_ids[position], position, _in_force(row, position))
            assert self.cells.get(self._cell(row, position)) == expected, (row.request_id, position)
        # Positions stand in for prompt logprobs.
        told = range(row.start + 1, min(row.end + 1, row.num_prompt_tokens))
        prompt_logprobs = () if row.sampling.prompt_logprobs is None else tuple(told)
        return RowResult(next_token(row) if row.is_sampled else None, prompt_logprobs=prompt_logprobs)  # type: ignore[arg-type]

    def _cell(self, row: ScheduledRow, position: int) -> tuple[int, int]:
        return row.block_table[position // self.block_size], position % self.block_size


def _in_force(row: ScheduledRow, position: int) -> object:
    """Returns the adapters in force and their start, because a value computed with adapters depends on where they
    began."""
    return (row.adapters, row.activation) if row.adapters and position >= row.activation else ()


def next_token(row: ScheduledRow) -> int:
    text = repr((list(row.token_ids), row.adapters, row.activation))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % VOCAB


class BlindForecast(MemoryForecast):
    """Foresees no need, so that requests are admitted that have to be preempted."""

    def num_blocks(self, requests: Iterable[Request]) -> int:
        del requests
        return 0


def make_scheduler(
    num_pages: int = 16,
    block_size: int = 4,
    max_num_batched_tokens: int = 16,
    max_num_seqs: int = 8,
    policy: str = "fair",
    copied_pages_per_step: int = 2,
    enable_prefix_caching: bool = True,
    fairness: Fairness = DEFAULT_FAIRNESS,
    are_copies_beside_rows: bool = False,
    is_timed: bool = False,
    target_itl: float | None = None,
    is_blind: bool = False,
) -> tuple[Scheduler, AdapterResidency, BlockPool]:
    pool = BlockPool(num_pages)
    residency = AdapterResidency(pool, copied_pages_per_step, are_copies_beside_rows)
    kv = KVManager(pool, block_size, enable_prefix_caching)
    limits = Limits(max_num_batched_tokens, max_num_seqs, is_timed, target_itl)
    scheduler = Scheduler(limits, pool, kv, residency, policy, fairness)
    if is_blind:
        scheduler._forecast = BlindForecast(block_size)
    return scheduler, residency, pool


def make_request(request_id: int, prompt: list[int], max_tokens: int = 4, **fields: object) -> Request:
    sampling = fields.pop("sampling", SamplingParams(temperature=0, max_tokens=max_tokens))
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling=sampling,  # type: ignore[arg-type]
        max_tokens=max_tokens,
        seed=0,
        **fields,  # type: ignore[arg-type]
    )
