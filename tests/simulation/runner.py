"""SimulatedRunner: computes no tensor. Each KV cell and each page of an adapter says what was written there, and every
cell is checked when it is read; see CheckingRunner. Steps take virtual time.

A page of an adapter's image is its digest and its index, so that a wrong image shows, too. The next token is a hash of
all that was read and of the draw, as `answer` gives it for a request alone.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fakes import CheckingRunner
from torch import Tensor

from blora.adapters.device_pool import DevicePool
from blora.engine.errors import EngineBroken
from blora.engine.step.copies import CopiesBefore
from blora.scheduler import RowResult, SamplingParams, ScheduledRow, Step, TokenLogprob

EOS = 256  # as in tests/byte_tokenizer.py
FIRST_CHARACTER = 33  # of token 0, in the tokenizer of tests/byte_tokenizer.py
LETTERS = [ord(letter) - FIRST_CHARACTER for letter in "abcdef"]  # tokens; few, so that stop strings are met
SECONDS = {"step": 2e-3, "token": 1e-4, "page": 2e-4}  # virtual seconds of a step


def page_of(digest: str, index: int, page_bytes: int) -> bytes:
    return f"{digest} {index}".encode().ljust(page_bytes, b"\0")


def draw(
    token_ids: Sequence[int],
    adapters: object,
    activation: int,
    seed: int,
    sample_index: int,
    kept_from: frozenset[int],
) -> int:
    """The next token after these, a letter or EOS. kept_from: tokens that cannot be drawn."""
    text = repr((list(token_ids), adapters, activation if adapters else 0, seed, sample_index))
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    token_id = EOS if bits % 24 == 0 else LETTERS[bits // 24 % len(LETTERS)]
    choices = [token_id, *LETTERS, EOS, *range(64)]
    return next(choice for choice in choices if choice not in kept_from)


def logprob_of(token_ids: Sequence[int], token_id: int, num_others: int) -> TokenLogprob:
    """Stand-in for the logprobs of a token after others."""
    bits = int.from_bytes(hashlib.sha256(repr((list(token_ids), token_id)).encode()).digest()[:4])
    others = tuple((token_id + 1 + index) % 256 for index in range(num_others))
    values = tuple(-(bits % 1024 + index) / 64 for index in range(1 + num_others))
    return TokenLogprob((token_id, *others), values, tuple(range(1, 2 + num_others)))


class SimulatedRunner(CheckingRunner):
    def __init__(self, block_size: int, spend: Callable[[float], None], note_violation: Callable[[str], None]) -> None:
        super().__init__(block_size)
        self._spend, self._note_violation = spend, note_violation
        self.pool: DevicePool | None = None
        self.is_broken = False  # the next step ends the engine
        self.num_failing_steps = 0  # so many calls of execute fail
        self.num_failing_copies = 0  # so many calls of copy fail
        self._seconds = 0.0

    def copy(self, _pages: Tensor, page_ids: Sequence[int], images: Tensor) -> None:
        """Is the Copier of the pool."""
        if self.num_failing_copies:
            self.num_failing_copies -= 1
            raise RuntimeError("a simulated fault of a copy")
        for page, image in zip(page_ids, images, strict=True):
            digest, index = bytes(image.numpy()).rstrip(b"\0").decode().rsplit(" ", 1)
            self._clear(page)
            self.adapter_cells[page] = (digest, int(index))

    def begin_copies(self, step: Step) -> None:
        assert self.pool is not None
        self._seconds = SECONDS["page"] * sum(len(copy.page_ids) for copy in step.copies)
        self._spend(self._seconds)
        CopiesBefore(self.pool).begin(step)

    def finish_copies(self) -> float:  # type: ignore[override]
        return self._seconds

    def execute(self, step: Step) -> dict[int, RowResult]:
        if self.is_broken:
            raise EngineBroken("a simulated fault of the device")
        self._spend(SECONDS["step"] + SECONDS["token"] * step.num_tokens)
        if self.num_failing_steps:
            self.num_failing_steps -= 1
            raise RuntimeError("a simulated fault of a step")
        try:
            return super().execute(step)
        except AssertionError as error:
            self._note_violation(f"an unsafe read: {error}")
            raise

    def _read(self, row: ScheduledRow, adapter_pages: Mapping[str, object]) -> RowResult:
        result = super()._read(row, adapter_pages)
        scored = row.scored_token_ids
        prompt_logprobs = tuple(
            logprob_of(row.token_ids[:position], token_id, row.sampling.prompt_logprobs or 0)
            for position, token_id in enumerate(scored, row.start + 1)
        )
        if not row.is_sampled:
            return RowResult(prompt_logprobs=prompt_logprobs)
        token_id = draw(
            row.token_ids, row.adapters, row.activation, row.seed, row.sample_index, kept_from(row.sampling, row)
        )
        wanted = row.sampling.logprobs
        logprob = None if wanted is None else logprob_of(row.token_ids, token_id, wanted)
        return replace(result, token_id=token_id, logprob=logprob, prompt_logprobs=prompt_logprobs)


def kept_from(sampling: SamplingParams, row: ScheduledRow) -> frozenset[int]:
    is_early = row.num_output_tokens < sampling.min_tokens
    return row.stop_token_ids if is_early else frozenset()
