"""ModelRunner: executes a step: one forward pass over the mixed batch, sampling; and its copies. Holds no request
state."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blora.adapters.device_pool import DevicePool
from blora.scheduler import RowResult, ScheduledRow, Step, TokenLogprob

from .backend import Backend, StepGraphs
from .copies import StepCopies
from .inputs import build_batch, in_batch_order, plan_logits
from .sampler import sample, token_logprobs

MAX_LOGITS_ROWS = 256  # prompt logprobs are projected in slices: a row of logits is as wide as the vocabulary


class ModelRunner:
    def __init__(
        self, backend: Backend, pool: DevicePool, copies: StepCopies, graphs: StepGraphs | None = None
    ) -> None:
        """graphs: of the backend, for the steps that they hold."""
        self._model = backend.model
        self._attention = backend.attention
        self._lora = backend.lora
        self._picker = backend.picker
        self._send = backend.send
        self._pool = pool
        self._copies = copies
        self._graphs = graphs

    @torch.inference_mode()
    def begin_copies(self, step: Step) -> None:
        """Comes before `execute`: what it computes with is there, or will be when it gets to it."""
        self._copies.begin(step)

    @torch.inference_mode()
    def finish_copies(self) -> float:
        """Comes after `execute`, even if it failed. Returns the seconds that the step's copies took."""
        return self._copies.finish()

    @torch.inference_mode()
    def execute(self, step: Step) -> dict[int, RowResult]:
        """Computes the step's rows. Returns a result for each, by request id; writes nothing but their KV."""
        rows = in_batch_order(step.rows)
        results = {row.request_id: RowResult() for row in rows}
        hidden, logits = self._launch(rows, step.adapter_pages)
        self._copies.go_on(is_waited_for=logits is not None)
        sampled = [row for row in rows if row.is_sampled]
        if logits is not None:
            samples = sample(logits, sampled, self._picker, self._vocab_sizes(sampled))
            results |= zip((row.request_id for row in sampled), samples, strict=True)
        if hidden is not None:
            for row, prompt_logprobs in self._prompt_logprobs(rows, hidden, step.adapter_pages):
                results[row.request_id] = replace(results[row.request_id], prompt_logprobs=prompt_logprobs)
        return results

    def _launch(
        self, rows: Sequence[ScheduledRow], adapter_pages: Mapping[str, Sequence[int]]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The hidden states, [num_tokens, hidden_size], but of a graph, where nobody asks for them; and the logits of
        the sampled rows, if there are any: [num_sampled, vocab_size]."""
        logits = None if self._graphs is None else self._graphs.run(rows, adapter_pages)
        if logits is not None:
            return None, logits
        batch = build_batch(rows, adapter_pages, self._attention, self._lora, self._send)
        hidden = self._model.forward(batch)
        if any(row.is_sampled for row in rows):
            logits = self._model.compute_logits(hidden[batch.logits_at], batch.logits_lora)
        return hidden, logits

    def _prompt_logprobs(
        self, rows: Sequence[ScheduledRow], hidden: Tensor, adapter_pages: Mapping[str, Sequence[int]]
    ) -> Iterator[tuple[ScheduledRow, tuple[TokenLogprob, ...]]]:
        """Of the prompt tokens that follow the tokens computed in this step, for the rows that asked."""
        first = 0
        for row in rows:
            targets = row.token_ids[row.start + 1 : min(row.end + 1, row.num_prompt_tokens)]
            if row.sampling.prompt_logprobs is not None and targets:
                yield row, tuple(self._score(hidden[first : first + len(targets)], targets, row, adapter_pages))
            first += row.num_new_tokens

    def _score(
        self, hidden: Tensor, targets: Sequence[int], row: ScheduledRow, adapter_pages: Mapping[str, Sequence[int]]
    ) -> Iterator[TokenLogprob]:
        num_best = row.sampling.prompt_logprobs or 0
        for start in range(0, len(targets), MAX_LOGITS_ROWS):
            part = slice(start, start + MAX_LOGITS_ROWS)
            # An activated LoRA, which changes a part of a row only, changes no head.
            lora = plan_logits([(row.adapters, len(hidden[part]))], adapter_pages, self._lora)
            logits = self._model.compute_logits(hidden[part], lora)[:, : self._vocab_size(row)]
            yield from token_logprobs(logits, targets[part], num_best)

    def _vocab_sizes(self, rows: Sequence[ScheduledRow]) -> list[int] | None:
        """Of each row's logits; None where all are the model's."""
        if not any(self._pool.vocab_size_of(digest) for row in rows for digest, _ in row.adapters):
            return None
        return [self._vocab_size(row) for row in rows]

    def _vocab_size(self, row: ScheduledRow) -> int:
        own = (self._pool.vocab_size_of(digest) for digest, _ in row.adapters)
        return next((size for size in own if size is not None), self._model.vocab_size)
